/**
 * A process that keeps opening connections to one service through the load balancer of a pinned set of maps, by
 * BPF_PROG_TEST_RUN, until stdin ends; then prints how often which outcome was seen: {"tunnel 10.2.1.5": 1234, …}.
 *
 *   prober.ts PIN_DIR IFINDEX POD_IP SERVICE_IP
 */
import { setImmediate } from 'node:timers/promises';
import { CmReason } from '@clustermesh/bpf';
import * as libbpf from '../libbpf.ts';
import { loadPrograms } from '../loader.ts';
import { toFamily } from '../rows.ts';
import { build, read } from './frames.ts';

const [pinDir, ifindex, saddr, daddr] = process.argv.slice(2) as [string, string, string, string];
const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 9, identityShift: 16, underlayMtu: 0 };
const loaded = await loadPrograms({ objects: ['seam'], pinDir, settings });
const fd = loaded.programFd('cm_test_from_pod');
const context = Buffer.alloc(192);
context.writeUInt32LE(Number(ifindex), 8); // mark: see bpf/test/seam.bpf.c
const reasons = new Map<number, string>(Object.entries(CmReason).map(([name, value]) => [value, name]));

const seen: Record<string, number> = {};
let done = false;
process.stdin.on('end', () => {
  done = true;
});
process.stdin.resume();
process.stdout.write('ready\n');
for (let sport = 1024; !done; sport = sport === 65535 ? 1024 : sport + 1) {
  const packet = build({ saddr, daddr, tcp: { sport, dport: 80, flags: 'S' } });
  const out = libbpf.testRun(fd, { packet, context });
  const reason = reasons.get(loaded.maps.cm_decisions.lookup(0)!.reason) ?? '?';
  const outcome = `${reason} ${read(out.packet).daddr}`;
  seen[outcome] = (seen[outcome] ?? 0) + 1;
  if (sport % 64 === 0) await setImmediate();
}
process.stdout.write(`${JSON.stringify(seen)}\n`);
await loaded.close();
