import type { Clock } from '@clustermesh/runtime';

export interface OncePendingOptions {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly trigger: () => void;
}

/**
 * A trigger some time from now, at most one at a time. Passes ask for the next one in this way, and other things start passes too:
 * were each request a timer of its own, every such pass would add a chain that never ends.
 */
export function oncePending({ clock, signal, trigger }: OncePendingOptions): (ms: number) => void {
  let isPending = false;
  return (ms) => {
    if (isPending) return;
    isPending = true;
    void clock.sleep(ms, signal).then(() => {
      isPending = false;
      if (!signal.aborted) trigger();
    });
  };
}
