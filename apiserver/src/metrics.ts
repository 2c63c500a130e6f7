/** Prometheus metrics, read from the views when scraped. Cilium's names (wire-contract §4.5) where they say the same thing. */
import { CANARY_FAMILIES } from '@clustermesh/contract';
import { version } from '@clustermesh/runtime';
import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import type { ControlPlane } from './control-plane.ts';

type Sample = readonly [labels: Record<string, string>, value: number];

export function createMetrics(cluster: string, plane: ControlPlane): Registry {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });

  const gauge = (name: string, help: string, labelNames: readonly string[], read: () => Iterable<Sample>) => {
    new Gauge({
      name,
      help,
      labelNames: [...labelNames],
      registers: [registry],
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.set(labels, value);
      },
    });
  };
  const one = (name: string, help: string, read: () => number | undefined) =>
    gauge(name, help, [], () => {
      const value = read();
      return value === undefined ? [] : [[{}, value]];
    });
  const scoped = ['scope', 'source_cluster'];

  // ---- clustermesh-apiserver: this cluster's own state
  const own = 'cilium_clustermesh_apiserver_';
  one(`${own}bootstrap_seconds`, 'Time until users, roles and auth were in place', () => {
    const ms = plane.bootstrap.tookMs();
    return ms === undefined ? undefined : ms / 1000;
  });
  gauge(`${own}version`, 'Release of this process', ['version'], () => [[{ version: version() }, 1]]);
  gauge(`${own}kvstore_sync_queue_size`, 'Keys waiting to be written', scoped, () =>
    Object.entries(plane.exporter.writers()).map(([scope, status]) => [
      { scope, source_cluster: cluster },
      status.pending,
    ]),
  );
  gauge(`${own}kvstore_sync_errors`, 'Keys that etcd refuses', scoped, () =>
    Object.entries(plane.exporter.writers()).map(([scope, status]) => [
      { scope, source_cluster: cluster },
      status.errors.length,
    ]),
  );
  gauge(
    `${own}kvstore_initial_sync_completed`,
    'Whether the complete first state is in etcd',
    [...scoped, 'action'],
    () =>
      CANARY_FAMILIES.map((family) => [
        { scope: family, source_cluster: cluster, action: 'write' },
        plane.exporter.synced().has(family) ? 1 : 0,
      ]),
  );

  // ---- kvstoremesh: the peers
  const mesh = 'cilium_kvstoremesh_';
  const perPeer = (name: string, help: string, read: (peer: ReturnType<typeof plane.mirror.peers>[number]) => number) =>
    gauge(`${mesh}${name}`, help, ['target_cluster'], () =>
      plane.mirror.peers().map((peer) => [{ target_cluster: peer.cluster }, read(peer)]),
    );
  one(`${mesh}remote_clusters`, 'Configured peers', () => plane.mirror.counters().size);
  perPeer('remote_cluster_readiness_status', 'Whether all of a peer is mirrored and it is connected', (peer) =>
    peer.ready && peer.connected ? 1 : 0,
  );
  gauge(`${mesh}remote_cluster_failures`, 'Lost connections since the start', ['target_cluster'], () =>
    [...plane.mirror.counters()].map(([peer, counters]) => [{ target_cluster: peer }, counters.failures]),
  );
  gauge(`${mesh}remote_cluster_last_failure_ts`, 'When the connection was lost last', ['target_cluster'], () =>
    [...plane.mirror.counters()].map(([peer, counters]) => [
      { target_cluster: peer },
      counters.lastFailureAtWallMs / 1000,
    ]),
  );
  gauge(`${mesh}kvstore_initial_sync_completed`, 'Whether a peer is completely mirrored', [...scoped, 'action'], () =>
    plane.mirror
      .peers()
      .flatMap((peer) =>
        Object.entries(peer.families).map(
          ([family, status]): Sample => [
            { scope: family, source_cluster: peer.cluster, action: 'write' },
            status.synced ? 1 : 0,
          ],
        ),
      ),
  );
  for (const family of ['nodes', 'services', 'ip'] as const) {
    const name = family === 'ip' ? 'endpoints' : family;
    perPeer(`remote_cluster_${name}`, `Mirrored ${name} of a peer`, (peer) => peer.families[family]?.count ?? 0);
  }

  // ---- what Cilium has no name for
  gauge(
    'clustermesh_mirror_quarantined',
    'Objects of a peer that are not taken over',
    ['target_cluster', 'scope'],
    () =>
      plane.mirror
        .peers()
        .flatMap((peer) =>
          Object.entries(peer.families).map(
            ([family, status]): Sample => [{ target_cluster: peer.cluster, scope: family }, status.quarantined],
          ),
        ),
  );
  gauge('clustermesh_mirror_quarantine_events', 'Objects quarantined since the start', ['target_cluster'], () =>
    [...plane.mirror.counters()].map(([peer, counters]) => [{ target_cluster: peer }, counters.quarantined]),
  );
  gauge('clustermesh_mirror_last_proof_seconds', "Age of a peer's last heartbeat", ['target_cluster'], () =>
    plane.mirror
      .peers()
      .flatMap((peer): Sample[] =>
        peer.lastProofAgeMs === null ? [] : [[{ target_cluster: peer.cluster }, peer.lastProofAgeMs / 1000]],
      ),
  );
  one('clustermesh_apiserver_problems', 'Readable problems of own objects', () => plane.local.problems().length);
  one('clustermesh_apiserver_etcd_connected', 'Whether the own etcd answers', () =>
    plane.bootstrap.connected() ? 1 : 0,
  );
  one(
    'clustermesh_apiserver_nodes_waiting',
    'Known nodes that have not published again',
    () => plane.nodes.snapshot().waitingFor.length,
  );
  one('clustermesh_apiserver_agents', 'Live agents', () => plane.agents.agents().length);
  return registry;
}
