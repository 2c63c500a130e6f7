import type { HoldDeletes } from './types.ts';

const DEFAULT_SILENT_AFTER_MS = 120_000;
const DEFAULT_BURST = 10;
const DEFAULT_SETTLE_MS = 60_000;

/** What is known of the canary at the moment of a decision. */
export interface SeenCanary {
  readonly modRevision: number;
  readonly epoch: number;
}

/**
 * Rows of a leased foreign writer go by themselves when it dies, or is cut off from its own etcd: that its keys are gone then says
 * nothing about what they stand for. Deletes of leased rows are held back while the writer is silent, and when so many come at one
 * revision that only a lease can have ended. They are let go by a complete list that was made after the writer was heard again, and
 * only once it has had the time to write everything (its canary is new, or its heartbeat has been steady for a while). Pure but for
 * the ports.
 */
export class Holdback {
  readonly held = new Set<string>();
  readonly #options: HoldDeletes;
  #heldAt = 0;
  #heldRevision = 0;
  #heldEpoch = 0;
  /** Since when the heartbeat is steady again. */
  #backSince: number | undefined;

  constructor(options: HoldDeletes) {
    this.#options = options;
  }

  isSilent(nowMs: number): boolean {
    const at = this.#options.lastHeartbeatAt();
    return at === undefined || nowMs - at > (this.#options.silentAfterMs ?? DEFAULT_SILENT_AFTER_MS);
  }

  /** `together`: leased rows deleted at the revision of this one. */
  wants(revision: number, together: number, nowMs: number): boolean {
    return (
      this.isSilent(nowMs) ||
      together >= (this.#options.burst ?? DEFAULT_BURST) ||
      (this.held.size > 0 && revision === this.#heldRevision)
    );
  }

  hold(key: string, revision: number, epoch: number, nowMs: number): void {
    this.held.add(key);
    this.#heldAt = nowMs;
    this.#heldRevision = epoch === this.#heldEpoch ? Math.max(this.#heldRevision, revision) : revision;
    this.#heldEpoch = epoch;
    this.#backSince = undefined;
  }

  /** Asked now and then: the time that the heartbeat has been back is measured between the calls. */
  mayRelease(nowMs: number, canary: SeenCanary | undefined): boolean {
    const at = this.#options.lastHeartbeatAt();
    if (at === undefined || at <= this.#heldAt || this.isSilent(nowMs)) {
      this.#backSince = undefined;
      return false;
    }
    this.#backSince ??= nowMs;
    if (canary !== undefined && (canary.epoch !== this.#heldEpoch || canary.modRevision > this.#heldRevision))
      return true;
    return nowMs - this.#backSince >= (this.#options.settleMs ?? DEFAULT_SETTLE_MS);
  }
}
