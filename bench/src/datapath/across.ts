/** Pod to pod across nodes: ours beside the kernel's own VXLAN and routing, between the same namespaces, over the same wire. */
import type { TwoNodes } from '@clustermesh/agent/testing/two-nodes';
import type { Figure } from '../report.ts';
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
}

export async function benchAcross({ mesh, paths, load, pairs }: AcrossBench): Promise<Figure[]> {
  const { n1, n2 } = mesh.nodes;
  const { a, c } = mesh.pods;
  const client: Place = { netns: a.netns, cgroup: n1.cgroup };
  await load.serve({ netns: c.netns, cgroup: n2.cgroup }, PORT);
  const ways = {
    ours: { ip: c.endpoint.ip, port: PORT },
    vxlan: { ip: paths.viaVxlan(2, 1), port: PORT },
    routed: { ip: paths.viaRoute(2, 1), port: PORT },
  };
  const measure = (what: 'stream' | 'pingpong', ms: number) =>
    alternate(pairs, {
      ours: () => load[what](client, ways.ours, ms),
      vxlan: () => load[what](client, ways.vxlan, ms),
      routed: () => load[what](client, ways.routed, ms),
    });
  const throughput = await measure('stream', RUN_MS.throughput);
  const latency = await measure('pingpong', RUN_MS.latency);
  const to = (what: string, than: string) => `${what} over VXLAN with conntrack, and ${than}`;
  return [
    atLeast(to('TCP throughput', 'kernel VXLAN'), 'Gbit/s', compare(throughput.ours, throughput.vxlan), 1),
    beside(to('TCP throughput', 'kernel routing'), 'Gbit/s', compare(throughput.ours, throughput.routed)),
    atMost(to('TCP ping-pong', 'kernel VXLAN'), 'µs', compare(latency.ours, latency.vxlan), 0.9),
    beside(to('TCP ping-pong', 'kernel routing'), 'µs', compare(latency.ours, latency.routed)),
  ];
}
