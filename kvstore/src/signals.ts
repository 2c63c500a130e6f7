import { setMaxListeners } from 'node:events';

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
