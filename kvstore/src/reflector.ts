import { MeshError, messageOf } from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { audit } from './audit.ts';
import { Delivery } from './delivery.ts';
import { Holdback, type SeenCanary } from './holdback.ts';
import { type Anchor, hashOf, RowIndex, sizeOf } from './row-index.ts';
import { childOf } from './signals.ts';
import type {
  Header,
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
  | { readonly name: 'verifying'; readonly from: number }
  | { readonly name: 'watching'; readonly header: Header }
  | { readonly name: 'over-limit'; readonly reason: string }
  | { readonly name: 'reconnecting'; readonly attempt: number }
  | { readonly name: 'closed' };

const DEFAULT_BACKOFF = { minMs: 50, maxMs: 30_000 };
const DEFAULT_MAX_QUEUED_KEYS = 200_000;
/** A session that watched for this long was a good one: the next failure starts with the shortest delay again. */
const STABLE_AFTER_MS = 2_000;
/** How long a difference that a resync found must last before it is believed: the watch may only be late. */
const RESYNC_GRACE_MS = 1_000;
/** The same after a resume, where the watch has everything to send that was missed. */
const VERIFY_GRACE_MS = 5_000;
const HOLD_CHECK_MS = 500;
const DEFAULT_LIMIT_RETRY_MS = 30_000;

/** Where a watch could go on, and what etcd must still show for it to be the etcd of before. */
interface Cursor {
  readonly revision: number;
  readonly clusterId: string;
  readonly epoch: number;
  readonly anchor: Anchor;
  readonly canaryCreatedAt: number | undefined;
}

interface Canary extends SeenCanary {
  /** What showed the canary must also give the list: the next connection may lead to an empty etcd. */
  readonly connection: number;
  readonly createRevision: number;
}

/** Ends a session; the next one is not begun before what is there fits again. */
class OverLimit extends MeshError {
  constructor(message: string) {
    super({ code: 'exhausted', message, hint: 'raise the limit, or find out why there is so much' });
  }
}

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
  let resumes = 0;
  let cursor: Cursor | undefined;
  const { limits } = options;
  const holdback = options.holdDeletes && new Holdback(options.holdDeletes);
  const waiters: { resolve(): void; reject(error: MeshError): void }[] = [];

  function setState(next: State): void {
    if (state.name === 'closed') return;
    if (next.name !== state.name) log.debug({ prefix, from: state.name, to: next.name }, 'reflector state');
    state = next;
  }

  const alive = () => {
    lastProofOfLifeAt = clock.nowMs();
  };

  async function readCanary(session: AbortSignal, connection?: number): Promise<Canary | undefined> {
    const { kv, header } = await etcd.getWithHeader(canaryKey!, { signal: session, connection });
    alive();
    return kv && { ...kv, epoch: etcd.epoch, connection: header.connection };
  }

  async function waitForCanary(session: AbortSignal): Promise<Canary> {
    const { kv, header } = await etcd.getWithHeader(canaryKey!, { signal: session });
    alive();
    const { connection } = header;
    if (kv !== undefined) return { ...kv, epoch: etcd.epoch, connection };
    setState({ name: 'waiting-for-canary' });
    const { controller: seen, release } = childOf(session);
    let put: WatchEvent | undefined;
    await etcd.watch({
      prefix: canaryKey!,
      exact: true,
      startRevision: header.revision + 1,
      connection,
      signal: seen.signal,
      onCreated: alive,
      onProgress: alive,
      onEvents: (events) => {
        alive();
        put = events.findLast((event) => event.type === 'put') ?? put;
        if (put !== undefined) seen.abort();
      },
    });
    release();
    session.throwIfAborted();
    return { modRevision: put!.modRevision, createRevision: put!.createRevision, epoch: etcd.epoch, connection };
  }

  async function list(session: AbortSignal, canary: Canary | undefined): Promise<Header> {
    setState({ name: 'listing', header: undefined });
    index.beginList();
    let header: Header | undefined;
    let keys = 0;
    let bytes = 0;
    for await (const page of etcd.pages(prefix, { signal: session, connection: canary?.connection })) {
      alive();
      ({ header } = page);
      if (state.name === 'listing' && state.header === undefined) setState({ name: 'listing', header });
      keys += page.kvs.length;
      bytes += page.kvs.reduce((sum, kv) => sum + sizeOf(kv), 0);
      checkLimits(keys, bytes);
      const upserts = page.kvs.filter((kv) => kv.key.startsWith(prefix) && index.listed(kv)).map(toUpsert);
      await applyList(upserts, [], header.revision);
      session.throwIfAborted();
    }
    // Only here is the list known to be whole.
    const removes = index.endList(holdMissing(header!, canary));
    await applyList([], removes, header!.revision);
    session.throwIfAborted();
    return header!;
  }

  /** Which rows a complete list may be missing without their being removed. */
  function holdMissing(header: Header, canary: Canary | undefined) {
    if (holdback === undefined) return undefined;
    const nowMs = clock.nowMs();
    const isSilent = holdback.isSilent(nowMs);
    const before = holdback.held.size > 0 && !holdback.mayRelease(nowMs, canary) ? new Set(holdback.held) : undefined;
    holdback.held.clear();
    return (key: string, leased: boolean) => {
      if (before?.has(key) === true) holdback.held.add(key);
      else if (leased && isSilent) holdback.hold(key, header.revision, etcd.epoch, nowMs);
      return holdback.held.has(key);
    };
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

  // ------------------------------------------------------------ limits

  function checkLimits(keys: number, bytes: number): void {
    const { maxKeys, maxBytes } = limits ?? {};
    const over =
      maxKeys !== undefined && keys > maxKeys
        ? `${maxKeys} keys`
        : maxBytes !== undefined && bytes > maxBytes
          ? `${maxBytes} bytes`
          : undefined;
    if (over === undefined) return;
    throw new OverLimit(
      `reading ${prefix}: there are more than the ${over} allowed; what was applied stays, the rest is not taken in`,
    );
  }

  /** Looks, without taking anything in, whether what is there fits. */
  async function measure(session: AbortSignal): Promise<void> {
    if (limits?.maxKeys !== undefined) checkLimits(await etcd.count(prefix, { signal: session }), 0);
    if (limits?.maxBytes === undefined) return;
    let bytes = 0;
    for await (const page of etcd.pages(prefix, { signal: session })) {
      bytes += page.kvs.reduce((sum, kv) => sum + sizeOf(kv), 0);
      checkLimits(0, bytes);
    }
  }

  // ------------------------------------------------------------ a session

  async function runSession(session: AbortController): Promise<void> {
    if (state.name === 'over-limit') await measure(session.signal);
    else setState({ name: 'connecting' });
    const resumed = await findResumePoint(session.signal);
    if (resumed !== undefined) return follow(resumed.header, resumed.canary, session, true);
    const canary = canaryKey === undefined ? undefined : await waitForCanary(session.signal);
    const header = await list(session.signal, canary);
    onComplete(header);
    log.debug({ prefix, rows: index.size, revision: header.revision }, 'list complete');
    return follow(header, canary, session, false);
  }

  /** What is held is what etcd had at this revision; only here does a reflector become synced. */
  function onComplete(header: Header): void {
    revision = header.revision;
    dataRevision = header.revision;
    ({ clusterId } = header);
    setState({ name: 'watching', header });
    everSynced = true;
    lastError = undefined;
    sink.synced?.(header.revision);
    for (const waiter of waiters.splice(0)) waiter.resolve();
  }

  /**
   * Equal cluster ids do not prove that this is the etcd of before (rebuilt with equal flags it has the same one, and its revision may
   * have overtaken ours): it must also show the row that was changed last exactly as it was at our revision, and a canary that has not
   * been created anew. Even so the session becomes synced only when a complete list has shown the same rows (`verify`).
   */
  async function findResumePoint(session: AbortSignal) {
    const from = cursor;
    cursor = undefined;
    if (from === undefined || options.resume === false) return undefined;
    try {
      const { key, modRevision, hash } = from.anchor;
      const { kv, header } = await etcd.getWithHeader(key, { signal: session, revision: from.revision });
      alive();
      const isSame =
        header.clusterId === from.clusterId &&
        etcd.epoch === from.epoch &&
        kv?.modRevision === modRevision &&
        hashOf(kv.value) === hash;
      if (!isSame) return undefined;
      const canary = canaryKey === undefined ? undefined : await readCanary(session, header.connection);
      if (canary?.createRevision !== from.canaryCreatedAt) return undefined;
      log.debug({ prefix, revision: from.revision }, 'going on from the last revision');
      return { header: { ...header, revision: from.revision }, canary };
    } catch (error) {
      if (error instanceof MeshError && error.code === 'etcd-compacted') return undefined;
      cursor = from;
      throw error;
    }
  }

  async function follow(
    header: Header,
    canary: Canary | undefined,
    session: AbortController,
    resumed: boolean,
  ): Promise<void> {
    let taken = header.revision;
    const { epoch } = etcd;
    let isVerified = !resumed;
    const delivery = new Delivery({
      sink,
      maxQueuedKeys: options.maxQueuedKeys ?? DEFAULT_MAX_QUEUED_KEYS,
      onApplied: (applied) => {
        if (!isVerified) return;
        revision = Math.max(revision, applied);
        dataRevision = Math.max(dataRevision, applied);
      },
      onError(error) {
        lastError = messageOf(error); // Now: the sink may take its time before the session can end.
        log.info({ prefix, reason: lastError }, 'changes could not be applied; listing again');
        session.abort(error);
      },
    });
    const audits = new Set<Set<string>>();
    const since = clock.nowMs();

    /** Compares with a complete list, then lets `act` do something about what differs. */
    async function compare(graceMs: number) {
      const touched = new Set<string>();
      audits.add(touched);
      try {
        const common = { etcd, prefix, index, touched, graceMs, clock, signal: session.signal };
        return await audit({ ...common, connection: header.connection });
      } finally {
        audits.delete(touched);
      }
    }

    async function verify(): Promise<void> {
      const found = await compare(VERIFY_GRACE_MS);
      const gone = found.gone.filter((key) => holdback?.held.has(key) !== true);
      if (found.changed.length + gone.length > 0) {
        taken = -1;
        throw new MeshError({
          code: 'conflict',
          message: `watching ${prefix} again from revision ${header.revision}: a list shows ${found.changed.length + gone.length} rows otherwise`,
        });
      }
      // Events up to the revision of the list may still be on their way, but they are in the list, which shows nothing new.
      isVerified = true;
      resumes++;
      onComplete({ ...found.header, revision: Math.max(found.header.revision, taken) });
      log.debug({ prefix, rows: index.size, from: header.revision }, 'resumed, and found complete');
    }

    /** Watches have lost events in the field (etcd#17529, #18089, #19179): lists again now and then, and repairs what differs. */
    async function resync(): Promise<void> {
      const { header: listed, changed, gone } = await compare(RESYNC_GRACE_MS);
      for (const kv of changed) {
        index.listed(kv);
        delivery.put(toUpsert(kv));
      }
      const removed = gone.filter((key) => holdback?.held.has(key) !== true && index.remove(key, listed.revision + 1));
      for (const key of removed) delivery.remove(key);
      const found = changed.length + removed.length;
      if (found === 0) return;
      repairs += found;
      log.warn({ prefix, rows: found, revision: listed.revision }, 'resync found rows that the watch had missed');
      delivery.commit(listed.revision);
    }

    async function release(): Promise<void> {
      if (holdback === undefined || holdback.held.size === 0) return;
      const now = canaryKey === undefined ? undefined : await readCanary(session.signal, header.connection);
      if (canaryKey !== undefined && now === undefined) return;
      if (!holdback.mayRelease(clock.nowMs(), now)) return;
      const { header: listed, gone } = await compare(0);
      const removed = gone.filter((key) => holdback.held.has(key) && index.remove(key, listed.revision + 1));
      log.info({ prefix, kept: holdback.held.size - removed.length, removed: removed.length }, 'the writer is back');
      holdback.held.clear();
      for (const key of removed) delivery.remove(key);
      if (removed.length > 0) delivery.commit(listed.revision);
    }

    async function every(intervalMs: number, act: () => Promise<void>): Promise<void> {
      if (intervalMs <= 0) return;
      for (;;) {
        await clock.sleep(intervalMs, session.signal);
        if (session.signal.aborted) return;
        try {
          await act();
        } catch (error) {
          if (!session.signal.aborted) log.debug({ prefix, err: error }, 'comparing with a list did not succeed');
        }
      }
    }

    function take(events: readonly WatchEvent[]): void {
      const together = new Map<number, number>();
      if (holdback !== undefined) {
        for (const { type, key, modRevision } of events)
          if (type === 'delete' && index.isLeased(key)) together.set(modRevision, (together.get(modRevision) ?? 0) + 1);
      }
      for (const event of events) {
        const { key, modRevision } = event;
        // Neither asked for: another prefix, and what the list has shown already.
        if (!key.startsWith(prefix) || modRevision <= header.revision) continue;
        for (const touched of audits) touched.add(key);
        if (event.type === 'put') {
          holdback?.held.delete(key);
          if (index.put(event)) delivery.put(toUpsert(event));
        } else if (isHeld(key, modRevision, together.get(modRevision))) {
          holdback!.hold(key, modRevision, epoch, clock.nowMs());
        } else if (index.remove(key, modRevision)) delivery.remove(key);
      }
    }

    function isHeld(key: string, modRevision: number, together: number | undefined): boolean {
      if (holdback === undefined || together === undefined || !index.isLeased(key)) return false;
      if (index.revisionOf(key)! >= modRevision || !holdback.wants(modRevision, together, clock.nowMs())) return false;
      if (holdback.held.size === 0)
        log.warn(
          { prefix, revision: modRevision },
          'leased rows end while their writer is silent: kept until it is heard',
        );
      return true;
    }

    if (resumed) setState({ name: 'verifying', from: header.revision });
    const loops: Promise<void>[] = [];
    const startLoops = () => {
      loops.push(every(options.resyncIntervalMs ?? 0, resync));
      if (holdback !== undefined) loops.push(every(HOLD_CHECK_MS, release));
    };
    if (!resumed) startLoops();
    try {
      await etcd.watch({
        prefix,
        startRevision: header.revision + 1,
        connection: header.connection,
        signal: session.signal,
        onCreated: () => {
          alive();
          if (!resumed || loops.length > 0) return;
          loops.push(verify().then(startLoops, (error) => session.abort(error)));
        },
        onProgress: alive,
        onEvents: (events, response, complete) => {
          alive();
          take(events);
          const newest = events.at(-1)?.modRevision ?? 0;
          // A revision that is still being sent in parts is not applied yet, whatever the header says.
          const whole = complete ? newest : newest - 1;
          taken = taken < 0 ? taken : Math.max(taken, whole);
          delivery.commit(whole);
          if (complete && isVerified) revision = Math.max(revision, response.revision);
          try {
            checkLimits(index.size, index.bytes);
          } catch (error) {
            session.abort(error);
          }
        },
      });
      session.signal.throwIfAborted();
    } finally {
      if (clock.nowMs() - since >= STABLE_AFTER_MS) attempt = 0;
      // Stale from now on, also while a slow sink finishes what it has.
      setState({ name: 'reconnecting', attempt });
      session.abort(new MeshError({ code: 'cancelled', message: `watching ${prefix}: session ended` }));
      await Promise.all(loops);
      const undelivered = await delivery.end();
      for (const key of undelivered) index.invalidate(key);
      const { anchor } = index;
      if (undelivered.length === 0 && taken > 0 && anchor !== undefined) {
        const canaryCreatedAt = canary?.createRevision;
        cursor = { revision: taken, clusterId: header.clusterId, epoch, anchor, canaryCreatedAt };
      }
    }
  }

  async function waitBeforeRetry(): Promise<void> {
    if (state.name === 'over-limit') return clock.sleep(limits?.retryMs ?? DEFAULT_LIMIT_RETRY_MS, signal);
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
    setState(error instanceof OverLimit ? { name: 'over-limit', reason: message } : { name: 'reconnecting', attempt });
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
    bytes: index.bytes,
    held: holdback?.held.size ?? 0,
    lastProofOfLifeAt,
    reconnects,
    lastError,
    repairs,
    resumes,
  });
  return { status, waitSynced, done };
}

function toUpsert(row: { readonly key: string; readonly value: Buffer; readonly modRevision: number }): RowUpsert {
  return { key: row.key, value: row.value, modRevision: row.modRevision };
}
