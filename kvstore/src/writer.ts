import { MeshError, messageOf } from '@clustermesh/contract';
import { startRunner, systemClock } from '@clustermesh/runtime';
import { Canaries } from './canaries.ts';
import { LeasePool } from './lease-pool.ts';
import { RateLimit } from './rate-limit.ts';
import { childOf } from './signals.ts';
import type { KeyValue } from './types.ts';
import { auditWritten, readPieces } from './writer-audit.ts';
import { type Actual, batches, difference, isUnder, type Operation } from './writer-plan.ts';
import { transactionsOf } from './writer-transactions.ts';
import type { FlushResult, Writer, WriterKeyError, WriterOptions, WriterStatus } from './writer-types.ts';

const DEFAULT_AUDIT_INTERVAL_MS = 60_000;
const DEFAULT_BACKOFF = { minMs: 100, maxMs: 5_000 };
/** A burst of sets becomes one pass. */
const COALESCE_MS = 5;
const DEFAULT_LEASE = { ttlSeconds: 900, maxKeysPerLease: 1000 };

/** Refusals that concern one key for good; everything else concerns the connection, or passes. */
const KEY_ERRORS: ReadonlySet<string> = new Set(['etcd-too-large', 'etcd-permission', 'invalid-argument']);

/** What is known of etcd. `setState` is the only place that changes it. */
type State =
  /** At the start, and after a lost connection, a write of unknown outcome or another leader: a compare comes before anything is written. */
  | { readonly name: 'unknown' }
  | { readonly name: 'comparing' }
  /** `applied` and `dirty` are true of the etcd behind this connection; nothing is written to one behind a later connection. */
  | { readonly name: 'known'; readonly connection: number | undefined }
  | { readonly name: 'closed' };

/**
 * Keeps etcd equal to a desired set of keys. Level-triggered: every pass first makes sure that it knows what is in etcd (a full
 * compare at the start and after every lost connection; every `auditIntervalMs` another beside the passes), then writes the
 * difference in order of `set`, then the canaries. One pass at a time, so nothing here has to be locked against another write of ours.
 */
