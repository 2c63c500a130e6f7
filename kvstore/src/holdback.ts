import type { HoldDeletes } from './types.ts';

const DEFAULT_SILENT_AFTER_MS = 120_000;
const DEFAULT_BURST = 10;
const DEFAULT_SETTLE_MS = 60_000;

/** Where in which etcd a row was found to be gone. */
export interface GoneAt {
  readonly revision: number;
  readonly epoch: number;
  readonly nowMs: number;
}

/**
 * Rows of a leased foreign writer go by themselves when it dies, or is cut off from its own etcd: that its keys are gone then says
 * nothing about what they stand for. Their deletes are held back unless the writer is *steady* (heard without a break; after silence,
 * for `settleMs` and with another beat since), and when so many come together that only a lease can have ended.
 *
 * They are let go by a list that was made after the writer had been steady, and had put none of them again, for `settleMs`. A canary
 * proves nothing here: Cilium's writer puts that of a lost lease again without regard to the rows. Pure but for the ports.
 */
export class Holdback {
  readonly held = new Set<string>();
  readonly #options: HoldDeletes;
  #heldRevision = 0;
  #heldEpoch = 0;
  /** When a row was held, or one that was held put again, last. */
  #busyAt = 0;
  /** Since when the writer is heard without a break. Who begins with a beat has no silence to get over. */
  #heardSince: number | undefined = Number.NEGATIVE_INFINITY;
  #beatAt: number | undefined;

  constructor(options: HoldDeletes) {
    this.#options = options;
  }

  /**
   * Since when the writer has been steady; undefined: it is not. Two equal answers: it has been in between. Asked now and then, but
   * two beats far apart tell of a silence that nobody asked about.
   */
  steadySince(nowMs: number): number | undefined {
    const at = this.#options.lastHeartbeatAt();
    const silentAfterMs = this.#options.silentAfterMs ?? DEFAULT_SILENT_AFTER_MS;
    const isBreak = this.#beatAt !== undefined && at !== undefined && at - this.#beatAt > silentAfterMs;
    this.#beatAt = at;
    if (at === undefined || nowMs - at > silentAfterMs) this.#heardSince = undefined;
    else if (this.#heardSince === undefined || isBreak) this.#heardSince = nowMs;
    const since = this.#heardSince;
    if (since === undefined || since === Number.NEGATIVE_INFINITY) return since;
    // The first beat after a silence may have been written long ago, and found by a list: it needs another.
    return nowMs - since >= this.#settleMs && at! > since ? since : undefined;
  }

  /** `together`: leased rows deleted at the revision of this one. */
  wants(revision: number, together: number, nowMs: number): boolean {
    return (
      this.steadySince(nowMs) === undefined ||
      this.#isBurst(together) ||
      (this.held.size > 0 && revision === this.#heldRevision)
    );
  }

  hold(key: string, { revision, epoch, nowMs }: GoneAt): void {
    this.held.add(key);
    this.#busyAt = nowMs;
    this.#heldRevision = epoch === this.#heldEpoch ? Math.max(this.#heldRevision, revision) : revision;
    this.#heldEpoch = epoch;
  }

  /** Its writer is still at it. */
  putAgain(key: string, nowMs: number): void {
    if (this.held.delete(key)) this.#busyAt = nowMs;
  }

  /**
   * The leased rows that a session's first list misses. Those that were held stay so, whatever has been heard: they may have been put
   * again and lost again meanwhile. `steady`: of when the list began, or undefined.
   */
  afterList(missing: readonly string[], steady: number | undefined, at: GoneAt): void {
    const isDoubtful = this.#isDoubtful(missing.length, steady, at.nowMs);
    const before = new Set(this.held);
    this.held.clear();
    for (const key of missing) if (isDoubtful || before.has(key)) this.hold(key, at);
  }

  /** The leased rows that a list beside the watch misses without an event that explains it; `together`: all that it missed. */
  afterResync(gone: readonly string[], together: number, steady: number | undefined, at: GoneAt): void {
    if (gone.length === 0 || !this.#isDoubtful(together, steady, at.nowMs)) return;
    for (const key of gone) if (!this.held.has(key)) this.hold(key, at);
  }

  /** A watch begins, with what was done since `steady` was asked for: unless the writer has been ever since, it is not now. */
  beginWatch(steady: number | undefined, nowMs: number): void {
    const since = this.steadySince(nowMs);
    if (since !== undefined && since !== steady) this.#heardSince = nowMs;
  }

  /** Whether a list that is made now tells which of the held rows are really gone. */
  mayRelease(nowMs: number): boolean {
    const isSteady = this.steadySince(nowMs) !== undefined;
    const isQuiet = nowMs - this.#busyAt >= this.#settleMs && this.#beatAt! > this.#busyAt;
    return this.held.size > 0 && isSteady && isQuiet;
  }

  get #settleMs(): number {
    return this.#options.settleMs ?? DEFAULT_SETTLE_MS;
  }

  #isBurst(together: number): boolean {
    return together >= (this.#options.burst ?? DEFAULT_BURST);
  }

  #isDoubtful(together: number, steady: number | undefined, nowMs: number): boolean {
    return steady === undefined || this.steadySince(nowMs) !== steady || this.#isBurst(together);
  }
}
