/**
 * The one loop between what is desired and the kernel:
 *
 *   changes ─► desired.flush ─► tables ─► reconcilers (nodes, endpoints, ipcache, services) ─► kernel
 *                                              ▲ every minute: the kernel read whole, drift mended
 *
 * New nodes and addresses are there before a service names them. After each pass, the etcd revisions that were complete when it
 * began count as applied, family by family, unless a table they feed has rows in error.
 */
import { DEFAULT_WEIGHT, hostCidr, MeshError } from '@clustermesh/contract';
import { type Clock, type Log, type Runner, startRunner } from '@clustermesh/runtime';
import type { Backend, Datapath, EndpointRow, IpcacheRow, NodeRow, ServiceRow } from './datapath/types.ts';
import type { Desired } from './desired.ts';
import type { Programmed } from './endpoints/manager.ts';
import { endpointOps } from './endpoints/ops.ts';
import type { Arrival, FamilyProgress, MeshChanges } from './mesh/progress.ts';
import { type PolicyRow, type PolicyStateRow, samePolicyRow, samePolicyState } from './policy/types.ts';
import { createReconciler, type Reconciler } from './reconcile/reconciler.ts';
import { createTable, type Table } from './reconcile/table.ts';
import { sortBackends } from './services/merge.ts';

export interface Tables {
  readonly nodes: Table<NodeRow>;
  readonly endpoints: Table<EndpointRow>;
  readonly ipcache: Table<IpcacheRow>;
  readonly services: Table<ServiceRow>;
  readonly policies: Table<PolicyRow>;
  readonly policyStates: Table<PolicyStateRow>;
}
type TableName = keyof Tables;

/** In the order of a pass. */
export const TABLE_NAMES = [
  'policies',
  'policyStates',
  'nodes',
  'endpoints',
  'ipcache',
  'services',
] as const satisfies readonly TableName[];

/** Which tables a family's rows end in; the others are only held in memory. */
const TABLES_OF: Readonly<Record<string, readonly TableName[]>> = {
  services: ['services'],
  endpointslices: ['services'],
  nodes: ['nodes', 'ipcache'],
  ip: ['ipcache'],
  policies: ['policies', 'policyStates', 'ipcache'],
  namespaces: ['policies', 'policyStates'],
  identities: ['policies', 'policyStates'],
};

export interface SyncStats {
  readonly passes: number;
  /** Passes that ended early, by an error of the pass itself. */
  readonly failedPasses: number;
  readonly lastPassMs: number;
  readonly lastPassAtMs: number | undefined;
  readonly repairs: number;
  readonly failures: number;
  /** Rows that waited for the kernel when a pass began: now, and at most. */
  readonly queued: number;
  readonly mostQueued: number;
}

export interface Sync {
  readonly tables: Tables;
  trigger(): void;
  /** Resolves after a pass that began after this call and succeeded, which is not kept waiting, or when the loop was stopped. */
  passed(): Promise<void>;
  programmed(ip: string): Programmed;
  isRemoved(ip: string): boolean;
  /** Revisions whose rows are in the kernel, by `peer/family`. */
  applied(): ReadonlyMap<string, number>;
  stats(): SyncStats;
  /** Changes of peers taken and not in the kernel yet. */
  waiting(): readonly Arrival[];
  problems(): string[];
  readonly ended: Promise<void>;
}