export function startWriter(options: WriterOptions): Writer {
  const { etcd, owned, log, signal } = options;
  const clock = options.clock ?? systemClock;
  const auditIntervalMs = options.auditIntervalMs ?? DEFAULT_AUDIT_INTERVAL_MS;
  const backoff = options.backoff ?? DEFAULT_BACKOFF;

  const desired = new Map<string, Buffer>();
  /** Keys of this writer's past that must go, also where leftovers are not looked for. */
  const tombstones = new Set<string>();
  const readyPrefixes = new Set<string>();
  const canaries = new Canaries();
  const failed = new Map<string, WriterKeyError>();
  const lastRevision = new Map<string, number>();
  /** What is known to be in etcd. A key that is being written is in neither set until etcd has answered. */
  let applied = new Map<string, Buffer>();
  let dirty = new Set<string>();

  let state: State = { name: 'unknown' };
  let auditDueAt = 0;
  let auditing: Promise<void> | undefined;
  /** While an audit runs: what has been written since it began. */
  let touchedSinceAudit: Set<string> | undefined;
  let comparedEpoch = -1;
  let passes = 0;
  let compares = 0;
  let written = 0;
  let repairs = 0;
  let inFlight: readonly Operation[] = [];
  let lastFlushAt: number | undefined;
  let lastError: string | undefined;
  /** All that was declared complete has been written once to the etcd that answers now. */
  let bootstrapped = false;
  const rate = new RateLimit(clock);
  const pool =
    options.lease === undefined
      ? undefined
      : new LeasePool({
          etcd,
          ttlSeconds: options.lease.ttlSeconds ?? DEFAULT_LEASE.ttlSeconds,
          maxKeysPerLease: options.lease.maxKeysPerLease ?? DEFAULT_LEASE.maxKeysPerLease,
          onLost: putAgain,
        });
  const transactions = transactionsOf({ ...options, pool });

  const isOwnKey = (key: string) => isUnder(owned, key);
  const isLeftover = (key: string) => !canaries.has(key) && (tombstones.has(key) || isUnder(readyPrefixes, key));

  // ------------------------------------------------------------ what is wanted

  function set(key: string, value: string | Buffer): void {
    const buffer = typeof value === 'string' ? Buffer.from(value) : value;
    tombstones.delete(key);
    const before = desired.get(key);
    if (before?.equals(buffer) === true && (applied.get(key) === before || failed.has(key))) return;
    desired.set(key, buffer);
    failed.delete(key);
    if (applied.get(key)?.equals(buffer) === true) dirty.delete(key);
    else dirty.add(key);
    runner.trigger();
  }

  function remove(key: string): void {
    const known = desired.delete(key);
    const wasCanary = canaries.delete(key);
    failed.delete(key);
    // Under an owned prefix a compare knows better than we do whether there is anything to delete.
    if (
      !known &&
      !wasCanary &&
      compares > 0 &&
      isOwnKey(key) &&
      !applied.has(key) &&
      !dirty.has(key) &&
      inFlight.length === 0
    )
      return;
    tombstones.add(key);
    dirty.add(key);
    runner.trigger();
  }

  function replace(prefix: string, rows: ReadonlyMap<string, string | Buffer>): void {
    for (const key of [...desired.keys()]) if (key.startsWith(prefix) && !rows.has(key)) remove(key);
    for (const [key, value] of rows) {
      if (!key.startsWith(prefix))
        throw new MeshError({
          code: 'invalid-argument',
          message: `replacing everything under ${prefix}: ${key} is not under it`,
        });
      set(key, value);
    }
  }

  function ready(prefix: string): void {
    if (!isUnder(owned, prefix)) {
      throw new MeshError({
        code: 'invalid-argument',
        message: `declaring ${prefix} complete: this writer owns only ${owned.join(', ')}`,
      });
    }
    if (readyPrefixes.has(prefix)) return;
    readyPrefixes.add(prefix);
    for (const key of applied.keys())
      if (key.startsWith(prefix) && !desired.has(key) && isLeftover(key)) dirty.add(key);
    runner.trigger();
  }

  // ------------------------------------------------------------ what is there

  /** Where writes may go. What was compared on another connection says nothing of the etcd behind this one. */
  function pinned(attempted: string): number | undefined {
    if (state.name === 'known') return state.connection;
    throw new MeshError({
      code: 'etcd-unreachable',
      message: `${attempted}: the connection on which etcd was compared is lost`,
      retryable: true,
    });
  }

  interface Reading {
    readonly actual: Map<string, Actual>;
    /** Per owned prefix the highest mod_revision. */
    readonly revisions: Map<string, number>;
    /** Keys outside of the owned prefixes that were looked up. */
    readonly others: ReadonlySet<string>;
    readonly connection: number | undefined;
  }

  // A key on a foreign lease (of a process before this one, or of a writer in the other mode) would vanish with that.
  const leaseFits = (kv: KeyValue) => kv.lease === (pool === undefined ? '0' : pool.idOf(kv.key));

  async function readActual(): Promise<Reading> {
    const actual = new Map<string, Actual>();
    const revisions = new Map(owned.map((prefix) => [prefix, 0]));
    const others = [...desired.keys(), ...tombstones].filter((key) => !isOwnKey(key));
    let readOn: number | undefined;
    for await (const { kvs, prefix, connection: pinned } of readPieces({ etcd, owned, others, signal })) {
      readOn = pinned;
      for (const kv of kvs) {
        actual.set(kv.key, { value: kv.value, leaseFits: leaseFits(kv) });
        if (prefix !== undefined) revisions.set(prefix, Math.max(revisions.get(prefix)!, kv.modRevision));
      }
    }
    return { actual, revisions, others: new Set(others), connection: readOn };
  }

  function setState(next: State): void {
    if (state.name === 'closed') return;
    if (next.name !== state.name) log.debug({ owned, from: state.name, to: next.name }, 'writer state');
    state = next;
  }

  async function compare(): Promise<void> {
    setState({ name: 'comparing' });
    try {
      const { actual, revisions, others, connection: readOn } = await readActual();
      const found = difference(desired, actual, isLeftover);
      if (compares > 0) repairs += countForeign(found.dirty);
      if (etcd.epoch !== comparedEpoch) bootstrapped = false;
      for (const key of tombstones) {
        const known = isOwnKey(key) || others.has(key);
        if (!known || actual.has(key)) found.dirty.add(key);
        else {
          tombstones.delete(key);
          pool?.release(key);
        }
      }
      ({ dirty, applied } = found);
      failed.clear();
      for (const [prefix, newest] of revisions) {
        // A delete leaves no row behind that would carry its revision; another etcd counts anew.
        const before = etcd.epoch === comparedEpoch ? (lastRevision.get(prefix) ?? 0) : 0;
        lastRevision.set(prefix, Math.max(before, newest));
      }
      comparedEpoch = etcd.epoch;
      // What was read may be of an etcd, or of a time, that is over.
      if (state.name !== 'comparing')
        throw new MeshError({
          code: 'etcd-unreachable',
          message: 'comparing with etcd: it was lost meanwhile',
          retryable: true,
        });
      setState({ name: 'known', connection: readOn });
    } catch (error) {
      setState({ name: 'unknown' });
      throw error;
    }
    onCompared();
    log.debug({ owned, differing: dirty.size, rows: applied.size }, 'compared');
  }

  function onCompared(): void {
    compares++;
    // Not in step: the many writers of a mirror would all list at the same time.
    auditDueAt = clock.nowMs() + auditIntervalMs * (0.5 + Math.random() / 2);
    canaries.renew();
  }

  /**
   * The same while changes are being written, as a change must not wait for a list of all that was written before. Anything but a
   * plain answer leaves things as they are: what breaks the connection asks for a compare of its own.
   */
  async function audit(): Promise<void> {
    const believed = applied;
    const touched = new Set<string>();
    touchedSinceAudit = touched;
    try {
      const others = [...applied.keys()].filter((key) => !isOwnKey(key));
      const common = { etcd, owned, others, connection: pinned('comparing'), signal };
      const { found, revisions } = await auditWritten({ ...common, applied, touched, leaseFits });
      if (applied !== believed || state.name !== 'known' || signal.aborted) return;
      const differing = [...found].filter(([key, there]) => !dirty.has(key) && take(key, there)).map(([key]) => key);
      repairs += countForeign(differing);
      for (const key of [...differing, ...failed.keys()]) dirty.add(key);
      failed.clear();
      for (const [prefix, newest] of revisions)
        lastRevision.set(prefix, Math.max(lastRevision.get(prefix) ?? 0, newest));
      onCompared();
      runner.trigger();
    } catch (error) {
      auditDueAt = clock.nowMs() + auditIntervalMs;
      if (!signal.aborted) log.debug({ owned, reason: messageOf(error) }, 'comparing did not succeed');
    } finally {
      touchedSinceAudit = undefined;
    }
  }

  /** Believes what a list has shown; true if that is not what should be there. */
  function take(key: string, there: Actual | undefined): boolean {
    if (there === undefined) applied.delete(key);
    else applied.set(key, there.value);
    const wanted = desired.get(key);
    if (there === undefined) return wanted !== undefined;
    return wanted === undefined ? isLeftover(key) : !there.leaseFits || !there.value.equals(wanted);
  }

  /** Differences that no pending change of ours explains. */
  function countForeign(differing: Iterable<string>): number {
    let count = 0;
    for (const key of differing) if (!dirty.has(key) && !failed.has(key)) count++;
    if (count > 0) log.info({ owned, keys: count }, 'repairing keys that somebody else changed or lost');
    return count;
  }

  // ------------------------------------------------------------ closing the difference

  /** Decided at the last moment, so that a key that changed several times is written once. */
  function* operations(keys: Iterable<string>): Generator<Operation, void, void> {
    for (const key of keys) {
      if (dirty.has(key)) yield { key, value: desired.get(key) };
    }
  }

  async function drain(): Promise<void> {
    rate.perSecond = bootstrapped
      ? (options.rate?.keysPerSecond ?? Number.POSITIVE_INFINITY)
      : (options.rate?.bootstrapKeysPerSecond ?? Number.POSITIVE_INFINITY);
    // What is set from here on waits for the next pass: a pass must end, also under constant change.
    const keys = [...dirty];
    try {
      await writeAll(keys);
    } catch (error) {
      // An etcd that is full still takes deletes, and they are what makes room.
      if (error instanceof MeshError && error.code === 'exhausted')
        await writeAll(keys.filter((key) => !desired.has(key)));
      throw error;
    }
  }

  async function writeAll(keys: readonly string[]): Promise<void> {
    for (const batch of batches(operations(keys), rate.burst)) {
      signal.throwIfAborted();
      await rate.take(batch.length, signal);
      await write(batch);
    }
  }

  async function write(batch: Operation[]): Promise<void> {
    for (const { key } of batch) {
      dirty.delete(key);
      applied.delete(key);
      touchedSinceAudit?.add(key);
    }
    inFlight = batch;
    try {
      const { revision, leases } = await transactions.send(batch, pinned(`writing ${batch.length} keys`));
      for (const operation of batch) settle(operation, revision, leases?.get(operation.key));
    } catch (error) {
      for (const { key } of batch) dirty.add(key);
      const mesh = MeshError.from(error, 'writing');
      if (!KEY_ERRORS.has(mesh.code)) throw mesh;
      inFlight = [];
      await isolate(batch, mesh);
    } finally {
      inFlight = [];
    }
  }

  function settle({ key, value }: Operation, revision: number, lease: string | undefined): void {
    written++;
    for (const prefix of owned) if (key.startsWith(prefix)) lastRevision.set(prefix, revision);
    if (value === undefined) {
      pool?.release(key);
      if (!desired.has(key)) tombstones.delete(key);
    } else if (pool !== undefined && pool.idOf(key) !== lease) {
      dirty.add(key); // The lease was lost on the way, and the key with it.
      return;
    } else applied.set(key, value);
    const wanted = desired.get(key);
    // Changed since the transaction was made up, perhaps before it was sent.
    if (wanted === value || (wanted !== undefined && value?.equals(wanted) === true)) dirty.delete(key);
    else dirty.add(key);
  }

  /** One key spoils its whole transaction: halves it until the culprit is alone. */
  async function isolate(batch: Operation[], error: MeshError): Promise<void> {
    if (batch.length > 1) {
      const middle = batch.length >> 1;
      await write(batch.slice(0, middle));
      await write(batch.slice(middle));
      return;
    }
    const { key, value } = batch[0]!;
    if (desired.get(key) !== value) return; // Changed meanwhile: judged anew by the next pass.
    dirty.delete(key);
    failed.set(key, { key, code: error.code, reason: error.message });
    log.warn({ key, reason: error.message }, 'etcd refuses this key; the others are written');
  }

  // ------------------------------------------------------------ the loop

  async function pass(): Promise<void> {
    passes++;
    const thisPass = passes;
    try {
      transactions.fence(dirty.size);
      if (state.name !== 'known') await compare();
      else if (auditIntervalMs > 0 && clock.nowMs() >= auditDueAt && touchedSinceAudit === undefined)
        auditing = audit();
      // Judged before: what is declared complete from here on may not be in this pass, and is of the first copy all the same.
      const isComplete = owned.every((prefix) => readyPrefixes.has(prefix));
      await drain();
      await canaries.write(thisPass, (key, value) => transactions.send([{ key, value }], pinned('writing a canary')));
      await pool?.trim();
      bootstrapped ||= isComplete;
      lastFlushAt = clock.nowMs();
      lastError = undefined;
    } catch (error) {
      // Whether a write that failed like this took place is unknown; only a compare tells.
      setState({ name: 'unknown' });
      // "requested lease not found": the pool learns of it now, not at the next third of the TTL.
      if (error instanceof MeshError && error.code === 'not-found') await pool?.renewAll().catch(() => {});
      throw error;
    }
  }

  function putAgain(lost: ReadonlySet<string>): void {
    for (const key of lost) {
      applied.delete(key);
      if (desired.has(key)) dirty.add(key);
    }
    // What they promised is not true until the keys are back.
    canaries.renew();
    runner.trigger();
  }

  function wantCompare(): void {
    setState({ name: 'unknown' });
    runner.trigger();
  }

  function onError(error: unknown, failures: number): void {
    if (signal.aborted) return;
    const message = messageOf(error);
    if (message !== lastError)
      log[options.leadership !== undefined && options.leadership.fence() === undefined ? 'info' : 'warn'](
        { owned, pending: dirty.size, failures, reason: message },
        'not written yet; trying again',
      );
    lastError = message;
  }

  const { controller, release } = childOf(signal);
  const runner = startRunner({
    run: pass,
    minIntervalMs: COALESCE_MS,
    retryMs: backoff.minMs,
    maxIntervalMs: Math.min(auditIntervalMs > 0 ? auditIntervalMs : Number.POSITIVE_INFINITY, backoff.maxMs),
    onError,
    signal: controller.signal,
    clock,
  });
  const stopListening = etcd.onEvent((event) => {
    if (event.type === 'disconnected') wantCompare();
    else runner.retryNow();
  });
  const stopFollowing = options.leadership?.onChange(() => {
    wantCompare(); // Somebody else has written meanwhile.
    runner.retryNow();
  });
  runner.trigger();

  const done = runner.ended.then(async () => {
    setState({ name: 'closed' });
    stopListening();
    stopFollowing?.();
    release();
    await auditing;
    await pool?.close();
  });

  function newestRevision(): number {
    return Math.max(0, ...lastRevision.values());
  }

  async function flush(): Promise<FlushResult> {
    await runner.settled();
    if (signal.aborted)
      throw new MeshError({ code: 'cancelled', message: `flushing ${owned.join(', ')}: the writer was stopped` });
    return { revision: newestRevision(), failed: failed.size };
  }

  function canary(key: string, value: () => string): void {
    canaries.ask(key, value, passes + 1);
    tombstones.delete(key);
    runner.trigger();
  }

  function* pendingKeys(): Generator<string, void, void> {
    yield* dirty;
    for (const { key } of inFlight) yield key;
    yield* canaries.pending();
  }

  const status = (): WriterStatus => ({
    connected: etcd.connected && lastError === undefined && state.name === 'known',
    pending: dirty.size + inFlight.length + [...canaries.pending()].length,
    written,
    desired: desired.size,
    errors: [...failed.values()],
    lastError,
    lastRevision,
    lastFlushAt,
    compares,
    repairs,
    leases: pool?.size ?? 0,
  });

  const get = (key: string) => desired.get(key);

  return { set, delete: remove, get, replace, ready, flush, canary, status, pendingKeys, done };
}
