/**
 * What the agent measures of the mesh: under the names of Cilium's agents (wire-contract §4.5), so that dashboards and alerts fit;
 * and how long a change took from its source into this kernel.
 */

import type { Clock } from '@clustermesh/runtime';
import { Gauge, Histogram, type Registry } from 'prom-client';
import type { Arrival, FamilyProgress } from '../mesh/progress.ts';
import type { RemoteState } from '../mesh/types.ts';

export interface MeshMetrics {
  /** Everything known was applied for the first time. */
  bootstrapped(seconds: number): void;
  taken(arrivals: readonly Arrival[]): void;
  applied(arrival: Arrival): void;
}

/** As Cilium derives it from a key: `cilium/state/nodes/v1/…` → `nodes/v1`. */
const scopeOf = (family: string): string => `${family}/v1`;

export function createMeshMetrics(ports: {
  readonly registry: Registry;
  readonly remotes: () => readonly RemoteState[];
  readonly progress: () => readonly FamilyProgress[];
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
        metric.set({ scope: scopeOf(family), source_cluster: peer, action: 'read' }, synced ? 1 : 0);
    },
  );
  gauge('cilium_kvstore_quorum_errors_total', 'Heartbeats that stayed away.', ['error'], (metric) =>
    metric.set(
      { error: 'heartbeat' },
      ports.remotes().reduce((sum, remote) => sum + remote.quorumErrors, 0),
    ),
  );
  const queue = new Histogram({
    name: 'cilium_kvstore_events_queue_seconds',
    help: 'Seconds that a received change waited before it was worked on.',
    labelNames: ['scope', 'action'],
    buckets: [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
    registers,
  });
  const endToEnd = new Histogram({
    name: 'clustermesh_agent_end_to_end_seconds',
    help: "Seconds from a change at its source to its being applied in this node's kernel, as the source's clock has it; identities: from receipt.",
    labelNames: ['cluster', 'family'],
    buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
    registers,
  });

  return {
    bootstrapped: (seconds) => bootstrap.set(seconds),
    taken(arrivals) {
      const now = ports.clock.nowMs();
      for (const { family, action, receivedMs } of arrivals)
        queue.observe({ scope: scopeOf(family), action }, (now - receivedMs) / 1000);
    },
    applied({ peer, family, changedMs }) {
      if (changedMs === undefined) return;
      // Clocks differ: a change from the future took no time.
      endToEnd.observe({ cluster: peer, family }, Math.max(0, ports.clock.wallMs() - changedMs) / 1000);
    },
  };
}
