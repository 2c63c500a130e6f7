/** The agent's metrics, read from its state when they are scraped. */
import { Gauge, type Registry } from 'prom-client';
import type { DestroyedSockets } from '../datapath/types.ts';
import type { FlowStats } from '../flow/monitor.ts';
import type { FamilyProgress } from '../mesh/progress.ts';
import { type Sync, TABLE_NAMES } from '../sync.ts';

export function createMetrics(ports: {
  readonly registry: Registry;
  readonly sync: Sync;
  readonly progress: () => readonly FamilyProgress[];
  readonly nowMs: () => number;
  readonly restoredCount: () => number;
  readonly outgrownServices: () => ReadonlyMap<string, readonly string[]>;
  readonly endpoints: () => readonly { readonly state: string }[];
  readonly isEtcdConnected: () => boolean;
  readonly flows: () => FlowStats;
  readonly destroyedSockets: () => DestroyedSockets;
}): Registry {
  const { registry } = ports;
  const gauge = (name: string, help: string, labelNames: readonly string[], collect: (gauge: Gauge) => void) => {
    new Gauge({
      name: `clustermesh_agent_${name}`,
      help,
      labelNames,
      registers: [registry],
      collect() {
        this.reset();
        collect(this);
      },
    });
  };

  gauge('table_rows', 'Desired rows by kernel table and status.', ['table', 'status'], (metric) => {
    for (const table of TABLE_NAMES) {
      for (const [status, count] of Object.entries(ports.sync.tables[table].counts()))
        metric.set({ table, status }, count);
    }
  });
  gauge('restored_rows', 'Rows kept from before the start because their source has not spoken yet.', [], (metric) =>
    metric.set(ports.restoredCount()),
  );
  gauge(
    'services_outgrown',
    'Services of a peer whose backends here are of an older version, because one etcd value cannot hold the present ones.',
    ['cluster'],
    (metric) => {
      for (const [cluster, names] of ports.outgrownServices()) metric.set({ cluster }, names.length);
    },
  );
  gauge('pass_duration_seconds', 'Duration of the last pass over the kernel tables.', [], (metric) =>
    metric.set(ports.sync.stats().lastPassMs / 1000),
  );
  gauge('queued_rows', 'Rows that waited for the kernel when the last pass began.', [], (metric) =>
    metric.set(ports.sync.stats().queued),
  );
  gauge('queued_rows_most', 'The most rows that ever waited for the kernel when a pass began.', [], (metric) =>
    metric.set(ports.sync.stats().mostQueued),
  );
  gauge('passes_total', 'Passes over the kernel tables.', [], (metric) => metric.set(ports.sync.stats().passes));
  gauge('row_failures_total', 'Rows that the kernel refused, each try counted.', [], (metric) =>
    metric.set(ports.sync.stats().failures),
  );
  gauge('repairs_total', 'Rows found different in the kernel although nobody asked for it.', [], (metric) =>
    metric.set(ports.sync.stats().repairs),
  );
  gauge('endpoints', 'Endpoints of this node by state.', ['state'], (metric) => {
    for (const endpoint of ports.endpoints()) metric.inc({ state: endpoint.state });
  });
  gauge('etcd_connected', '1 while the local etcd answers.', [], (metric) =>
    metric.set(ports.isEtcdConnected() ? 1 : 0),
  );
  gauge('flow_events_total', 'Flow events that the kernel showed.', [], (metric) => metric.set(ports.flows().sent));
  gauge('flow_events_lost_total', 'Flow events over the rate, or that found no room in the ring.', [], (metric) =>
    metric.set(ports.flows().lost),
  );
  gauge(
    'sockets_destroyed_total',
    'Sockets that were ended because their service had let their backend go.',
    ['protocol'],
    (metric) => {
      const { tcp, udp } = ports.destroyedSockets();
      metric.set({ protocol: 'TCP' }, tcp);
      metric.set({ protocol: 'UDP' }, udp);
    },
  );
  gauge('socket_passes_total', 'Passes over the sockets of this node.', ['status'], (metric) => {
    const { passes, failedPasses } = ports.destroyedSockets();
    metric.set({ status: 'completed' }, passes);
    metric.set({ status: 'uncompleted' }, failedPasses);
  });
  gauge('socket_pass_duration_seconds', 'Duration of the last pass over the sockets of this node.', [], (metric) =>
    metric.set(ports.destroyedSockets().lastPassMs / 1000),
  );
  gauge('family_rows', 'Rows per cluster and family.', ['cluster', 'family'], (metric) => {
    for (const { peer, family, count } of ports.progress()) metric.set({ cluster: peer, family }, count);
  });
  gauge(
    'family_synced',
    '1 once a cluster has been heard out in this family since the start.',
    ['cluster', 'family'],
    (metric) => {
      for (const { peer, family, synced } of ports.progress()) metric.set({ cluster: peer, family }, synced ? 1 : 0);
    },
  );
  gauge('family_quarantined', 'Objects that were refused, per cluster and family.', ['cluster', 'family'], (metric) => {
    for (const { peer, family, quarantined } of ports.progress()) metric.set({ cluster: peer, family }, quarantined);
  });
  gauge(
    'family_age_seconds',
    'Seconds since the etcd that a family is read from last showed on its watch that it lives.',
    ['cluster', 'family'],
    (metric) => {
      for (const { peer, family, lastProofMs } of ports.progress())
        if (lastProofMs !== undefined) metric.set({ cluster: peer, family }, (ports.nowMs() - lastProofMs) / 1000);
    },
  );
  gauge(
    'family_applied_revision',
    'etcd revision up to which a family is in the kernel.',
    ['cluster', 'family'],
    (metric) => {
      for (const { peer, family } of ports.progress()) {
        const revision = ports.sync.applied().get(`${peer}/${family}`);
        if (revision !== undefined) metric.set({ cluster: peer, family }, revision);
      }
    },
  );
  return registry;
}
