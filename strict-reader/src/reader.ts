/**
 * A remote reader's session, in Cilium's order (wire-contract §5.2): heartbeat listed → cluster config → canaries → one watcher per
 * family, each begun when its canary is seen. What it holds are rows that passed every check; what did not is in the report.
 */
import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { status as grpcStatus } from '@grpc/grpc-js';
import { ClusterChanged, type ConnectOptions, connect, type EtcdClient, type KeyValue } from './client.ts';
import { type AcceptedConfig, acceptConfig } from './cluster-config.ts';
import { follow, list, messageOf } from './follow.ts';
import { createReport, type FamilyReport, type Report, type ReportData } from './report.ts';
import { FAMILIES, type Peer, timeProblems, valueProblems } from './values.ts';

export interface ReaderOptions extends ConnectOptions {
  readonly cluster: string;
  readonly layout: 'state' | 'cache';
  /** How long to go on after everything has been listed. */
  readonly followMs: number;
  /** The reader's own cluster, which a peer must not have the id of. */
  readonly ownId?: number | undefined;
  readonly maxConnectedClusters?: 255 | 511 | undefined;
  /** Bound of connecting and of the first list (default 15 s). */
  readonly connectTimeoutMs?: number | undefined;
  /** Cilium asks for the config for 3 minutes. */
  readonly configTimeoutMs?: number | undefined;
  /** Cilium's agents wait for a minute until they go on without a cluster. */
  readonly syncTimeoutMs?: number | undefined;
  /** Cilium restarts a connection after two intervals of a minute without a heartbeat. */
  readonly heartbeatLimitMs?: number | undefined;
  /** The source has not changed since it was started: nothing may be newer than its canary, and nothing may have gone since. */
  readonly isUnchanging?: boolean | undefined;
  /** A newer writer's fields are no violation (a mirror forwards them). */
  readonly allowUnknownFields?: boolean | undefined;
  /** Called when everything has been listed, in every session. */
  readonly onSynced?: (() => void) | undefined;
  /** Ends the following early. */
  readonly signal?: AbortSignal | undefined;
}

interface Rows {
  /** Key → mod_revision of everything that is there, accepted or not. */
  readonly known: Map<string, number>;
  /** Keys whose latest good value is held. */
  readonly held: Set<string>;
  /** Keys whose latest value was refused. */
  readonly refused: Set<string>;
  isListed: boolean;
  /** May not be read: waiting for it is of no use. */
  isDenied: boolean;
}

const HEARTBEAT = 'cilium/.heartbeat';

/**
 * Reads until `followMs` after everything was listed, or until it is clear that a reader could not; resolves to what was found.
 * `report` can be looked at meanwhile.
 */
export async function readStrictly(options: ReaderOptions, report = createReport(options)): Promise<ReportData> {
  const client = connect(options, report);
  const stop = new AbortController();
  const rows = new Map<string, Rows>();
  const session: Session = { options, client, report, rows, config: undefined, lastHeartbeatAt: performance.now() };
  try {
    const running = runSessions(session, stop.signal);
    // A reader that cannot go on (nothing to connect to, a config that it refuses) ends before its time.
    await Promise.race([running, followUntilDone(session, stop.signal)]);
    if (session.config !== undefined) await finalChecks(session, session.config);
    stop.abort();
    await running;
  } finally {
    stop.abort();
    client.close();
  }
  return report.data;
}

interface Session {
  readonly options: ReaderOptions;
  readonly client: EtcdClient;
  readonly report: Report;
  /** By family; survives sessions. */
  readonly rows: Map<string, Rows>;
  config: AcceptedConfig | undefined;
  lastHeartbeatAt: number;
}

/** One session after the other, as often as another etcd answers. Resolves when a reader would give up. */
async function runSessions(session: Session, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const stop = new AbortController();
    const both = AbortSignal.any([signal, stop.signal]);
    setMaxListeners(0, both); // every watcher of the session waits for its end
    for (const [family, rows] of session.rows) {
      rows.isListed = false;
      session.report.family(family).synced = false;
    }
    const goesOn = await runSession(session, both).finally(() => stop.abort());
    if (!goesOn) return;
  }
}

