/**
 * The one loop between what is desired and the kernel:
 *
 *   changes ─► desired.flush ─► tables ─► reconcilers (nodes, endpoints, ipcache, services) ─► kernel
 *                                              ▲ every minute: the kernel read whole, drift mended
 *
 * New nodes and addresses are there before a service names them. After each pass, the etcd revisions that were complete when it
 * began count as applied, family by family, unless a table they feed has rows in error.
 */
import { MeshError } from '@clustermesh/contract';
import { type Clock, type Log, type Runner, startRunner } from '@clustermesh/runtime';
import type { Datapath, EndpointRow, IpcacheRow, NodeRow, ServiceRow } from './datapath/types.ts';
import type { Desired } from './desired.ts';
import type { Programmed } from './endpoints/manager.ts';
import { endpointOps } from './endpoints/ops.ts';
import type { FamilyProgress } from './mesh/mesh.ts';
import { createReconciler, type Reconciler } from './reconcile/reconciler.ts';
import { createTable, type Table } from './reconcile/table.ts';
import { sortBackends } from './services/merge.ts';

export interface Tables {
  readonly nodes: Table<NodeRow>;
  readonly endpoints: Table<EndpointRow>;
  readonly ipcache: Table<IpcacheRow>;
  readonly services: Table<ServiceRow>;
}
type TableName = keyof Tables;

/** In the order of a pass. */
export const TABLE_NAMES = ['nodes', 'endpoints', 'ipcache', 'services'] as const satisfies readonly TableName[];

/** Which tables a family's rows end in; the others are only held in memory. */
const TABLES_OF: Readonly<Record<string, readonly TableName[]>> = {
  services: ['services'],
  endpointslices: ['services'],
  nodes: ['nodes', 'ipcache'],
  ip: ['ipcache'],
};

export interface SyncStats {
  readonly passes: number;
  readonly lastPassMs: number;
  readonly lastPassAtMs: number | undefined;
  readonly repairs: number;
  readonly failures: number;
}

export interface Sync {
  readonly tables: Tables;
  trigger(): void;
  programmed(ipv4: string): Programmed;
  isRemoved(ipv4: string): boolean;
  /** Revisions whose rows are in the kernel, by `peer/family`. */
  applied(): ReadonlyMap<string, number>;
  stats(): SyncStats;
  problems(): string[];
  readonly ended: Promise<void>;
}

