/** Pod to pod across nodes: ours beside the kernel's own VXLAN and routing, between the same namespaces, over a wire of the same make. */
import type { PolicyRow, PolicyStateRow } from '@clustermesh/agent';
import type { TwoNodes } from '@clustermesh/agent/testing/two-nodes';
import type { Emit } from '../report.ts';
import { atLeast, atMost, beside } from './aims.ts';
import type { KernelPaths } from './kernel-paths.ts';
import type { Load, Place } from './load.ts';
import { alternate, compare } from './pairs.ts';

const PORT = 8082;
const RUN_MS = { throughput: 700, latency: 500 };

export interface AcrossBench {
  readonly mesh: TwoNodes;
  readonly paths: KernelPaths;
  readonly load: Load;
  readonly pairs: number;
  readonly emit: Emit;
}

export async function benchAcross({ mesh, paths, load, pairs, emit }: AcrossBench): Promise<void> {
  const { n1, n2 } = mesh.nodes;
  const { a, c } = mesh.pods;
  const client: Place = { netns: a.netns, cgroup: n1.cgroup };
  await load.serve({ netns: c.netns, cgroup: n2.cgroup }, PORT);
  const ways = {
    ours: { ip: c.endpoint.ip, port: PORT },
    vxlan: { ip: paths.viaVxlan(2, 1), port: PORT },
    routed: { ip: paths.viaRoute(2, 1), port: PORT },
  };
  const measure = (what: 'stream' | 'pingpong', ms: number) => ({
    ours: () => load[what](client, ways.ours, ms),
    vxlan: () => load[what](client, ways.vxlan, ms),
    routed: () => load[what](client, ways.routed, ms),
  });
  const throughput = await alternate(pairs, measure('stream', RUN_MS.throughput));
  const to = (what: string, than: string) => `${what} over VXLAN with conntrack, and ${than}`;
  emit(
    atLeast(to('TCP throughput', 'kernel VXLAN'), 'Gbit/s', compare(throughput.ours, throughput.vxlan), 1),
    beside(to('TCP throughput', 'kernel routing'), 'Gbit/s', compare(throughput.ours, throughput.routed)),
  );
  const { ours, ...others } = measure('pingpong', RUN_MS.latency);
  const enforce = policyBetween(mesh);
  const latency = await alternate(pairs, {
    ours: () => enforce(false).then(ours),
    enforced: () => enforce(true).then(ours),
    ...others,
  });
  const policed = (than: string) => `TCP ping-pong over VXLAN with conntrack and policy, and ${than}`;
  emit(
    atMost(policed('kernel VXLAN'), 'µs', compare(latency.enforced, latency.vxlan), 0.9),
    beside(policed('kernel routing'), 'µs', compare(latency.enforced, latency.routed)),
    beside(policed('the same without policy'), 'µs', compare(latency.enforced, latency.ours)),
  );
}

/** Policies of both pods, in both directions, that allow TCP between the two and nothing else; or none. */
function policyBetween({ nodes, pods: { a, c } }: TwoNodes): (isOn: boolean) => Promise<void> {
  let revision = 0;
  const ends = [
    { datapath: () => nodes.n1.datapath, pod: a.endpoint, peer: c.endpoint },
    { datapath: () => nodes.n2.datapath, pod: c.endpoint, peer: a.endpoint },
  ];
  return async (isOn) => {
    revision++;
    for (const { datapath, pod, peer } of ends) {
      const { endpointId } = pod;
      const rows = (['ingress', 'egress'] as const).map(
        (direction): PolicyRow => ({
          endpointId,
          direction,
          identity: peer.identity,
          protocol: 6,
          port: 0,
          portBits: 0,
          deny: false,
        }),
      );
      const state: PolicyStateRow = { endpointId, ingress: isOn, egress: isOn, locked: false, revision };
      await datapath().call('update', { table: 'policies', rows });
      await datapath().call('update', { table: 'policyStates', rows: [state] });
    }
  };
}
