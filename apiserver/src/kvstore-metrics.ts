/** Counted and timed as it happens, under Cilium's names (wire-contract §4.5); metrics.ts reads the rest from the views. */
import { type Observe, scopeOf } from '@clustermesh/kvstore';
import { Counter, Histogram, type Registry } from 'prom-client';

export interface KvstoreMetrics {
  readonly observe: Observe;
  /** An event of a peer waited this long until it was in this cluster's etcd. */
  event(scope: string, action: string, seconds: number): void;
  /** An etcd that had answered does not any more. */
  lost(error: string): void;
  /** A pass of a control loop has ended. `group`: Cilium's name of its controller, where it has one like it. */
  ran(group: string, ok: boolean): void;
}

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** `prefix` is `cilium_clustermesh_apiserver_` for this cluster's own data, `cilium_kvstoremesh_` for the mirror. */
export function createKvstoreMetrics(prefix: string, registry: Registry): KvstoreMetrics {
  const registers = [registry];
  const operations = new Histogram({
    name: `${prefix}kvstore_operations_duration_seconds`,
    help: 'Duration of requests to etcd',
    labelNames: ['scope', 'kind', 'action', 'outcome'],
    buckets: SECONDS,
    registers,
  });
  const events = new Histogram({
    name: `${prefix}kvstore_events_queue_seconds`,
    help: 'Time from the receipt of an event to its being in etcd',
    labelNames: ['scope', 'action'],
    buckets: SECONDS,
    registers,
  });
  const quorum = new Counter({
    name: `${prefix}kvstore_quorum_errors_total`,
    help: 'Times that an etcd stopped answering, or its heartbeat fell silent',
    labelNames: ['error'],
    registers,
  });
  const runs = new Counter({
    name: `${prefix}controllers_group_runs_total`,
    help: 'Passes of the control loops',
    labelNames: ['group_name', 'status'],
    registers,
  });
  return {
    observe: ({ key, kind, action, seconds, ok }) =>
      operations.observe({ scope: scopeOf(key), kind, action, outcome: ok ? 'success' : 'fail' }, seconds),
    event: (scope, action, seconds) => events.observe({ scope, action }, seconds),
    lost: (error) => quorum.inc({ error }),
    ran: (group, ok) => runs.inc({ group_name: group, status: ok ? 'success' : 'failure' }),
  };
}

/** The same pass, counted. */
export function countRuns(
  metrics: Pick<KvstoreMetrics, 'ran'> | undefined,
  group: string,
  run: () => Promise<void>,
): () => Promise<void> {
  if (metrics === undefined) return run;
  return async () => {
    let ok = false;
    try {
      await run();
      ok = true;
    } finally {
      metrics.ran(group, ok);
    }
  };
}