export interface SyncOptions {
  readonly tables: Tables;
  readonly datapath: Datapath;
  readonly desired: Desired;
  /** What has been read from etcd, at the moment of the call. */
  readonly progress: () => readonly FamilyProgress[];
  readonly onPass: (result: { readonly checked: boolean }) => void;
  readonly minPassIntervalMs: number;
  readonly checkIntervalMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

const sameFields = <Row extends object>(a: Row, b: Row): boolean =>
  Object.entries(a).every(([field, value]) => (b as Record<string, unknown>)[field] === value);

const backendsText = (row: ServiceRow): string =>
  JSON.stringify(sortBackends(row.backends).map(({ ip, port, clusterId }) => [ip, port, clusterId]));

export function createTables(): Tables {
  return {
    nodes: createTable({ name: 'nodes', equal: sameFields }),
    endpoints: createTable({ name: 'endpoints', equal: sameFields }),
    ipcache: createTable({ name: 'ipcache', equal: sameFields }),
    services: createTable({
      name: 'services',
      equal: (a, b) => a.flags === b.flags && backendsText(a) === backendsText(b),
    }),
  };
}

/**
 * Takes over what the kernel holds: rows become done rows of the tables and restored rows of the projections. Endpoints are not
 * taken over as done: their programs are put in place again (which also upgrades them).
 */
export async function takeOver(options: {
  readonly tables: Tables;
  readonly datapath: Datapath;
  readonly desired: Desired;
}): Promise<void> {
  const { tables, datapath, desired } = options;
  const [nodes, ipcache, services] = await Promise.all([
    datapath.nodes.list(),
    datapath.ipcache.list(),
    datapath.services.list(),
  ]);
  for (const [key, row] of nodes) tables.nodes.seed(key, row);
  for (const [key, row] of ipcache) tables.ipcache.seed(key, row);
  for (const [key, row] of services) tables.services.seed(key, row);
  desired.restore({ nodes, ipcache, services });
}

export function startSync(options: SyncOptions): Sync {
  const { tables, desired, clock, log } = options;
  const reconcilers: Readonly<Record<TableName, Reconciler>> = {
    nodes: createReconciler({ table: tables.nodes, ops: options.datapath.nodes, clock }),
    endpoints: createReconciler({ table: tables.endpoints, ops: endpointOps(options.datapath), clock }),
    ipcache: createReconciler({ table: tables.ipcache, ops: options.datapath.ipcache, clock }),
    services: createReconciler({ table: tables.services, ops: options.datapath.services, clock }),
  };
  let applied = new Map<string, number>();
  /** The first pass compares too. */
  let checkedAt = Number.NEGATIVE_INFINITY;
  let retryAt: number | undefined;
  let passes = 0;
  let lastPassMs = 0;
  let lastPassAtMs: number | undefined;
  let repairs = 0;
  let failures = 0;

  async function check(): Promise<boolean> {
    if (clock.nowMs() - checkedAt < options.checkIntervalMs) return false;
    const isFirst = checkedAt === Number.NEGATIVE_INFINITY;
    for (const name of TABLE_NAMES) {
      const differences = await reconcilers[name].check();
      if (differences === 0) continue;
      if (!isFirst) repairs += differences;
      log.info(
        { table: name, rows: differences },
        isFirst ? 'rows differ from what the kernel held' : 'kernel had drifted: mending',
      );
    }
    checkedAt = clock.nowMs();
    return true;
  }

  async function pass(): Promise<void> {
    const startedAt = clock.nowMs();
    const before = options.progress();
    desired.flush(tables);
    const checked = await check();
    for (const name of TABLE_NAMES) {
      const result = await reconcilers[name].pass();
      failures += result.failed;
      if (result.failed > 0)
        log.warn(
          { table: name, failed: result.failed, example: tables[name].errors()[0]?.error.message },
          'rows could not be programmed; trying again',
        );
      else if (result.updated + result.removed > 0)
        log.debug({ table: name, updated: result.updated, removed: result.removed }, 'rows programmed');
    }
    const next = new Map<string, number>();
    for (const { peer, family, synced, current, revision } of before) {
      const key = `${peer}/${family}`;
      const held = applied.get(key);
      const isClean = (TABLES_OF[family] ?? []).every((name) => tables[name].counts().error === 0);
      if (synced && current && isClean) next.set(key, revision);
      else if (current && held !== undefined) next.set(key, held);
    }
    // A cluster that left counts as let go when its rows are, not before.
    const known = new Set(before.map(({ peer }) => peer));
    const hasErrors = TABLE_NAMES.some((name) => tables[name].counts().error > 0);
    for (const [key, revision] of applied) {
      if (hasErrors && !known.has(key.slice(0, key.indexOf('/')))) next.set(key, revision);
    }
    applied = next;
    passes++;
    lastPassMs = clock.nowMs() - startedAt;
    lastPassAtMs = clock.nowMs();
    scheduleRetry();
    options.onPass({ checked });
  }

  /** Not the runner's own retry: that one would hold up the rows that are well. */
  function scheduleRetry(): void {
    const due = TABLE_NAMES.map((name) => tables[name].nextRetryAtMs()).filter((at) => at !== undefined);
    if (due.length === 0) return;
    const at = Math.min(...due);
    if (retryAt !== undefined && retryAt <= at && retryAt > clock.nowMs()) return;
    retryAt = at;
    void clock.sleep(Math.max(1, at - clock.nowMs()), options.signal).then(() => {
      if (retryAt === at) retryAt = undefined;
      if (!options.signal.aborted) runner.trigger();
    });
  }

  const runner: Runner = startRunner({
    run: pass,
    minIntervalMs: options.minPassIntervalMs,
    retryMs: 100,
    maxIntervalMs: options.checkIntervalMs,
    onError: (error) => {
      failures++;
      log.error({ err: error }, 'a pass over the kernel tables failed; trying again');
    },
    signal: options.signal,
    clock,
  });

  const statusOf = <Row>(table: Table<Row>, key: string): Programmed => {
    const row = table.get(key);
    if (row === undefined || row.desired === undefined || row.status === 'pending') return 'pending';
    if (row.status === 'done') return 'done';
    return row.error ?? new MeshError({ code: 'kernel', message: `programming ${key} in ${table.name} failed` });
  };

  return {
    tables,
    trigger: runner.trigger,
    programmed(ipv4) {
      const endpoint = statusOf(tables.endpoints, ipv4);
      return endpoint === 'done' ? statusOf(tables.ipcache, `${ipv4}/32`) : endpoint;
    },
    isRemoved: (ipv4) => tables.endpoints.get(ipv4) === undefined || tables.endpoints.get(ipv4)?.desired !== undefined,
    applied: () => applied,
    stats: () => ({ passes, lastPassMs, lastPassAtMs, repairs, failures }),
    problems() {
      return TABLE_NAMES.flatMap((name) => {
        const errors = tables[name].errors();
        if (errors.length === 0) return [];
        return [
          `${errors.length} rows of ${name} are not in the kernel; e.g. ${errors[0]?.key}: ${errors[0]?.error.message}`,
        ];
      });
    },
    ended: runner.ended,
  };
}
