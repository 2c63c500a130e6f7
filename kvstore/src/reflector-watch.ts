import { MeshError, messageOf } from '@clustermesh/contract';
import { Delivery } from './delivery.ts';
import { Comparisons } from './reflector-comparisons.ts';
import type { ReflectorContext } from './reflector-context.ts';
import { eventTaker } from './reflector-events.ts';
import { checkLimits } from './reflector-limits.ts';
import type { Cursor, ResumePoint } from './reflector-resume.ts';

const DEFAULT_MAX_QUEUED_KEYS = 200_000;
/** A session that watched for this long was a good one: the next failure starts with the shortest delay again. */
const STABLE_AFTER_MS = 2_000;
const HOLD_CHECK_MS = 500;

/**
 * Watches on from a complete list, or (`resumed`) from where a session before this one was; that one counts only once a list has
 * shown the same. Ends by throwing; `keep` is told where the next session could go on, if anywhere.
 */
export async function follow(
  context: ReflectorContext,
  { header, canary }: ResumePoint,
  session: AbortController,
  resumed: boolean,
  keep: (cursor: Cursor) => void,
): Promise<void> {
  const { options, index, progress, holdback, clock } = context;
  const { etcd, prefix, log } = options;
  /** All events up to this revision have been taken; negative: some were lost. */
  let taken = header.revision;
  const { epoch } = etcd;
  let isVerified = !resumed;
  const since = clock.nowMs();
  const delivery = new Delivery({
    sink: options.sink,
    maxQueuedKeys: options.maxQueuedKeys ?? DEFAULT_MAX_QUEUED_KEYS,
    onApplied: (revision) => {
      if (isVerified) progress.applied(revision);
    },
    onError(error) {
      progress.refused(messageOf(error));
      session.abort(error);
    },
  });
  const comparisons = new Comparisons(context, delivery, header, session.signal);
  const take = eventTaker(context, { header, epoch, delivery, comparisons });

  async function verify(): Promise<void> {
    const listed = await comparisons.verify().catch((error) => {
      if (error instanceof MeshError && error.code === 'conflict') taken = -1;
      throw error;
    });
    // The list was held against what has been seen, not against what the sink has taken.
    await delivery.idle();
    session.signal.throwIfAborted();
    // Events up to the revision of the list may still be on their way, but they are in the list, which shows nothing new.
    isVerified = true;
    progress.resumed();
    progress.complete({ ...listed, revision: Math.max(listed.revision, taken) });
    log.debug({ prefix, rows: index.size, from: header.revision }, 'resumed, and found complete');
  }

  async function every(intervalMs: number, act: () => Promise<void>): Promise<void> {
    if (intervalMs <= 0) return;
    for (;;) {
      await clock.sleep(intervalMs, session.signal);
      if (session.signal.aborted) return;
      try {
        await act();
      } catch (error) {
        if (!session.signal.aborted) log.debug({ prefix, err: error }, 'comparing with a list did not succeed');
      }
    }
  }

  if (resumed) progress.setState({ name: 'verifying', from: header.revision });
  const loops: Promise<void>[] = [];
  const startLoops = () => {
    loops.push(every(options.resyncIntervalMs ?? 0, () => comparisons.resync()));
    if (holdback !== undefined) loops.push(every(HOLD_CHECK_MS, () => comparisons.release()));
  };
  if (!resumed) startLoops();
  try {
    await etcd.watch({
      prefix,
      startRevision: header.revision + 1,
      connection: header.connection,
      signal: session.signal,
      onCreated: () => {
        progress.alive();
        if (!resumed || loops.length > 0) return;
        loops.push(verify().then(startLoops, (error) => session.abort(error)));
      },
      onProgress: () => progress.alive(),
      onEvents: (events, response, complete) => {
        progress.alive();
        take(events);
        const newest = events.at(-1)?.modRevision ?? 0;
        // A revision that is still being sent in parts is not applied yet, whatever the header says.
        const whole = complete ? newest : newest - 1;
        taken = taken < 0 ? taken : Math.max(taken, whole);
        delivery.commit(whole);
        if (complete && isVerified) progress.seen(response.revision);
        try {
          checkLimits(options, index.size, index.bytes);
        } catch (error) {
          session.abort(error);
        }
      },
    });
    session.signal.throwIfAborted();
  } finally {
    if (clock.nowMs() - since >= STABLE_AFTER_MS) progress.stable();
    const steady = holdback?.steadySince(clock.nowMs());
    // Stale from now on, also while a slow sink finishes what it has.
    progress.setState({ name: 'reconnecting', attempt: progress.attempt });
    session.abort(new MeshError({ code: 'cancelled', message: `watching ${prefix}: session ended` }));
    await Promise.all(loops);
    const undelivered = await delivery.end();
    for (const key of undelivered) index.invalidate(key);
    const { anchor } = index;
    if (undelivered.length === 0 && taken > 0 && anchor !== undefined) {
      const canaryCreatedAt = canary?.createRevision;
      keep({ revision: taken, clusterId: header.clusterId, epoch, anchor, canaryCreatedAt, steady });
    }
  }
}
