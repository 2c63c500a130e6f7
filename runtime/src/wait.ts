import { MeshError, messageOf } from '@clustermesh/contract';
import { type Clock, systemClock } from './clock.ts';

export interface WaitOptions {
  /** What is waited for, as it reads in "timed out after 30 s waiting for …". */
  readonly what: string;
  readonly timeoutMs: number;
  readonly intervalMs?: number;
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
}

/**
 * Polls until `condition` returns something truthy and resolves with it. A throwing condition counts as "not yet"; its last
 * message is part of the timeout error.
 */
export async function waitFor<T>(condition: () => T | Promise<T>, options: WaitOptions): Promise<NonNullable<T>> {
  const clock = options.clock ?? systemClock;
  const deadline = clock.nowMs() + options.timeoutMs;
  let last = '';
  for (;;) {
    try {
      const value = await condition();
      if (value) return value;
    } catch (error) {
      last = `; last error: ${messageOf(error)}`;
    }
    if (options.signal?.aborted)
      throw new MeshError({ code: 'cancelled', message: `cancelled while waiting for ${options.what}` });
    if (clock.nowMs() >= deadline) {
      throw new MeshError({
        code: 'timeout',
        message: `timed out after ${Math.round(options.timeoutMs / 100) / 10} s waiting for ${options.what}${last}`,
      });
    }
    await clock.sleep(options.intervalMs ?? 50, options.signal);
  }
}
