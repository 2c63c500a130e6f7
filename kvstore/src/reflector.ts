import { MeshError, messageOf } from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { Delivery } from './delivery.ts';
import { RowIndex } from './row-index.ts';
import { childOf } from './signals.ts';
import type {
  Header,
  KeyValue,
  Reflector,
  ReflectorOptions,
  ReflectorState,
  ReflectorStatus,
  RowUpsert,
  WatchEvent,
} from './types.ts';

/** One session = one list and the watch that continues it. `setState` is the only place that changes it. */
type State =
  | { readonly name: 'connecting' }
  | { readonly name: 'waiting-for-canary' }
  | { readonly name: 'listing'; readonly header: Header | undefined }
  | { readonly name: 'watching'; readonly header: Header }
  | { readonly name: 'reconnecting'; readonly attempt: number }
  | { readonly name: 'closed' };

const DEFAULT_BACKOFF = { minMs: 50, maxMs: 30_000 };
const DEFAULT_MAX_QUEUED_KEYS = 200_000;
/** A session that watched for this long was a good one: the next failure starts with the shortest delay again. */
const STABLE_AFTER_MS = 2_000;
/** How long a difference that a resync found must last before it is believed: the watch may only be late. */
const RESYNC_GRACE_MS = 1_000;

/**
 * Keeps a sink equal to what is under a prefix of an etcd: list, then watch, for ever. Rows outlive every failure; a row is removed
 * only by a watch event, or by a *complete* list that no longer has it (and, where the writer keeps a canary, only while that is
 * there: an etcd that was rebuilt is empty long before its writer is back).
 */
