/**
 *   npm run fuzz:datapath                       a million packets and 200 000 connects and sends, from a random seed
 *   npm run fuzz:datapath -- --packets 5000000 --sockets 1000000 --seed 7
 *
 * Exit code 1 with the packets if something is found; the seed gives them again.
 */
import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { openPacketLab } from '../testing/packet-lab.ts';
import { describeFinding, fuzz } from './run.ts';
import { fuzzSockets } from './sockets.ts';

const { values: flags } = parseArgs({
  options: {
    packets: { type: 'string', default: '1000000' },
    sockets: { type: 'string', default: '200000' },
    seed: { type: 'string' },
  },
});
const seed = Number(flags.seed ?? randomInt(2 ** 31));
const since = performance.now();
const lab = await openPacketLab();
try {
  process.stderr.write(`fuzz: seed ${seed}\n`);
  const onProgress = (packets: number) => packets % 100_000 === 0 && process.stderr.write(`fuzz: ${packets} packets\n`);
  const result = await fuzz(lab, { seed, packets: Number(flags.packets), onProgress });
  const { packets, forwarded, demanded, denied, findings } = result;
  for (const finding of findings) process.stdout.write(`${describeFinding(finding)}\n`);
  const seconds = ((performance.now() - since) / 1000).toFixed(0);
  process.stdout.write(
    `${packets} packets in ${seconds} s: ${forwarded} forwarded, ${demanded} had to be dropped (${denied} by policy), ${findings.length} findings\n`,
  );
  process.exitCode = findings.length > 0 ? 1 : 0;
  const { connects, sends, refused } = await fuzzSockets({ operations: Number(flags.sockets), seed });
  process.stdout.write(`${connects} connects and ${sends} sends, ${refused} refused: 0 findings\n`);
} finally {
  await lab.close();
}
