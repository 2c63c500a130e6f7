import { type Clock, systemClock } from './clock.ts';

export interface RunnerOptions {
  /** One pass. Level-triggered: it compares all that should be with all that is. A throw means "again after retryMs". */
  readonly run: () => Promise<void>;
  /** Least time between two starts, so that a burst of triggers becomes one pass. */
  readonly minIntervalMs: number;
  /** First delay after a failure; doubles up to maxIntervalMs. */
  readonly retryMs: number;
  /** A pass runs at least this often, triggered or not; Infinity switches that off. */
  readonly maxIntervalMs: number;
  readonly onError: (error: unknown, failures: number) => void;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

export interface Runner {
  /** Asks for a pass; calls during a running pass ask for one more. Never blocks. */
  trigger(): void;
  /** Cuts the delay after a failure short: what was missing is back. */
  retryNow(): void;
  /** Asks for a pass that does not wait for `minIntervalMs`: somebody cannot go on without it. */
  hurry(): void;
  /** Resolves when a pass that started after this call has succeeded, or when the runner was stopped. */
  settled(): Promise<void>;
  /** Resolves when the loop has ended (after the signal). */
  readonly ended: Promise<void>;
}

/** Upper bound of the retry delay, and of the wait when maxIntervalMs is Infinity. */
const LONGEST_RETRY_MS = 30_000;

/** The one loop of the project: min, retry and max interval, coalesced triggers, injected clock. */
export function startRunner(options: RunnerOptions): Runner {
  const clock = options.clock ?? systemClock;
  let wanted = 0;
  let done = 0;
  let wake: (() => void) | undefined;
  let cutDelay: (() => void) | undefined;
  let cutRest: (() => void) | undefined;
  let isHurried = false;
  let waiters: { readonly after: number; readonly resolve: () => void }[] = [];

  const trigger = () => {
    wanted++;
    const first = wake;
    // Once is enough, and an abort is dear (it builds an exception): triggers come by the hundred thousand.
    wake = undefined;
    first?.();
  };

  async function waitForWork(maxMs: number): Promise<void> {
    if (wanted > done || options.signal.aborted) return;
    const woken = new AbortController();
    const onAbort = () => woken.abort();
    wake = onAbort;
    options.signal.addEventListener('abort', onAbort, { once: true });
    await clock.sleep(Math.min(maxMs, 2 ** 31 - 1), woken.signal);
    options.signal.removeEventListener('abort', onAbort);
    wake = undefined;
  }

  /** Until `ms` are over, or what `cuttable` was told is called. */
  async function pause(ms: number, cuttable: (cut: (() => void) | undefined) => void): Promise<void> {
    if (options.signal.aborted) return;
    const ended = new AbortController();
    const cut = () => ended.abort();
    cuttable(cut);
    options.signal.addEventListener('abort', cut, { once: true });
    await clock.sleep(ms, ended.signal);
    options.signal.removeEventListener('abort', cut);
    cuttable(undefined);
  }
  const delay = (ms: number) =>
    pause(ms, (cut) => {
      cutDelay = cut;
    });
  const rest = (ms: number) =>
    pause(ms, (cut) => {
      cutRest = cut;
    });

  async function loop(): Promise<void> {
    let failures = 0;
    while (!options.signal.aborted) {
      await waitForWork(options.maxIntervalMs);
      if (options.signal.aborted) break;
      const target = wanted;
      const startedAt = clock.nowMs();
      isHurried = false;
      try {
        await options.run();
        failures = 0;
        done = target;
        const satisfied = waiters.filter((waiter) => waiter.after <= target);
        waiters = waiters.filter((waiter) => waiter.after > target);
        for (const waiter of satisfied) waiter.resolve();
        const left = options.minIntervalMs - (clock.nowMs() - startedAt);
        if (left > 0 && !isHurried) await rest(left);
      } catch (error) {
        failures++;
        options.onError(error, failures);
        wanted = Math.max(wanted, done + 1);
        await delay(
          Math.min(options.retryMs * 2 ** Math.min(failures - 1, 16), options.maxIntervalMs, LONGEST_RETRY_MS),
        );
      }
    }
    for (const waiter of waiters) waiter.resolve();
    waiters = [];
  }

  const ended = loop();
  return {
    trigger,
    retryNow: () => cutDelay?.(),
    hurry() {
      isHurried = true;
      trigger();
      cutRest?.();
    },
    settled: () =>
      new Promise((resolve) => {
        if (options.signal.aborted) return resolve();
        trigger();
        waiters.push({ after: wanted, resolve });
      }),
    ended,
  };
}