/** True: begin again. */
async function runSession(session: Session, signal: AbortSignal): Promise<boolean> {
  const { client, report, options } = session;
  /** Rejects with ClusterChanged; resolves when none of the watchers goes on. */
  const watchers: Promise<void>[] = [];
  let changed: (error: unknown) => void = () => {};
  const ended = new Promise<never>((_, reject) => {
    changed = reject;
  });
  ended.catch(() => {});
  const start = (watcher: Promise<void>) => void watchers.push(watcher.catch(changed));
  try {
    await Promise.race([ended, listHeartbeat(session, start, signal)]);
    if (signal.aborted) return false;
    const config = await Promise.race([ended, readConfig(session, signal)]);
    if (config === undefined) return false;
    session.config = config;
    for (const name of Object.keys(FAMILIES)) report.family(name).expected = config.families.includes(name);
    if (config.hasCanaries) start(followCanaries(session, config, start, signal));
    else for (const family of config.families) start(followFamily(session, config, family, signal));
    await Promise.race([ended, untilAborted(signal)]);
    return false;
  } catch (error) {
    if (error instanceof ClusterChanged) return !signal.aborted;
    report.violation('timeout', options.endpoint, messageOf(error));
    return false;
  } finally {
    if (client.clusterId !== undefined) report.data.etcdClusterId = client.clusterId;
  }
}

const untilAborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) return resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

/** The first step of a connection: "list done" is connected, even if there is no heartbeat yet. The prefix has no slash at its end. */
async function listHeartbeat(
  session: Session,
  start: (watcher: Promise<void>) => void,
  signal: AbortSignal,
): Promise<void> {
  const { client, report, options } = session;
  const limitMs = options.connectTimeoutMs ?? 15_000;
  const listed = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => {
      const last = report.data.restarts.at(-1)?.reason ?? 'no answer';
      reject(new Error(`the heartbeat could not be listed within ${limitMs} ms: ${last}`));
    }, limitMs);
    signal.addEventListener('abort', () => clearTimeout(timer), { once: true });
    const watcher = follow({
      ...{ client, report, signal, prefix: HEARTBEAT, known: new Map<string, number>() },
      onUpsert: (kv) => {
        // When it was received, not what it says.
        session.lastHeartbeatAt = performance.now();
        report.data.heartbeat.events++;
        for (const problem of timeProblems(kv.value)) report.violation('value', kv.key, problem, kv.modRevision);
      },
      onDelete: () => {},
      onListed: () => {
        clearTimeout(timer);
        resolve();
      },
    });
    start(
      watcher.then(() => {
        clearTimeout(timer);
        reject(new Error('the heartbeat may not be read'));
      }),
    );
  });
  await Promise.race([listed, untilAborted(signal)]);
}

async function readConfig(session: Session, signal: AbortSignal): Promise<AcceptedConfig | undefined> {
  const { client, report, options } = session;
  const key = `cilium/cluster-config/${options.cluster}`;
  const deadline = performance.now() + (options.configTimeoutMs ?? 180_000);
  let retryMs = 100;
  let reason = '';
  while (!signal.aborted) {
    try {
      const kv = (await client.range({ key })).kvs[0];
      if (kv !== undefined) return checkConfig(session, kv);
      reason = 'is missing';
    } catch (error) {
      if (error instanceof ClusterChanged) throw error;
      reason = messageOf(error);
      if (isDenied(error)) {
        report.violation('permission', key, `may not be read: ${reason}`);
        return undefined;
      }
    }
    if (performance.now() + retryMs > deadline) break;
    await sleep(retryMs, undefined, { signal }).catch(() => {});
    retryMs = Math.min(retryMs * 2, 30_000);
  }
  if (!signal.aborted) report.violation('config', key, reason);
  return undefined;
}

const isDenied = (error: unknown) =>
  error instanceof Error && 'code' in error && error.code === grpcStatus.PERMISSION_DENIED;

function checkConfig(session: Session, kv: KeyValue): AcceptedConfig | undefined {
  const { report, options } = session;
  const problems: string[] = [];
  const accepted = acceptConfig(
    kv.value,
    {
      layout: options.layout,
      ownId: options.ownId,
      maxConnectedClusters: options.maxConnectedClusters ?? 255,
      allowUnknownFields: options.allowUnknownFields ?? false,
    },
    problems,
  );
  for (const problem of problems) report.violation('config', kv.key, problem, kv.modRevision);
  if (accepted !== undefined) report.data.config = JSON.parse(kv.value.toString('utf8'));
  return accepted;
}

