/**
 * What the agent measures of the mesh: under the names of Cilium's agents (wire-contract §4.5), so that dashboards and alerts fit;
 * and how long a change took from its source into this kernel.
 */

import { type Observe, scopeOf } from '@clustermesh/kvstore';
import { type Clock, version } from '@clustermesh/runtime';
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { Arrival, FamilyProgress } from '../mesh/progress.ts';
import type { RemoteState } from '../mesh/types.ts';

export interface MeshMetrics {
  /** Everything known was applied for the first time. */
  bootstrapped(seconds: number): void;
  taken(arrivals: readonly Arrival[]): void;
  applied(arrival: Arrival): void;
  /** A request to an etcd. */
  readonly observe: Observe;
}

/** As Cilium derives it from a key: `cilium/state/nodes/v1/…` → `nodes/v1`. */
const scopeOfFamily = (family: string): string => `${family}/v1`;

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export function createMeshMetrics(ports: {
  readonly registry: Registry;
  readonly remotes: () => readonly RemoteState[];
  readonly progress: () => readonly FamilyProgress[];
  /** This cluster, under whose name its agents write. */
  readonly cluster: string;
  /** Changes of peers that are not in the kernel yet. */
  readonly waiting: () => readonly Arrival[];
  /** What this node writes about itself. */
  readonly published: () => { readonly pending: number; readonly refused: number };
  readonly runs: () => { readonly passes: number; readonly failedPasses: number };
  readonly clock: Clock;
}): MeshMetrics {
  const registers = [ports.registry];
  const gauge = <Label extends string>(
    name: string,
    help: string,
    labelNames: readonly Label[],
    collect: (gauge: Gauge<Label>) => void,
  ) => {
    new Gauge({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        collect(this);
      },
    });
  };
  const perRemote = (name: string, help: string, of: (remote: RemoteState) => number | undefined) =>
    gauge(`cilium_clustermesh_${name}`, help, ['target_cluster'], (metric) => {
      for (const remote of ports.remotes()) {
        const value = of(remote);
        if (value !== undefined) metric.set({ target_cluster: remote.name }, value);
      }
    });

  const bootstrap = new Gauge({
    name: 'cilium_clustermesh_bootstrap_seconds',
    help: 'Seconds from the start until all remote clusters were heard out and applied in the kernel.',
    registers,
  });
  gauge('cilium_clustermesh_remote_clusters', 'Remote clusters that are part of the mesh.', [], (metric) =>
    metric.set(ports.remotes().length),
  );
  perRemote('remote_cluster_nodes', 'Nodes of the remote cluster.', (remote) => remote.nodes);
  perRemote('remote_cluster_services', 'Global services of the remote cluster.', (remote) => remote.services);
  perRemote('remote_cluster_endpoints', 'Addresses of the remote cluster.', (remote) => remote.endpoints);
  perRemote('remote_cluster_readiness_status', '1 while the remote cluster is connected and synced.', (remote) =>
    remote.ready ? 1 : 0,
  );
  perRemote(
    'remote_cluster_failures',
    'Lost connections of what the remote cluster is read from.',
    (remote) => remote.failures,
  );
  perRemote('remote_cluster_last_failure_ts', 'When the connection was lost last, Unix time.', (remote) =>
    remote.lastFailureWallMs === undefined ? undefined : remote.lastFailureWallMs / 1000,
  );
  gauge(
    'cilium_kvstore_initial_sync_completed',
    '1 once the first complete list has been applied.',
    ['scope', 'source_cluster', 'action'],
    (metric) => {
      for (const { peer, family, synced } of ports.progress())
        metric.set({ scope: scopeOfFamily(family), source_cluster: peer, action: 'read' }, synced ? 1 : 0);
    },
  );
  /** Of what is known as "so many since the start". */
  const total = <Label extends string>(
    name: string,
    help: string,
    labelNames: readonly Label[],
    read: () => readonly (readonly [labels: Record<Label, string>, value: number])[],
  ) => {
    new Counter({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.inc(labels, value);
      },
    });
  };
  total(
    'cilium_kvstore_quorum_errors_total',
    'Heartbeats of directly read clusters that stayed away.',
    ['error'],
    () => [[{ error: 'heartbeat' }, ports.remotes().reduce((sum, remote) => sum + remote.quorumErrors, 0)]],
  );
  const sync = ['scope', 'source_cluster'] as const;
  const own = { scope: 'clustermesh/nodes', source_cluster: ports.cluster };
  gauge(
    'cilium_kvstore_sync_queue_size',
    'Changes of a family that are not in the kernel yet; clustermesh/nodes: keys of this node that are not in etcd yet.',
    sync,
    (metric) => {
      metric.set(own, ports.published().pending);
      for (const { peer, family } of ports.progress())
        metric.set({ scope: scopeOfFamily(family), source_cluster: peer }, 0);
      for (const { peer, family } of ports.waiting())
        metric.inc({ scope: scopeOfFamily(family), source_cluster: peer });
    },
  );
  total(
    'cilium_kvstore_sync_errors_total',
    'Times that following a family broke off; clustermesh/nodes: keys of this node that etcd refuses.',
    sync,
    () => [
      [own, ports.published().refused],
      ...ports
        .progress()
        .map(
          ({ peer, family, interruptions }) =>
            [{ scope: scopeOfFamily(family), source_cluster: peer }, interruptions] as const,
        ),
    ],
  );
  total('cilium_controllers_group_runs_total', 'Passes over the kernel tables.', ['group_name', 'status'], () => [
    [{ group_name: 'kernel-tables', status: 'success' }, ports.runs().passes],
    [{ group_name: 'kernel-tables', status: 'failure' }, ports.runs().failedPasses],
  ]);
  total(
    'cilium_clustermesh_remote_cluster_cache_revocations',
    'Times that rows of a cluster that was away for long were withdrawn. Never: they stay until it says otherwise.',
    ['target_cluster', 'mode'],
    () => ports.remotes().map(({ name }) => [{ target_cluster: name, mode: 'ttl' }, 0]),
  );
  gauge('cilium_version', 'Release of this process.', ['version'], (metric) => metric.set({ version: version() }, 1));
  const operations = new Histogram({
    name: 'cilium_kvstore_operations_duration_seconds',
    help: 'Duration of requests to etcd.',
    labelNames: ['scope', 'kind', 'action', 'outcome'],
    buckets: SECONDS,
    registers,
  });
  const queue = new Histogram({
    name: 'cilium_kvstore_events_queue_seconds',
    help: 'Seconds that a received change waited before it was worked on.',
    labelNames: ['scope', 'action'],
    buckets: SECONDS,
    registers,
  });
  const endToEnd = new Histogram({
    name: 'clustermesh_agent_end_to_end_seconds',
    help:
      "Seconds until a change was applied in this node's kernel. measured=change: since it was made, as its source's clock has it; " +
      'receipt: since it was received, where the source does not say (identities, slices, plain Cilium); delete: the same of deletes.',
    labelNames: ['cluster', 'family', 'measured'],
    buckets: SECONDS,
    registers,
  });

  return {
    bootstrapped: (seconds) => bootstrap.set(seconds),
    taken(arrivals) {
      const now = ports.clock.nowMs();
      for (const { family, action, receivedMs } of arrivals)
        queue.observe({ scope: scopeOfFamily(family), action }, (now - receivedMs) / 1000);
    },
    applied({ peer, family, action, receivedMs, changedMs }) {
      const measured = action === 'delete' ? 'delete' : changedMs === undefined ? 'receipt' : 'change';
      const ms = changedMs === undefined ? ports.clock.nowMs() - receivedMs : ports.clock.wallMs() - changedMs;
      // Clocks differ: a change from the future took no time.
      endToEnd.observe({ cluster: peer, family, measured }, Math.max(0, ms) / 1000);
    },
    observe: ({ key, kind, action, seconds, ok }) =>
      operations.observe({ scope: scopeOf(key), kind, action, outcome: ok ? 'success' : 'fail' }, seconds),
  };
}