export function startReflector(options: ReflectorOptions): Reflector {
  const { etcd, prefix, canaryKey, sink, log, signal } = options;
  const clock = options.clock ?? systemClock;
  const backoff = options.backoff ?? DEFAULT_BACKOFF;
  const index = new RowIndex();
  let state: State = { name: 'connecting' };
  let everSynced = false;
  let revision = 0;
  let dataRevision = 0;
  let clusterId: string | undefined;
  let lastProofOfLifeAt: number | undefined;
  let reconnects = 0;
  let repairs = 0;
  let lastError: string | undefined;
  let attempt = 0;
  const waiters: { resolve(): void; reject(error: MeshError): void }[] = [];

  function setState(next: State): void {
    if (state.name === 'closed') return;
    if (next.name !== state.name) log.debug({ prefix, from: state.name, to: next.name }, 'reflector state');
    state = next;
  }

  const alive = () => {
    lastProofOfLifeAt = clock.nowMs();
  };

  /** The connection that showed the canary: the list must be of the same, since the next may lead to an empty etcd. */
  async function waitForCanary(session: AbortSignal): Promise<number | undefined> {
    if (canaryKey === undefined) return undefined;
    const { kv, header } = await etcd.getWithHeader(canaryKey, { signal: session });
    alive();
    if (kv !== undefined) return header.connection;
    setState({ name: 'waiting-for-canary' });
    const { controller: seen, release } = childOf(session);
    await etcd.watch({
      prefix: canaryKey,
      exact: true,
      startRevision: header.revision + 1,
      connection: header.connection,
      signal: seen.signal,
      onCreated: alive,
      onProgress: alive,
      onEvents: (events) => {
        alive();
        if (events.some((event) => event.type === 'put')) seen.abort();
      },
    });
    release();
    session.throwIfAborted();
    return header.connection;
  }

  async function list(session: AbortSignal, connection: number | undefined): Promise<Header> {
    setState({ name: 'listing', header: undefined });
    index.beginList();
    let header: Header | undefined;
    for await (const page of etcd.pages(prefix, { signal: session, connection })) {
      alive();
      ({ header } = page);
      if (state.name === 'listing' && state.header === undefined) setState({ name: 'listing', header });
      const upserts = page.kvs.filter((kv) => index.listed(kv)).map(toUpsert);
      await applyList(upserts, [], header.revision);
      session.throwIfAborted();
    }
    // Only here is the list known to be whole.
    const removes = index.endList();
    await applyList([], removes, header!.revision);
    session.throwIfAborted();
    return header!;
  }

  async function applyList(upserts: RowUpsert[], removes: string[], at: number): Promise<void> {
    if (upserts.length + removes.length === 0) return;
    try {
      await sink.apply({ upserts, removes, revision: at, kind: 'list' });
    } catch (error) {
      for (const { key } of upserts) index.invalidate(key);
      for (const key of removes) index.invalidate(key);
      throw error;
    }
  }

  async function runSession(session: AbortController): Promise<void> {
    setState({ name: 'connecting' });
    const connection = await waitForCanary(session.signal);
    const header = await list(session.signal, connection);
    revision = header.revision;
    dataRevision = header.revision;
    ({ clusterId } = header);
    setState({ name: 'watching', header });
    everSynced = true;
    lastError = undefined;
    sink.synced?.(header.revision);
    for (const waiter of waiters.splice(0)) waiter.resolve();
    log.debug({ prefix, rows: index.size, revision: header.revision }, 'list complete');
    await follow(header, session);
  }

  async function follow(header: Header, session: AbortController): Promise<void> {
    const delivery = new Delivery({
      sink,
      maxQueuedKeys: options.maxQueuedKeys ?? DEFAULT_MAX_QUEUED_KEYS,
      onApplied: (applied) => {
        revision = Math.max(revision, applied);
        dataRevision = Math.max(dataRevision, applied);
      },
      onError: (error) => session.abort(error),
    });
    const touched = new Set<string>();
    const since = clock.nowMs();
    const resync = startResync(header, session.signal, delivery, touched);
    try {
      await etcd.watch({
        prefix,
        startRevision: header.revision + 1,
        connection: header.connection,
        signal: session.signal,
        onCreated: alive,
        onProgress: alive,
        onEvents: (events, response, complete) => {
          alive();
          for (const event of events) {
            take(event, delivery);
            touched.add(event.key);
          }
          const newest = events.at(-1)?.modRevision ?? 0;
          // A revision that is still being sent in parts is not applied yet, whatever the header says.
          delivery.commit(complete ? newest : newest - 1);
          if (complete) revision = Math.max(revision, response.revision);
        },
      });
      session.signal.throwIfAborted();
    } finally {
      if (clock.nowMs() - since >= STABLE_AFTER_MS) attempt = 0;
      // Stale from now on, also while a slow sink finishes what it has.
      setState({ name: 'reconnecting', attempt });
      session.abort(new MeshError({ code: 'cancelled', message: `watching ${prefix}: session ended` }));
      await resync;
      for (const key of await delivery.end()) index.invalidate(key);
    }
  }

  function take(event: WatchEvent, delivery: Delivery): void {
    if (event.type === 'put') {
      if (index.put(event)) delivery.put(toUpsert(event));
    } else if (index.remove(event.key, event.modRevision)) {
      delivery.remove(event.key);
    }
  }

  /** Watches have lost events in the field (etcd#17529, #18089, #19179): lists again now and then, and repairs what differs. */
  async function startResync(
    header: Header,
    session: AbortSignal,
    delivery: Delivery,
    touched: Set<string>,
  ): Promise<void> {
    const intervalMs = options.resyncIntervalMs ?? 0;
    if (intervalMs <= 0) return;
    for (;;) {
      await clock.sleep(intervalMs, session);
      if (session.aborted) return;
      touched.clear();
      try {
        await resyncOnce(header, session, delivery, touched);
      } catch (error) {
        if (!session.aborted) log.debug({ prefix, err: error }, 'resync did not complete');
      }
    }
  }

  async function resyncOnce(
    header: Header,
    session: AbortSignal,
    delivery: Delivery,
    touched: Set<string>,
  ): Promise<void> {
    const actual = new Set<string>();
    const changed: KeyValue[] = [];
    let listed: Header = header;
    for await (const page of etcd.pages(prefix, { signal: session, connection: header.connection })) {
      listed = page.header;
      for (const kv of page.kvs) {
        actual.add(kv.key);
        if (index.differs(kv)) changed.push(kv);
      }
    }
    const gone = [...index.keys()].filter((key) => !actual.has(key) && index.revisionOf(key)! <= listed.revision);
    if (changed.length + gone.length === 0) return;
    await clock.sleep(RESYNC_GRACE_MS, session);
    if (session.aborted) return;
    let found = 0;
    for (const kv of changed) {
      if (touched.has(kv.key) || !index.differs(kv)) continue;
      index.listed(kv);
      delivery.put(toUpsert(kv));
      found++;
    }
    for (const key of gone) {
      if (touched.has(key) || !index.remove(key, listed.revision + 1)) continue;
      delivery.remove(key);
      found++;
    }
    if (found === 0) return;
    repairs += found;
    log.warn({ prefix, rows: found, revision: listed.revision }, 'resync found rows that the watch had missed');
    delivery.commit(listed.revision);
  }

  async function waitBeforeRetry(): Promise<void> {
    const delay = Math.min(backoff.minMs * 2 ** Math.min(attempt - 1, 20), backoff.maxMs);
    const { controller: woken, release } = childOf(signal);
    // Another user of this client has got through: no need to sit out the delay.
    const stopListening = etcd.onEvent((event) => event.type === 'connected' && woken.abort());
    await clock.sleep(delay * (0.5 + Math.random() / 2), woken.signal);
    stopListening();
    release();
  }

  async function run(): Promise<void> {
    while (!signal.aborted) {
      const { controller: session, release } = childOf(signal);
      try {
        await runSession(session);
      } catch (error) {
        if (signal.aborted) break;
        onFailure(error);
      } finally {
        release();
        session.abort();
      }
      await waitBeforeRetry();
    }
    setState({ name: 'closed' });
    for (const waiter of waiters.splice(0)) waiter.reject(stopped());
  }

  const stopped = () =>
    new MeshError({ code: 'cancelled', message: `waiting for the first list of ${prefix}: the reflector was stopped` });

  function waitSynced(): Promise<void> {
    if (everSynced) return Promise.resolve();
    if (signal.aborted) return Promise.reject(stopped());
    return new Promise((resolve, reject) => waiters.push({ resolve, reject }));
  }

  function onFailure(error: unknown): void {
    attempt++;
    reconnects++;
    const message = messageOf(error);
    const fields = { prefix, rows: index.size, attempt, reason: message };
    // The first failure and a change of reason are news; the same failure again is not.
    if (message !== lastError)
      log.info(fields, everSynced ? 'rows are stale; listing again' : 'not listed yet; trying again');
    else log.debug(fields, 'still failing');
    lastError = message;
    setState({ name: 'reconnecting', attempt });
  }

  const done = run();
  const status = (): ReflectorStatus => ({
    state: state.name satisfies ReflectorState,
    prefix,
    synced: state.name === 'watching',
    everSynced,
    revision,
    dataRevision,
    clusterId,
    count: index.size,
    lastProofOfLifeAt,
    reconnects,
    lastError,
    repairs,
  });
  return { status, waitSynced, done };
}

function toUpsert(row: { readonly key: string; readonly value: Buffer; readonly modRevision: number }): RowUpsert {
  return { key: row.key, value: row.value, modRevision: row.modRevision };
}