export interface SyncOptions {
  readonly tables: Tables;
  readonly datapath: Datapath;
  readonly desired: Desired;
  /** What has been read from etcd since the call before. */
  readonly takeChanges: () => MeshChanges;
  /** Rows are taken into a pass. */
  readonly onTaken?: ((arrivals: readonly Arrival[]) => void) | undefined;
  /** The row that arrived is in the kernel. */
  readonly onApplied?: ((arrival: Arrival) => void) | undefined;
  readonly onPass: (result: { readonly checked: boolean }) => void;
  readonly minPassIntervalMs: number;
  readonly checkIntervalMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

const sameNode = (a: NodeRow, b: NodeRow): boolean =>
  a.ip === b.ip && a.clusterId === b.clusterId && a.nodeId === b.nodeId;

const sameEndpoint = (a: EndpointRow, b: EndpointRow): boolean =>
  a.ip === b.ip &&
  a.interface === b.interface &&
  a.podMac === b.podMac &&
  a.hostMac === b.hostMac &&
  a.identity === b.identity &&
  a.endpointId === b.endpointId;

const sameAddress = (a: IpcacheRow, b: IpcacheRow): boolean =>
  a.prefix === b.prefix &&
  a.identity === b.identity &&
  a.clusterId === b.clusterId &&
  a.tunnelEndpoint === b.tunnelEndpoint &&
  a.direct === b.direct &&
  a.route === b.route &&
  a.encryptKey === b.encryptKey;

const sameBackend = (a: Backend, b: Backend | undefined): boolean =>
  b !== undefined &&
  a.ip === b.ip &&
  a.port === b.port &&
  a.clusterId === b.clusterId &&
  (a.weight ?? DEFAULT_WEIGHT) === (b.weight ?? DEFAULT_WEIGHT);

const sameInOrder = (a: readonly Backend[], b: readonly Backend[]): boolean =>
  a.length === b.length && a.every((backend, i) => sameBackend(backend, b[i]));

/** The kernel may have them in another order. Rows of ten thousand are compared here: mostly they are equal as they stand. */
const sameBackends = (a: readonly Backend[], b: readonly Backend[]): boolean =>
  sameInOrder(a, b) || (a.length === b.length && sameInOrder(sortBackends(a), sortBackends(b)));

export function createTables(): Tables {
  return {
    policies: createTable({ name: 'policies', equal: samePolicyRow }),
    policyStates: createTable({ name: 'policy states', equal: samePolicyState }),
    nodes: createTable({ name: 'nodes', equal: sameNode }),
    endpoints: createTable({ name: 'endpoints', equal: sameEndpoint }),
    ipcache: createTable({ name: 'ipcache', equal: sameAddress }),
    services: createTable({
      name: 'services',
      equal: (a, b) =>
        a.flags === b.flags &&
        a.affinitySeconds === b.affinitySeconds &&
        sameBackends(a.backends, b.backends) &&
        sameBackends(a.draining ?? [], b.draining ?? []),
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
  const [nodes, ipcache, services, policies, policyStates, endpoints] = await Promise.all([
    datapath.nodes.list(),
    datapath.ipcache.list(),
    datapath.services.list(),
    datapath.policies.list(),
    datapath.policyStates.list(),
    datapath.endpoints.list(),
  ]);
  for (const [key, row] of nodes) tables.nodes.seed(key, row);
  for (const [key, row] of ipcache) tables.ipcache.seed(key, row);
  for (const [key, row] of services) tables.services.seed(key, row);
  for (const [key, row] of policies) tables.policies.seed(key, row);
  for (const [key, row] of policyStates) tables.policyStates.seed(key, row);
  const endpointIds = [...endpoints.values()].map(({ endpointId }) => endpointId);
  desired.restore({ nodes, ipcache, services, policies, policyStates, endpointIds });
}

export function startSync(options: SyncOptions): Sync {
  const { tables, desired, clock, log } = options;
  const reconcilers: Readonly<Record<TableName, Reconciler>> = {
    policies: createReconciler({ table: tables.policies, ops: options.datapath.policies, clock }),
    policyStates: createReconciler({ table: tables.policyStates, ops: options.datapath.policyStates, clock }),
    nodes: createReconciler({ table: tables.nodes, ops: options.datapath.nodes, clock }),
    endpoints: createReconciler({ table: tables.endpoints, ops: endpointOps(options.datapath), clock }),
    ipcache: createReconciler({ table: tables.ipcache, ops: options.datapath.ipcache, clock }),
    services: createReconciler({ table: tables.services, ops: options.datapath.services, clock }),
  };
  let areProgramsAttached = false;
  options.datapath.attached.then(
    () => {
      areProgramsAttached = true;
      runner.trigger();
    },
    () => {}, // Whoever opened the datapath ends this agent.
  );
  const applied = new Map<string, number>();
  /** Families that changed, and rows that arrived: they count as applied once no table that they feed has an error. */
  const due = new Map<string, FamilyProgress>();
  let arrivals: Arrival[] = [];
  /** Clusters that left: let go when their rows are, not before. */
  const leaving = new Set<string>();
  let queued = 0;
  let mostQueued = 0;
  /** The first pass compares too. */
  let checkedAt = Number.NEGATIVE_INFINITY;
  let retryAt: number | undefined;
  let passes = 0;
  let failedPasses = 0;
  let lastPassMs = 0;
  let lastPassAtMs: number | undefined;
  let repairs = 0;
  let failures = 0;

  /** Tables that cannot be compared while they are written, as part of a pass. */
  async function check(): Promise<boolean> {
    if (clock.nowMs() - checkedAt < options.checkIntervalMs) return false;
    const isFirst = checkedAt === Number.NEGATIVE_INFINITY;
    for (const name of TABLE_NAMES) if (!reconcilers[name].isScanned) await checkTable(name, isFirst);
    checkedAt = clock.nowMs();
    return true;
  }

  async function checkTable(name: TableName, isFirst: boolean): Promise<number> {
    const differences = await reconcilers[name].check();
    if (differences === 0) return 0;
    if (!isFirst) repairs += differences;
    log.info(
      { table: name, rows: differences },
      isFirst ? 'rows differ from what the kernel held' : 'kernel had drifted: mending',
    );
    return differences;
  }

  /** The large tables, slice by slice beside the passes. What the start took over need not be read again at once. */
  const checker = startRunner({
    async run() {
      let differences = 0;
      for (const name of TABLE_NAMES) {
        if (reconcilers[name].isScanned) differences += await checkTable(name, false);
      }
      if (differences > 0) runner.trigger();
    },
    minIntervalMs: 0,
    retryMs: 1_000,
    maxIntervalMs: options.checkIntervalMs,
    onError: (error) => log.error({ err: error }, 'the kernel tables could not be read; trying again'),
    signal: options.signal,
    clock,
  });

  async function passOver(name: TableName, part: 'all' | 'updates' | 'removes' = 'all'): Promise<void> {
    const result = await reconcilers[name].pass(part);
    failures += result.failed;
    if (result.failed > 0)
      log.warn(
        { table: name, failed: result.failed, example: tables[name].errors()[0]?.error.message },
        'rows could not be programmed; trying again',
      );
    else if (result.updated + result.removed > 0)
      log.debug({ table: name, updated: result.updated, removed: result.removed }, 'rows programmed');
  }

  /** Endpoints of which the kernel does not have all that is denied. */
  function failedDenials(): ReadonlySet<number> {
    const rows = tables.policies.errors().map(({ key }) => tables.policies.get(key)?.desired);
    return new Set(rows.flatMap((row) => (row?.deny === true ? [row.endpointId] : [])));
  }

  async function pass(): Promise<void> {
    const startedAt = clock.nowMs();
    take(options.takeChanges());
    desired.flush(tables);
    queued = TABLE_NAMES.reduce((sum, name) => sum + tables[name].counts().pending, 0);
    mostQueued = Math.max(mostQueued, queued);
    const checked = await check();
    for (const name of TABLE_NAMES) {
      // Attaching waits for the verifier, the other tables need not.
      if (name === 'endpoints' && !areProgramsAttached) continue;
      // Rules that come are there before they count, and rules that go stay until nothing leads to them.
      await passOver(name, name === 'policies' ? 'updates' : 'all');
      if (name === 'policies') desired.policyRowsFailed(failedDenials(), tables.policyStates);
    }
    await passOver('policies', 'removes');
    desired.policyRowsRemoved(tables.policyStates);
    await passOver('policyStates');
    settleApplied();
    passes++;
    lastPassMs = clock.nowMs() - startedAt;
    lastPassAtMs = clock.nowMs();
    scheduleRetry();
    options.onPass({ checked });
  }

  function take(changes: MeshChanges): void {
    for (const key of changes.left) {
      leaving.add(key);
      due.delete(key);
    }
    for (const family of changes.families) {
      const key = `${family.peer}/${family.family}`;
      leaving.delete(key);
      due.set(key, family);
    }
    if (changes.arrivals.length > 0) options.onTaken?.(changes.arrivals);
    arrivals = arrivals.length === 0 ? [...changes.arrivals] : arrivals.concat(changes.arrivals);
  }

  /** What was complete when the pass began is in the kernel now, but for families whose tables have rows in error. */
  function settleApplied(): void {
    const hasError = new Map(TABLE_NAMES.map((name) => [name, tables[name].counts().error > 0]));
    const isClean = (family: string) => (TABLES_OF[family] ?? []).every((name) => hasError.get(name) === false);
    for (const [key, { family, synced, current, revision }] of due) {
      if (!current) applied.delete(key);
      else if (!isClean(family)) continue;
      else if (synced) applied.set(key, revision);
      due.delete(key);
    }
    for (const arrival of arrivals) if (isClean(arrival.family)) options.onApplied?.(arrival);
    arrivals = [];
    if (leaving.size === 0 || [...hasError.values()].includes(true)) return;
    for (const key of leaving) applied.delete(key);
    leaving.clear();
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
      failedPasses++;
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
    passed() {
      const passed = runner.settled();
      runner.hurry();
      return passed;
    },
    programmed(ip) {
      const endpoint = statusOf(tables.endpoints, ip);
      return endpoint === 'done' ? statusOf(tables.ipcache, hostCidr(ip)) : endpoint;
    },
    isRemoved: (ip) => tables.endpoints.get(ip) === undefined || tables.endpoints.get(ip)?.desired !== undefined,
    applied: () => applied,
    waiting: () => arrivals,
    stats: () => ({ passes, failedPasses, lastPassMs, lastPassAtMs, repairs, failures, queued, mostQueued }),
    problems() {
      return TABLE_NAMES.flatMap((name) => {
        const errors = tables[name].errors();
        if (errors.length === 0) return [];
        return [
          `${errors.length} rows of ${name} are not in the kernel; e.g. ${errors[0]?.key}: ${errors[0]?.error.message}`,
        ];
      });
    },
    ended: Promise.all([runner.ended, checker.ended]).then(() => undefined),
  };
}
