/** How far each family of each cluster is, and what of that changed since the last pass: work in proportion to changes. */
import type { AgentFamily } from '@clustermesh/contract';
import type { Clock } from '@clustermesh/runtime';
import type { FamilyState, RowAction } from './family.ts';

export interface FamilyProgress extends FamilyState {
  readonly peer: string;
  readonly family: string;
}

/** A row of a peer that changed. */
export interface Arrival {
  readonly peer: string;
  readonly family: string;
  readonly action: RowAction;
  /** When it was received, on the monotonic clock. */
  readonly receivedMs: number;
  /** When it changed at its source, on the wall clock there. Undefined if that is not said: by deletes, identities, slices, plain Cilium. */
  readonly changedMs: number | undefined;
}

/** What happened since it was last asked for. */
export interface MeshChanges {
  readonly families: readonly FamilyProgress[];
  /** Families that are no longer followed: `us/ip`. One of `families` may be followed again since. */
  readonly left: readonly string[];
  readonly arrivals: readonly Arrival[];
}

export interface Progress {
  follow(peer: string, family: string, state: () => FamilyState): void;
  /** None of the cluster's families is followed any more. */
  unfollow(peer: string): void;
  touch(peer: string, family: string): void;
  touchAll(): void;
  /** A complete list of the family has been applied. */
  synced(peer: string, family: string): void;
  arrived(peer: string, family: AgentFamily, action: RowAction, changedAt: string | undefined): void;
  all(): FamilyProgress[];
  /** Families that were never complete: `ip of us`, the first of them, and how many more there are. */
  unsynced(): string[];
  isSynced(): boolean;
  takeChanges(): MeshChanges;
  /** Changes that `takeChanges` has not taken yet. */
  waiting(): readonly Arrival[];
}

/** Enough for a minute of changes; more are not timed. */
const MOST_ARRIVALS = 50_000;

/** A mesh may have a thousand families to wait for; a probe that fails is read by people. */
const MOST_NAMED = 10;

export function createProgress(clock: Clock): Progress {
  const followed = new Map<string, { readonly peer: string; readonly family: string; state(): FamilyState }>();
  const familiesOf = new Map<string, Set<string>>();
  const touched = new Set<string>();
  const unsynced = new Set<string>();
  let left: string[] = [];
  let arrivals: Arrival[] = [];

  return {
    follow(peer, family, state) {
      const key = `${peer}/${family}`;
      followed.set(key, { peer, family, state });
      touched.add(key);
      unsynced.add(key);
      const families = familiesOf.get(peer);
      if (families === undefined) familiesOf.set(peer, new Set([key]));
      else families.add(key);
    },
    unfollow(peer) {
      const keys = familiesOf.get(peer);
      if (keys === undefined) return;
      for (const key of keys) for (const set of [followed, touched, unsynced]) set.delete(key);
      familiesOf.delete(peer);
      left.push(...keys);
    },
    touch: (peer, family) => void touched.add(`${peer}/${family}`),
    touchAll() {
      for (const key of followed.keys()) touched.add(key);
    },
    synced(peer, family) {
      const key = `${peer}/${family}`;
      touched.add(key);
      unsynced.delete(key);
    },
    arrived(peer, family, action, changedAt) {
      if (arrivals.length >= MOST_ARRIVALS) return;
      const stamped = changedAt === undefined ? Number.NaN : Date.parse(changedAt);
      const changedMs = Number.isNaN(stamped) ? undefined : stamped;
      arrivals.push({ peer, family, action, receivedMs: clock.nowMs(), changedMs });
    },
    all: () => [...followed.values()].map(({ peer, family, state }) => ({ peer, family, ...state() })),
    unsynced() {
      const named: string[] = [];
      for (const key of unsynced) {
        const entry = followed.get(key);
        if (entry !== undefined) named.push(`${entry.family} of ${entry.peer}`);
        if (named.length === MOST_NAMED) break;
      }
      const more = unsynced.size - named.length;
      return more > 0 ? [...named, `${more} more`] : named;
    },
    isSynced: () => unsynced.size === 0,
    waiting: () => arrivals,
    takeChanges() {
      const families = [...touched].flatMap((key) => {
        const entry = followed.get(key);
        return entry === undefined ? [] : [{ peer: entry.peer, family: entry.family, ...entry.state() }];
      });
      const changes = { families, left, arrivals };
      touched.clear();
      left = [];
      arrivals = [];
      return changes;
    },
  };
}
