/** Pod to pod across nodes without a tunnel: ours, by the routes that the agent makes, beside the kernel's own forwarding. */
import type { AcrossBench } from './across.ts';
import { atLeast, atMost } from './aims.ts';
import type { Place } from './load.ts';
import { alternate, compare } from './pairs.ts';

const PORT = 8083;
const RUN_MS = { throughput: 700, latency: 500 };

export async function benchDirect({ mesh, paths, load, pairs, emit }: AcrossBench): Promise<void> {
  const { n1, n2 } = mesh.nodes;
  const { a, c } = mesh.pods;
  await mesh.setDirect({ pods: [0, 1], all: true });
  const client: Place = { netns: a.netns, cgroup: n1.cgroup };
  await load.serve({ netns: c.netns, cgroup: n2.cgroup }, PORT);
  const ways = { ours: { ip: c.endpoint.ip, port: PORT }, routed: { ip: paths.viaRoute(2, 1), port: PORT } };
  const measure = (what: 'stream' | 'pingpong', ms: number) =>
    alternate(pairs, {
      ours: () => load[what](client, ways.ours, ms),
      routed: () => load[what](client, ways.routed, ms),
    });
  const named = (what: string) => `${what} by direct routing with conntrack, and kernel routing`;
  const throughput = await measure('stream', RUN_MS.throughput);
  emit(atLeast(named('TCP throughput'), 'Gbit/s', compare(throughput.ours, throughput.routed), 1));
  const latency = await measure('pingpong', RUN_MS.latency);
  emit(atMost(named('TCP ping-pong'), 'µs', compare(latency.ours, latency.routed), 0.95));
}