/** A family is begun when its canary is first seen; that a canary goes away again means nothing. */
function followCanaries(
  session: Session,
  config: AcceptedConfig,
  start: (watcher: Promise<void>) => void,
  signal: AbortSignal,
): Promise<void> {
  const { client, report, options } = session;
  const prefix = `cilium/synced/${options.cluster}/`;
  const started = new Set<string>();
  return follow({
    ...{ client, report, signal, prefix, known: new Map<string, number>() },
    onUpsert(kv) {
      for (const problem of timeProblems(kv.value)) report.violation('value', kv.key, problem, kv.modRevision);
      const match = /^cilium\/(state|cache)\/([a-z]+)\/v1$/.exec(kv.key.slice(prefix.length));
      const [, layout, family = ''] = match ?? [];
      if (layout !== options.layout || !Object.hasOwn(FAMILIES, family)) {
        report.violation('canary', kv.key, `names no prefix of the ${options.layout} layout`, kv.modRevision);
        return;
      }
      report.family(family).canaryRevision = kv.createRevision;
      // A canary of a family that the config does not promise is nothing to a reader.
      if (started.has(family) || !config.families.includes(family)) return;
      started.add(family);
      start(followFamily(session, config, family, signal));
    },
    onDelete: () => {},
    onListed: () => {},
  });
}

function followFamily(session: Session, config: AcceptedConfig, family: string, signal: AbortSignal): Promise<void> {
  const { client, report, options } = session;
  const rows: Rows = session.rows.get(family) ?? {
    ...{ known: new Map(), held: new Set(), refused: new Set(), isListed: false, isDenied: false },
  };
  session.rows.set(family, rows);
  const counters: FamilyReport = report.family(family);
  const peer: Peer = {
    cluster: options.cluster,
    id: config.id,
    maxConnectedClusters: options.maxConnectedClusters ?? 255,
    allowUnknownFields: options.allowUnknownFields ?? false,
  };
  const prefix = prefixOf(session, family);
  const count = () => {
    counters.synced = rows.isListed;
    counters.count = rows.held.size;
    counters.refused = rows.refused.size;
  };
  return follow({
    ...{ client, report, signal, prefix, known: rows.known },
    onPage: () => counters.pages++,
    onUpsert(kv) {
      counters.upserts++;
      const problems = valueProblems(family, kv.key.slice(prefix.length), kv.value, peer);
      for (const problem of problems) report.violation('value', kv.key, problem, kv.modRevision);
      if (problems.length > 0) rows.refused.add(kv.key);
      else {
        rows.refused.delete(kv.key);
        rows.held.add(kv.key);
      }
      count();
    },
    onDelete(key, from) {
      if (from === 'watch') counters.deletes++;
      else counters.synthesisedDeletes++;
      rows.held.delete(key);
      rows.refused.delete(key);
      count();
    },
    onListed(revision) {
      const isNews = !rows.isListed;
      rows.isListed = true;
      count();
      if (isNews && missing(session)?.length === 0) options.onSynced?.();
      report.data.revision = Math.max(report.data.revision, revision);
    },
  }).then(() => {
    rows.isDenied = !signal.aborted;
  });
}

const prefixOf = ({ options }: Session, family: string) =>
  FAMILIES[family]?.prefix[options.layout](options.cluster) ?? '';

const missing = (session: Session) =>
  session.config?.families.filter((family) => {
    const rows = session.rows.get(family);
    return rows === undefined || !(rows.isListed || rows.isDenied);
  });

