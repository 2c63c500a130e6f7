/**
 * ns/packet of per-packet load balancing by BPF_PROG_TEST_RUN: the production program at a pod's veth over tables of so many
 * services, all the way to the tunnel key. Nothing is sent.
 *
 * Repeated runs work on one buffer, so a packet whose destination was translated would be no packet to a service the next time.
 * Each service's backend is therefore its own address: all of the work is done, and the packet stays what it was.
 */
import type { ServiceRow } from '@clustermesh/agent';
import { build, libbpf } from '@clustermesh/agent/testing/kernel';
import { type Sandbox, sh } from '@clustermesh/agent/testing/sandbox';
import type { Emit } from '../report.ts';
import { atMost, beside } from './aims.ts';
import { alternate, compare, type Measurement, median } from './pairs.ts';
import { openTables, taken } from './tables.ts';

const SIZES = [1, 1_000, 10_000, 50_000] as const;
const POD = '10.1.1.5';
const TC_ACT_REDIRECT = 7;
/** More than caches near the CPU hold; few enough that conntrack keeps all of their flows. */
export const RANDOM_SERVICES = 5_000;

export const serviceIp = (i: number): string => `10.96.${(i >> 8) & 255}.${i & 255}`;

export interface Bench {
  /** Mean over runs of one and the same packet, in ns. */
  hot(repeat: number): number;
  /** Median over packets to random services in random order, one run each, in ns; all flows are known. */
  random(): number;
  close(): Promise<void>;
}

async function fill(sandbox: Sandbox, services: number): Promise<Bench> {
  const datapath = await openTables(sandbox, `lookup-${services}`);
  const rows = Array.from({ length: services }, (_, i): ServiceRow => {
    const address = { ip: serviceIp(i), port: 80 };
    return { frontend: { ...address, protocol: 'TCP' }, backends: [{ ...address, clusterId: 2 }], flags: 0 };
  });
  await taken(datapath.services.update(rows));
  await taken(
    datapath.ipcache.update([
      { prefix: '10.96.0.0/16', identity: 131_100, clusterId: 2, tunnelEndpoint: '172.31.0.2', encryptKey: 0 },
    ]),
  );
  const device = `look${services}`;
  sh('ip', 'link', 'add', device, 'type', 'veth', 'peer', 'name', `${device}p`);
  await datapath.attachEndpoint({
    ip: POD,
    interface: device,
    podMac: '02:aa:00:00:00:05',
    hostMac: '02:bb:00:00:00:05',
    identity: 65_541,
    endpointId: 1,
  });
  const ifindex = libbpf.interfaceIndex(device)!;
  const fd = libbpf.programFdById(libbpf.queryTc(ifindex, 'ingress')!);
  const context = Buffer.alloc(192); // struct __sk_buff
  context.writeUInt32LE(ifindex, 40);

  function run(service: number, repeat: number): number {
    const tcp = { sport: 4000, dport: 80, flags: 'A' };
    const packet = build({ saddr: POD, daddr: serviceIp(service), tcp, payload: 'x' });
    const result = libbpf.testRun(fd, { packet, context, repeat });
    if (result.verdict !== TC_ACT_REDIRECT || !result.packet.equals(packet))
      throw new Error(`measuring a lookup: verdict ${result.verdict} instead of a redirect of the same packet`);
    return result.nanoseconds;
  }
  const some = Array.from({ length: RANDOM_SERVICES }, () => Math.floor(Math.random() * services));
  for (const service of some) run(service, 1);
  return {
    hot: (repeat) => run(services >> 1, repeat),
    random: () => median(some.map(() => run(some[Math.floor(Math.random() * some.length)]!, 1))),
    async close() {
      libbpf.closeFd(fd);
      await datapath.close();
    },
  };
}

/** By number of services, beside a single one. */
export async function measure(
  what: string,
  fill: (services: number) => Promise<Bench>,
  pairs: number,
  repeat: number,
  emit: Emit,
): Promise<void> {
  const name = (size: number, keys: string) => `${what} load balancing, ${size} service${size > 1 ? 's' : ''}, ${keys}`;
  const benches: Bench[] = [];
  for (const size of SIZES) benches.push(await fill(size));
  try {
    const contenders = (of: (bench: Bench) => number) =>
      Object.fromEntries(SIZES.map((size, i): [string, Measurement] => [String(size), () => of(benches[i]!)]));
    const hot = await alternate(
      pairs,
      contenders((bench) => bench.hot(repeat)),
    );
    emit(
      ...SIZES.map((size) => {
        const compared = compare(hot[String(size)]!, hot['1']!);
        return size === SIZES.at(-1)
          ? atMost(name(size, 'one hot key'), 'ns/packet', compared, 1.1)
          : beside(name(size, 'one hot key'), 'ns/packet', compared);
      }),
    );
    const random = await alternate(
      pairs,
      contenders((bench) => bench.random()),
    );
    emit(
      ...SIZES.map((size) =>
        beside(name(size, 'random keys'), 'ns/packet', compare(random[String(size)]!, random['1']!)),
      ),
    );
  } finally {
    for (const bench of benches) await bench.close();
  }
}

export const benchLookup = (sandbox: Sandbox, pairs: number, repeat: number, emit: Emit): Promise<void> =>
  measure('tc', (services) => fill(sandbox, services), pairs, repeat, emit);
