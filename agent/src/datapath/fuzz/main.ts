/**
 *   npm run fuzz:datapath                       a million packets for tc, 300 000 for XDP and tc, 200 000 connects and sends
 *   npm run fuzz:datapath -- --packets 5000000 --xdp 1000000 --sockets 1000000 --seed 7
 *
 * Exit code 1 with the packets if something is found; the seed gives them again.
 */
import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { openPacketLab } from '../testing/packet-lab.ts';
import { describeFinding, fuzz } from './run.ts';
import { fuzzSockets } from './sockets.ts';
import { describeXdpFinding, fuzzXdp } from './xdp.ts';

const { values: flags } = parseArgs({
  options: {
    packets: { type: 'string', default: '1000000' },
    xdp: { type: 'string', default: '300000' },
    sockets: { type: 'string', default: '200000' },
    seed: { type: 'string' },
  },
});
const seed = Number(flags.seed ?? randomInt(2 ** 31));
const since = performance.now();
process.stderr.write(`fuzz: seed ${seed}\n`);
const onProgress = (packets: number) => packets % 100_000 === 0 && process.stderr.write(`fuzz: ${packets} packets\n`);

async function fuzzPackets(isDsr: boolean): Promise<void> {
  const lab = await openPacketLab({ isDsr });
  try {
    const result = await fuzz(lab, { seed, packets: Math.ceil(Number(flags.packets) / 2), onProgress });
    const { packets, forwarded, demanded, denied, taken, findings } = result;
    for (const finding of findings) process.stdout.write(`${describeFinding(finding)}\n`);
    const seconds = ((performance.now() - since) / 1000).toFixed(0);
    process.stdout.write(
      `${isDsr ? 'dsr' : 'snat'}: ${packets} packets in ${seconds} s: ${forwarded} forwarded, ${demanded} had to be dropped (${denied} by policy), ${taken} had a service taken off, ${findings.length} findings\n`,
    );
    if (findings.length > 0) process.exitCode = 1;
  } finally {
    await lab.close();
  }
}

async function fuzzXdpPackets(): Promise<void> {
  const lab = await openPacketLab({ routed: true });
  try {
    const result = await fuzzXdp(lab, { seed, packets: Number(flags.xdp), onProgress });
    const { packets, tunnelled, routed, answers, dropped, findings } = result;
    for (const finding of findings) process.stdout.write(`${describeXdpFinding(finding)}\n`);
    process.stdout.write(
      `${packets} packets for XDP: ${tunnelled} encapsulated, ${routed} routed (${answers} answers), ${dropped} dropped, ${findings.length} findings\n`,
    );
    if (findings.length > 0) process.exitCode = 1;
  } finally {
    await lab.close();
  }
}

await fuzzPackets(false);
await fuzzPackets(true);
await fuzzXdpPackets();
const { connects, sends, refused } = await fuzzSockets({ operations: Number(flags.sockets), seed });
process.stdout.write(`${connects} connects and ${sends} sends, ${refused} refused: 0 findings\n`);
