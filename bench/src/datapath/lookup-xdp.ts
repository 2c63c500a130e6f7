/**
 * The same for XDP at an uplink: a host of the world, a service, a backend of another node; flow, translation, the host's route to that
 * node, VXLAN. Each run puts the packet back as it was, which is part of what is measured: some tens of ns, whatever the tables hold.
 */
import type { ServiceRow } from '@clustermesh/agent';
import { build, libbpf, loadXdpAgain } from '@clustermesh/agent/testing/kernel';
import { type Sandbox, sh } from '@clustermesh/agent/testing/sandbox';
import type { Emit } from '../report.ts';
import { type Bench, measure, RANDOM_SERVICES, serviceIp } from './lookup.ts';
import { median } from './pairs.ts';
import { configOf, openTables, taken } from './tables.ts';

const CLIENT = '203.0.113.7';
const NODE = '172.31.0.2';
const DEVICE = 'xlook';
const XDP_TX = 3;

/** Where XDP sends to: no packet is sent, but routes and neighbours are asked. */
function addUplink(): number {
  sh('ip', 'link', 'add', DEVICE, 'type', 'veth', 'peer', 'name', `${DEVICE}p`);
  for (const end of [DEVICE, `${DEVICE}p`]) sh('ip', 'link', 'set', end, 'up');
  sh('ip', 'addr', 'add', '172.31.0.1/24', 'dev', DEVICE);
  sh('ip', 'neigh', 'add', NODE, 'lladdr', '02:cc:00:00:00:02', 'dev', DEVICE, 'nud', 'permanent');
  sh('sysctl', '-q', '-w', 'net.ipv4.ip_forward=1');
  return libbpf.interfaceIndex(DEVICE)!;
}

async function fill(sandbox: Sandbox, uplink: number, services: number): Promise<Bench> {
  const name = `lookup-xdp-${services}`;
  const datapath = await openTables(sandbox, name);
  const rows = Array.from({ length: services }, (_, i): ServiceRow => {
    const backend = { ip: `10.2.${(i >> 8) & 255}.${i & 255}`, port: 8080, clusterId: 2 };
    return {
      frontend: { ip: serviceIp(i), port: 80, protocol: 'TCP', scope: 'outside' },
      backends: [backend],
      flags: 0,
    };
  });
  await taken(datapath.services.update(rows));
  await taken(
    datapath.ipcache.update([
      { prefix: '10.2.0.0/16', identity: 131_100, clusterId: 2, tunnelEndpoint: NODE, encryptKey: 0 },
    ]),
  );
  const program = await loadXdpAgain(configOf(sandbox, name), [uplink]);

  function run(service: number, repeat: number): number {
    const tcp = { sport: 4000, dport: 80, flags: 'A' };
    const packet = build({ saddr: CLIENT, daddr: serviceIp(service), tcp, payload: 'x' });
    const context = Buffer.alloc(24); // struct xdp_md
    context.writeUInt32LE(packet.length, 4);
    context.writeUInt32LE(uplink, 12);
    const result = libbpf.testRun(program.fd, { packet, context, repeat });
    if (result.verdict !== XDP_TX || !result.packet.equals(packet))
      throw new Error(`measuring XDP: verdict ${result.verdict} instead of sending the packet on`);
    return result.nanoseconds;
  }
  const some = Array.from({ length: RANDOM_SERVICES }, () => Math.floor(Math.random() * services));
  for (const service of some) run(service, 1);
  return {
    hot: (repeat) => run(services >> 1, repeat),
    random: () => median(some.map(() => run(some[Math.floor(Math.random() * some.length)]!, 1))),
    async close() {
      program.close();
      await datapath.close();
    },
  };
}

export async function benchXdpLookup(sandbox: Sandbox, pairs: number, repeat: number, emit: Emit): Promise<void> {
  const uplink = addUplink();
  return measure('XDP', (services) => fill(sandbox, uplink, services), pairs, repeat, emit);
}