/** Waits for every family, then for `followMs`, then for every family again (it may have begun anew meanwhile). */
async function followUntilDone(session: Session, signal: AbortSignal): Promise<void> {
  const { options, report } = session;
  const end = AbortSignal.any([signal, ...(options.signal === undefined ? [] : [options.signal])]);
  const watched = async (ms: number, until: () => boolean) => {
    const deadline = performance.now() + ms;
    while (!end.aborted && !until() && performance.now() < deadline) {
      checkHeartbeat(session);
      await sleep(Math.min(20, Math.max(1, deadline - performance.now())), undefined, { signal: end }).catch(() => {});
    }
  };
  // The time for the families begins with the config; until then the other bounds hold.
  await watched(Number.POSITIVE_INFINITY, () => session.config !== undefined);
  const syncTimeoutMs = options.syncTimeoutMs ?? 60_000;
  const allListed = () => missing(session)?.length === 0;
  await watched(syncTimeoutMs, allListed);
  await watched(options.followMs, () => false);
  await watched(syncTimeoutMs, allListed);
  for (const family of signal.aborted ? [] : (missing(session) ?? [])) {
    const canary = report.family(family).canaryRevision === null && session.config?.hasCanaries;
    report.violation(
      'timeout',
      prefixOf(session, family),
      canary ? `no canary within ${syncTimeoutMs} ms` : `not listed within ${syncTimeoutMs} ms`,
    );
  }
}

function checkHeartbeat(session: Session): void {
  const limitMs = session.options.heartbeatLimitMs ?? 120_000;
  if (performance.now() - session.lastHeartbeatAt <= limitMs) return;
  session.report.violation(
    'heartbeat',
    HEARTBEAT,
    `silent for more than ${limitMs} ms: readers restart their connection`,
  );
}

/** What can be said only when all is read: the config has stayed what it was, and the canaries told the truth. */
async function finalChecks(session: Session, config: AcceptedConfig): Promise<void> {
  const { client, report, options } = session;
  try {
    const key = `cilium/cluster-config/${options.cluster}`;
    const kv = (await client.range({ key })).kvs[0];
    if (kv === undefined) report.violation('config', key, 'has gone');
    else {
      const now = checkConfig(session, kv);
      if (now !== undefined && now.id !== config.id)
        report.violation('config', key, `id changed from ${config.id} to ${now.id}`, kv.modRevision);
    }
    for (const family of config.families) await checkComplete(session, family);
    if (options.isUnchanging === true) for (const family of config.families) await checkCanary(session, family);
  } catch (error) {
    report.restart('final checks', messageOf(error));
  }
}

const CATCH_UP_MS = 2_000;

/** What the watch has told must come to what a list says. Nothing less will do: no later list would tell a reader otherwise. */
async function checkComplete(session: Session, family: string): Promise<void> {
  const { client, report } = session;
  const rows = session.rows.get(family);
  if (!rows?.isListed) return;
  const prefix = prefixOf(session, family);
  for (const deadline = performance.now() + CATCH_UP_MS; ; await sleep(20)) {
    const { kvs, revision } = await list({ client, report, prefix });
    const there = new Set(kvs.map((kv) => kv.key));
    // Rows may have gone on from the list meanwhile; they must not be behind it.
    const behind = kvs.find((kv) => (rows.known.get(kv.key) ?? 0) < kv.modRevision)?.key;
    const left = [...rows.known].find(([key, modRevision]) => !there.has(key) && modRevision <= revision)?.[0];
    if (behind === undefined && left === undefined) return;
    if (performance.now() < deadline) continue;
    report.violation('watch', behind ?? left ?? '', 'a list says otherwise than the watch has told', revision);
    return;
  }
}

/** A canary says that everything is there and nothing else; in a source that does not change that can be held against it. */
async function checkCanary(session: Session, family: string): Promise<void> {
  const { client, report } = session;
  const said = report.family(family).canaryRevision;
  const rows = session.rows.get(family);
  if (said === null || rows === undefined) return;
  for (const [key, modRevision] of rows.known) {
    if (modRevision > said)
      report.violation(
        'canary',
        key,
        `was written after the canary of ${family} (revision ${said}) said that all was there`,
        modRevision,
      );
  }
  try {
    const then = await list({ client, report, prefix: prefixOf(session, family) }, said);
    for (const { key } of then.kvs) {
      if (!rows.known.has(key))
        report.violation(
          'canary',
          key,
          `was still there when the canary of ${family} was written, and went later`,
          said,
        );
    }
  } catch (error) {
    // That revision may have been compacted; then nobody can say any more.
    if (!(error instanceof Error && 'code' in error && error.code === grpcStatus.OUT_OF_RANGE)) throw error;
  }
}
