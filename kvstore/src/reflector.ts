import { waitForCanary } from './reflector-canary.ts';
import { contextOf } from './reflector-context.ts';
import { measure } from './reflector-limits.ts';
import { type Listed, list } from './reflector-list.ts';
import { type Cursor, findResumePoint } from './reflector-resume.ts';
import { follow } from './reflector-watch.ts';
import { childOf } from './signals.ts';
import type { Reflector, ReflectorOptions } from './types.ts';

const DEFAULT_BACKOFF = { minMs: 50, maxMs: 30_000 };
const DEFAULT_LIMIT_RETRY_MS = 30_000;

/**
 * Keeps a sink equal to what is under a prefix of an etcd: list, then watch, for ever. Rows outlive every failure; a row is removed
 * only by a watch event, or by a *complete* list that no longer has it (and, where the writer keeps a canary, only while that is
 * there: an etcd that was rebuilt is empty long before its writer is back).
 */
export function startReflector(options: ReflectorOptions): Reflector {
  const { etcd, prefix, log, signal, limits } = options;
  const backoff = options.backoff ?? DEFAULT_BACKOFF;
  const context = contextOf(options);
  const { progress, index, clock, holdback } = context;
  /** Where the session that ended last could be gone on with. */
  let cursor: Cursor | undefined;
  const keep = (at: Cursor) => {
    cursor = at;
  };

  async function resumePoint(session: AbortSignal) {
    const from = cursor;
    cursor = undefined;
    if (from === undefined || options.resume === false) return undefined;
    try {
      return await findResumePoint(context, from, session);
    } catch (error) {
      cursor = from;
      throw error;
    }
  }

  /** Once it is there. */
  async function listWithCanary(session: AbortSignal): Promise<Listed> {
    const canary = await waitForCanary(context, session);
    return (await list(context, canary, session))!;
  }

  async function runSession(session: AbortController): Promise<void> {
    if (progress.state.name === 'over-limit') await measure(options, session.signal);
    else progress.setState({ name: 'connecting' });
    const resumed = await resumePoint(session.signal);
    if (resumed !== undefined) return follow(context, resumed, session, true, keep);
    const listed = (await list(context, undefined, session.signal)) ?? (await listWithCanary(session.signal));
    progress.complete(listed.header);
    log.debug({ prefix, rows: index.size, revision: listed.header.revision }, 'list complete');
    return follow(context, listed, session, false, keep);
  }

  async function waitBeforeRetry(): Promise<void> {
    if (progress.state.name === 'over-limit') return clock.sleep(limits?.retryMs ?? DEFAULT_LIMIT_RETRY_MS, signal);
    const delay = Math.min(backoff.minMs * 2 ** Math.min(progress.attempt - 1, 20), backoff.maxMs);
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
        progress.failed(error);
      } finally {
        release();
        session.abort();
      }
      await waitBeforeRetry();
    }
    progress.closed();
  }

  const done = run();
  return {
    status: () => progress.status(holdback?.held.size ?? 0),
    waitSynced: () => progress.waitSynced(),
    done,
  };
}
