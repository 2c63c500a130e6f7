import type { Clock } from '@clustermesh/runtime';

/** A token bucket that may be overdrawn by one batch: `take` waits for the debt of those before, never for its own. */
export class RateLimit {
  readonly #clock: Clock;
  #perSecond = Number.POSITIVE_INFINITY;
  #tokens = 0;
  #at: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#at = clock.nowMs();
  }

  set perSecond(value: number) {
    if (value === this.#perSecond) return;
    this.#refill();
    this.#perSecond = value;
    this.#tokens = Math.min(this.#tokens, value);
  }

  /** How much may be taken at once without a pause that readers would notice. */
  get burst(): number {
    return Math.max(1, Math.ceil(this.#perSecond / 10));
  }

  async take(count: number, signal: AbortSignal): Promise<void> {
    if (this.#perSecond === Number.POSITIVE_INFINITY) return;
    this.#refill();
    if (this.#tokens < 0) {
      await this.#clock.sleep((-this.#tokens / this.#perSecond) * 1000, signal);
      this.#refill();
    }
    this.#tokens -= count;
  }

  #refill(): void {
    const now = this.#clock.nowMs();
    const earned = ((now - this.#at) / 1000) * this.#perSecond;
    this.#at = now;
    if (this.#perSecond === Number.POSITIVE_INFINITY) this.#tokens = 0;
    // Nothing is saved up: an idle writer does not earn a burst.
    else this.#tokens = Math.min(0, this.#tokens + earned);
  }
}
