/** Prometheus metrics, read from the views when scraped. Cilium's names (wire-contract §4.5) where they say the same thing. */
import { WIRE_FAMILIES } from '@clustermesh/contract';
import { scopeOf } from '@clustermesh/kvstore';
import { version } from '@clustermesh/runtime';
import { Counter, collectDefaultMetrics, Gauge, type Registry } from 'prom-client';
import type { ControlPlane } from './control-plane.ts';
import type { WriterView } from './ports.ts';

type Sample = readonly [labels: Record<string, string>, value: number];

export const OWN_METRICS = 'cilium_clustermesh_apiserver_';
export const MESH_METRICS = 'cilium_kvstoremesh_';

const DATA_SCOPES = WIRE_FAMILIES.map((family) => `${family}/v1`);

/** Keys by what they are; families that have none count zero. */
export function byScope(keys: Iterable<string>): ReadonlyMap<string, number> {
  const counts = new Map(DATA_SCOPES.map((scope) => [scope, 0]));
  for (const key of keys) {
    const scope = scopeOf(key);
    counts.set(scope, (counts.get(scope) ?? 0) + 1);
  }
  return counts;
}

function* pendingKeys(writers: readonly WriterView[]): Generator<string, void, void> {
  for (const writer of writers) yield* writer.pendingKeys();
}
const refusedKeys = (writers: readonly WriterView[]) =>
  writers.flatMap((writer) => writer.status().errors.map(({ key }) => key));

/** `audit`: what the last one found; undefined where there was none. */
export function createMetrics(
  registry: Registry,
  cluster: string,
  plane: ControlPlane,
  audit: () => { readonly failed: number; readonly warning: number } | undefined,
): void {
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
  /** Of what is only known as "so many now": counts every rise. */
  const rises = (name: string, help: string, labelNames: readonly string[], read: () => Iterable<Sample>) => {
    const last = new Map<string, number>();
    new Counter({
      name,
      help,
      labelNames: [...labelNames],
      registers: [registry],
      collect() {
        for (const [labels, value] of read()) {
          const key = JSON.stringify(labels);
          this.inc(labels, Math.max(0, value - (last.get(key) ?? 0)));
          last.set(key, value);
        }
      },
    });
  };
  const scoped = ['scope', 'source_cluster'];

  // ---- clustermesh-apiserver: this cluster's own state
  const own = OWN_METRICS;
  one(`${own}bootstrap_seconds`, 'Time until users, roles and auth were in place', () => {
    const ms = plane.bootstrap.tookMs();
    return ms === undefined ? undefined : ms / 1000;
  });
  gauge(`${own}version`, 'Release of this process', ['version'], () => [[{ version: version() }, 1]]);
  const perScope = (source: string, keys: Iterable<string>): Sample[] =>
    [...byScope(keys)].map(([scope, count]) => [{ scope, source_cluster: source }, count]);
  gauge(`${own}kvstore_sync_queue_size`, 'Keys waiting to be written', scoped, () =>
    perScope(cluster, pendingKeys(plane.exporter.writers())),
  );
  rises(`${own}kvstore_sync_errors_total`, 'Keys that etcd refused', scoped, () =>
    perScope(cluster, refusedKeys(plane.exporter.writers())),
  );
  gauge(
    `${own}kvstore_initial_sync_completed`,
    'Whether the complete first state is in etcd',
    [...scoped, 'action'],
    () =>
      WIRE_FAMILIES.map((family) => [
        { scope: `${family}/v1`, source_cluster: cluster, action: 'write' },
        plane.exporter.synced().has(family) ? 1 : 0,
      ]),
  );

  // ---- kvstoremesh: the peers
  const mesh = MESH_METRICS;
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
            { scope: `${family}/v1`, source_cluster: peer.cluster, action: 'write' },
            status.synced ? 1 : 0,
          ],
        ),
      ),
  );
  gauge(`${mesh}version`, 'Release of this process', ['version'], () => [[{ version: version() }, 1]]);
  one(`${mesh}bootstrap_seconds`, 'Time until all peers were mirrored', () => {
    const ms = plane.mirror.tookMs();
    return ms === undefined ? undefined : ms / 1000;
  });
  gauge(`${mesh}kvstore_sync_queue_size`, 'Keys waiting to be written', scoped, () =>
    [...plane.mirror.counters()].flatMap(([peer, { writer }]) => perScope(peer, pendingKeys([writer]))),
  );
  rises(`${mesh}kvstore_sync_errors_total`, 'Keys that etcd refused', scoped, () =>
    [...plane.mirror.counters()].flatMap(([peer, { writer }]) => perScope(peer, refusedKeys([writer]))),
  );
  for (const family of ['nodes', 'services', 'ip'] as const) {
    const name = family === 'ip' ? 'endpoints' : family;
    perPeer(`remote_cluster_${name}`, `Mirrored ${name} of a peer`, (peer) => peer.families[family]?.count ?? 0);
  }

  // ---- what Cilium has no name for
  gauge('clustermesh_mirror_objects', 'Objects counted against the quota of a peer', ['target_cluster'], () =>
    [...plane.mirror.counters()].map(([peer, { keys }]) => [{ target_cluster: peer }, keys]),
  );
  gauge('clustermesh_mirror_bytes', 'Bytes counted against the quota of a peer', ['target_cluster'], () =>
    [...plane.mirror.counters()].map(([peer, { bytes }]) => [{ target_cluster: peer }, bytes]),
  );
  one('clustermesh_apiserver_leading', 'Whether this replica writes', () => (plane.isLeading() ? 1 : 0));
  rises('clustermesh_apiserver_config_repairs_total', 'Cluster configs of others put right', [], () => [
    [{}, plane.exporter.configRepairs()],
  ]);
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
  one(
    'clustermesh_apiserver_services_outgrown',
    'Own services too large for one etcd value: peers that read no endpoint slices have an old version of them, or none',
    () => plane.exporter.outgrown(),
  );
  one('clustermesh_apiserver_etcd_connected', 'Whether the own etcd answers', () =>
    plane.bootstrap.connected() ? 1 : 0,
  );
  one(
    'clustermesh_apiserver_nodes_waiting',
    'Known nodes that have not published again',
    () => plane.nodes.waitingFor().length,
  );
  gauge('clustermesh_apiserver_audit_findings', 'What the last audit found, by severity', ['state'], () =>
    Object.entries(audit() ?? {}).map(([state, count]): Sample => [{ state }, count]),
  );
  one('clustermesh_apiserver_agents', 'Live agents', () => plane.agents.agents().length);
}
