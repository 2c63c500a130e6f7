/**
 *   npm run fuzz:datapath                       a million packets, from a random seed
 *   npm run fuzz:datapath -- --packets 5000000 --seed 7
 *
 * Exit code 1 with the packets if something is found; the seed gives them again.
 */
import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { openPacketLab } from '../testing/packet-lab.ts';
import { describeFinding, fuzz } from './run.ts';

const { values: flags } = parseArgs({
  options: { packets: { type: 'string', default: '1000000' }, seed: { type: 'string' } },
});
const seed = Number(flags.seed ?? randomInt(2 ** 31));
const since = performance.now();
const lab = await openPacketLab();
try {
  process.stderr.write(`fuzz: seed ${seed}\n`);
  const onProgress = (packets: number) => packets % 100_000 === 0 && process.stderr.write(`fuzz: ${packets} packets\n`);
  const result = await fuzz(lab, { seed, packets: Number(flags.packets), onProgress });
  const { packets, forwarded, demanded, findings } = result;
  for (const finding of findings) process.stdout.write(`${describeFinding(finding)}\n`);
  const seconds = ((performance.now() - since) / 1000).toFixed(0);
  process.stdout.write(
    `${packets} packets in ${seconds} s: ${forwarded} forwarded, ${demanded} had to be dropped, ${findings.length} findings\n`,
  );
  process.exitCode = findings.length > 0 ? 1 : 0;
} finally {
  await lab.close();
}
