import { setMaxListeners } from 'node:events';
import { cancelled } from './errors.ts';

/**
 * A controller that also aborts with its parent, until released. AbortSignal.any would keep every child reachable from a long-lived
 * parent (nodejs/node#54614), and sessions come and go for as long as a daemon runs.
 */
export function childOf(parent: AbortSignal): { readonly controller: AbortController; release(): void } {
  const controller = new AbortController();
  const onAbort = () => controller.abort(parent.reason);
  setMaxListeners(0, parent, controller.signal);
  if (parent.aborted) onAbort();
  else parent.addEventListener('abort', onAbort, { once: true });
  return { controller, release: () => parent.removeEventListener('abort', onAbort) };
}

/** Stops waiting (not the work, which others may share) when the signal aborts. */
export async function abortable<T>(work: Promise<T>, signal: AbortSignal | undefined, attempted: string): Promise<T> {
  if (signal === undefined) return work;
  if (signal.aborted) throw cancelled(attempted);
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(cancelled(attempted));
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort!);
  }
}
