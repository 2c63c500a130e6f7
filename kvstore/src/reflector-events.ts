import type { Delivery } from './delivery.ts';
import type { Comparisons } from './reflector-comparisons.ts';
import { type ReflectorContext, toUpsert } from './reflector-context.ts';
import type { Header, WatchEvent } from './types.ts';

/**
 * Takes the events of one response into the index, and what is news to the sink into the delivery; deletes that may only be a lost
 * lease are held back. `header`: what the session began with; `epoch`: of its etcd.
 */
export function eventTaker(
  { options, index, holdback, clock }: ReflectorContext,
  session: {
    readonly header: Header;
    readonly epoch: number;
    readonly delivery: Delivery;
    readonly comparisons: Comparisons;
  },
): (events: readonly WatchEvent[]) => void {
  const { prefix, log } = options;
  const { header, epoch, delivery, comparisons } = session;

  function isHeld(key: string, modRevision: number, together: number | undefined): boolean {
    if (holdback === undefined || together === undefined || !index.isLeased(key)) return false;
    if (index.revisionOf(key)! >= modRevision || !holdback.wants(modRevision, together, clock.nowMs())) return false;
    if (holdback.held.size === 0)
      log.warn(
        { prefix, revision: modRevision },
        'leased rows end, and perhaps only their lease: kept until their writer has been steady',
      );
    return true;
  }

  return (events) => {
    /** Revision → leased rows that it deletes. */
    const together = new Map<number, number>();
    if (holdback !== undefined) {
      for (const { type, key, modRevision } of events)
        if (type === 'delete' && index.isLeased(key)) together.set(modRevision, (together.get(modRevision) ?? 0) + 1);
    }
    for (const event of events) {
      const { key, modRevision } = event;
      // Neither asked for: another prefix, and what the list has shown already.
      if (!key.startsWith(prefix) || modRevision <= header.revision) continue;
      comparisons.touch(key);
      if (event.type === 'put') {
        if (!index.put(event)) continue;
        holdback?.putAgain(key, clock.nowMs());
        delivery.put(toUpsert(event));
      } else if (isHeld(key, modRevision, together.get(modRevision))) {
        holdback!.hold(key, { revision: modRevision, epoch, nowMs: clock.nowMs() });
      } else if (index.remove(key, modRevision)) delivery.remove(key);
    }
  };
}
