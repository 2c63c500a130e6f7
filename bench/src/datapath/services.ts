/**
 * Connections through a service whose one backend is a pod of the same node, so that what is compared is the load balancing:
 *
 *   ours       socket load balancing and the pod programs, as in production
 *   iptables   kube-proxy's DNAT chains     } kernel routing, conntrack, a node of its own each;
 *   nftables   kube-proxy's verdict map     } iptables by either of its back ends
 *   plain      kernel routing, no service
 *
 * Of the services of a list, the measured one stands in the middle.
 */
import type { ServiceRow } from '@clustermesh/agent';
import type { TwoNodes } from '@clustermesh/agent/testing/two-nodes';
import type { Emit } from '../report.ts';
import { atLeast, atMost, beside } from './aims.ts';
import { addProxyNode, type KernelPaths, type ProxyNode } from './kernel-paths.ts';
import type { Load, Place } from './load.ts';
import { alternate, compare } from './pairs.ts';
import { MEASURED_IP, type PlannedService, planServices, programIptables, programNftables } from './service-proxies.ts';

const SIZES = [1, 1_000, 10_000] as const;
const BACKEND_PORT = 8081;
const SHARES_MS = { connect: 400, latency: 500 };

export interface ServiceBench {
  readonly mesh: TwoNodes;
  readonly paths: KernelPaths;
  readonly load: Load;
  readonly pairs: number;
  readonly emit: Emit;
}

export async function benchServices({ mesh, paths, load, pairs, emit }: ServiceBench): Promise<void> {
  const { n1 } = mesh.nodes;
  const { a, b } = mesh.pods;
  const client: Place = { netns: a.netns, cgroup: n1.cgroup };
  const server: Place = { netns: b.netns, cgroup: n1.cgroup };
  const iptables = addProxyNode(mesh.sandbox, 'ipt');
  const iptablesNft = addProxyNode(mesh.sandbox, 'ipn');
  const nftables = addProxyNode(mesh.sandbox, 'nft');
  for (const place of [server, iptables.server, iptablesNft.server, nftables.server])
    await load.serve(place, BACKEND_PORT);

  async function program(n: number): Promise<PlannedService> {
    const { services, measured } = planServices(n, { ip: b.endpoint.ip, port: BACKEND_PORT });
    await n1.datapath.call('update', { table: 'services', rows: services.map(toRow) });
    const planFor = (node: ProxyNode) => planServices(n, { ip: node.serverIp, port: BACKEND_PORT }).services;
    programIptables(iptables, planFor(iptables));
    programIptables(iptablesNft, planFor(iptablesNft), 'nft');
    programNftables(nftables, planFor(nftables));
    return measured;
  }

  for (const size of SIZES) {
    const target = await program(size);
    const ms = SHARES_MS.connect;
    const rates = await alternate(pairs, {
      ours: () => load.connect(client, target, ms),
      iptables: () => load.connect(iptables.client, target, ms),
      iptablesNft: () => load.connect(iptablesNft.client, target, ms),
      nftables: () => load.connect(nftables.client, target, ms),
      plain: () => load.connect(client, { ip: paths.viaRoute(1, 2), port: BACKEND_PORT }, ms),
    });
    const of = `${size} service${size > 1 ? 's' : ''}`;
    const name = (than: string) => `connect+request+close, ${of}, and ${than}`;
    const toIptables = compare(rates.ours, rates.iptables);
    const aims: Partial<Record<number, number>> = { 1: 1.05, 10000: 5 };
    const aim = aims[size];
    emit(
      aim === undefined ? beside(name('iptables'), '/s', toIptables) : atLeast(name('iptables'), '/s', toIptables, aim),
      atLeast(name('nftables'), '/s', compare(rates.ours, rates.nftables), 1.05),
      beside(name('iptables by its nft back end'), '/s', compare(rates.ours, rates.iptablesNft)),
      beside(name('no service, plainly routed'), '/s', compare(rates.ours, rates.plain)),
      // What there is to win at all, for whatever would stand in the place of iptables.
      beside(`connect+request+close, no service, and iptables with ${of}`, '/s', compare(rates.plain, rates.iptables)),
    );
  }

  const target = { ip: MEASURED_IP, port: 80 };
  const latency = await alternate(pairs, {
    ours: () => load.pingpong(client, target, SHARES_MS.latency),
    plain: () => load.pingpong(client, { ip: paths.viaRoute(1, 2), port: BACKEND_PORT }, SHARES_MS.latency),
  });
  const name = 'request/response through a service, and plainly routed';
  emit(atMost(name, 'µs', compare(latency.ours, latency.plain), 1.05));
}

const toRow = ({ ip, port, backend }: PlannedService): ServiceRow => ({
  frontend: { ip, port, protocol: 'TCP' },
  backends: [{ ...backend, clusterId: 1 }],
  flags: 0,
});
