/**
 * Many sources may name one key (an address, a node); the kernel has one row for it. A source claims keys with a rank, the
 * lowest rank wins. Rows that were in the kernel when the agent started are claims too, the weakest: they stay until whoever
 * could confirm them has been heard out. Pure but for its own state.
 */
import { NeighbourMap } from '../reconcile/neighbour-map.ts';
import type { RowSink } from '../reconcile/table.ts';

export interface Claim<Row> {
  readonly key: string;
  readonly row: Row;
  /** Lower wins; equal ranks are ordered by source name, so that the outcome does not depend on the order of arrival. */
  readonly rank: number;
}

export interface ClaimsProjection<Row> {
  /** The whole set of claims of one source object; an empty set withdraws it. */
  setClaims(source: string, claims: readonly Claim<Row>[]): void;
  /**
   * The claim of a source that never claims anything but `key`s by this call: what it claims is not remembered by source, which is
   * most of what a claim costs. Undefined withdraws it.
   */
  setClaim(source: string, key: string, claim: Claim<Row> | undefined): void;
  /** To be called once, before anything is withdrawn. */
  restore(rows: ReadonlyMap<string, Row>): void;
  /** What `isSettled` answers may have changed for rows of this cluster (default: of all): look at restored rows again. */
  sourcesChanged(clusterId?: number): void;
  /** What `isRefused` answers of these keys may have changed (default: of all): the next flush looks at them again. */
  rulesChanged(keys?: Iterable<string>): void;
  flush(into: RowSink<Row>): void;
  /** Keys that the next flush will look at. */
  waiting(): number;
  restoredCount(): number;
  /** Keys whose best claim was refused, so that another one or none is in force. */
  refusedCount(): number;
}

interface Held<Row> {
  readonly source: string;
  readonly rank: number;
  readonly row: Row;
}

/** Nearly every source claims one key, and nearly every key has one claim: a mesh of 300 000 of them must not pay for arrays. */
type OneOrMore<T> = T | readonly T[];

function listOf<T>(held: OneOrMore<T> | undefined): readonly T[] {
  return held === undefined ? [] : Array.isArray(held) ? held : [held as T];
}

const compact = <T>(list: readonly T[]): OneOrMore<T> => (list.length === 1 ? list[0]! : list);

/** All that is known of one key. Marks lie in it, not in sets of keys: each of those costs as much as the claim itself. */
interface Slot<Row> {
  readonly key: string;
  held: OneOrMore<Held<Row>> | undefined;
  restored: Row | undefined;
  /** To be looked at by the next flush. */
  isDirty: boolean;
  /** A claim on it was refused when it was last looked at. */
  isRefused: boolean;
}

export function createClaims<Row extends { readonly clusterId: number }>(options: {
  /** True when every source that could confirm this restored row has been heard: unclaimed, it is a leftover. */
  readonly isSettled: (row: Row) => boolean;
  /** The same of all rows of a cluster; undefined (the default): it depends on the row. */
  readonly isClusterSettled?: (clusterId: number) => boolean | undefined;
  /** Claims that may not be made. */
  readonly isRefused?: (row: Row) => boolean;
}): ClaimsProjection<Row> {
  const bySource = new Map<string, OneOrMore<string>>();
  const slots = new NeighbourMap<Slot<Row>>();
  const restoredOf = new Map<number, Set<Slot<Row>>>();
  let dirty: Slot<Row>[] = [];
  /** Clusters whose restored rows the next flush is to ask about. */
  let changed: Set<number> | 'all' = new Set();
  /** Every key is to be looked at by the next flush: marked then, once, however often it was said. */
  let areRulesChanged = false;
  let restoredCount = 0;
  let refusedCount = 0;

  function touch(slot: Slot<Row>): void {
    if (slot.isDirty) return;
    slot.isDirty = true;
    dirty.push(slot);
  }

  function create(key: string, held: OneOrMore<Held<Row>> | undefined): Slot<Row> {
    const slot: Slot<Row> = { key, held, restored: undefined, isDirty: true, isRefused: false };
    slots.set(key, slot);
    dirty.push(slot);
    return slot;
  }

  /** `others`: those of the claims held so far that stay beside it. */
  function hold(key: string, claim: Held<Row>, others: (held: OneOrMore<Held<Row>>) => readonly Held<Row>[]): void {
    const slot = slots.get(key);
    if (slot === undefined) {
      create(key, claim);
      return;
    }
    const rest = slot.held === undefined ? [] : others(slot.held);
    slot.held = rest.length === 0 ? claim : [...rest, claim];
    touch(slot);
  }

  function withdraw(source: string, key: string): void {
    const slot = slots.get(key);
    if (slot?.held === undefined) return;
    const rest = listOf(slot.held).filter((claim) => claim.source !== source);
    slot.held = rest.length > 0 ? compact(rest) : undefined;
    touch(slot);
  }

  function isRefused(slot: Slot<Row>, row: Row): boolean {
    if (options.isRefused?.(row) !== true) return false;
    if (!slot.isRefused) refusedCount++;
    slot.isRefused = true;
    return true;
  }

  /** The best claim that may be made. */
  function winner(slot: Slot<Row>): Row | undefined {
    if (slot.isRefused) refusedCount--;
    slot.isRefused = false;
    const { held } = slot;
    if (held === undefined) return undefined;
    if (!Array.isArray(held)) {
      const { row } = held as Held<Row>;
      return isRefused(slot, row) ? undefined : row;
    }
    let best: Held<Row> | undefined;
    for (const claim of held as readonly Held<Row>[]) {
      if (isRefused(slot, claim.row)) continue;
      if (best === undefined || claim.rank < best.rank || (claim.rank === best.rank && claim.source < best.source))
        best = claim;
    }
    return best?.row;
  }

  function forget(slot: Slot<Row>, row: Row): void {
    slot.restored = undefined;
    restoredCount--;
    const group = restoredOf.get(row.clusterId);
    group?.delete(slot);
    if (group?.size === 0) restoredOf.delete(row.clusterId);
    // A claim that may be made is in force already, or waits for this flush.
    if (slot.held === undefined || slot.isRefused) touch(slot);
  }

  /** Only here, not when it was announced: of what a source says, much may be announced between two flushes. */
  function forgetSettled(): void {
    const clusters = changed === 'all' ? [...restoredOf.keys()] : changed;
    changed = new Set();
    for (const clusterId of clusters) {
      const isSettled = options.isClusterSettled?.(clusterId);
      if (isSettled === false) continue;
      for (const slot of restoredOf.get(clusterId) ?? [])
        if (slot.restored !== undefined && (isSettled === true || options.isSettled(slot.restored)))
          forget(slot, slot.restored);
    }
  }

  return {
    setClaims(source, claims) {
      for (const key of listOf(bySource.get(source))) withdraw(source, key);
      if (claims.length === 0) {
        bySource.delete(source);
        return;
      }
      bySource.set(source, compact(claims.map((claim) => claim.key)));
      for (const { key, rank, row } of claims) hold(key, { source, rank, row }, listOf);
    },
    setClaim(source, key, claim) {
      if (claim === undefined) withdraw(source, key);
      else
        hold(key, { source, rank: claim.rank, row: claim.row }, (held) =>
          listOf(held).filter((other) => other.source !== source),
        );
    },
    restore(rows) {
      for (const [key, row] of rows) {
        const slot = slots.get(key) ?? create(key, undefined);
        slot.restored = row;
        restoredCount++;
        touch(slot);
        const group = restoredOf.get(row.clusterId);
        if (group === undefined) restoredOf.set(row.clusterId, new Set([slot]));
        else group.add(slot);
      }
      changed = 'all';
    },
    sourcesChanged(clusterId) {
      if (clusterId === undefined) changed = 'all';
      else if (changed !== 'all') changed.add(clusterId);
    },
    rulesChanged(keys) {
      if (keys === undefined) areRulesChanged = true;
      for (const key of keys ?? []) {
        const slot = slots.get(key);
        if (slot?.held !== undefined) touch(slot);
      }
    },
    flush(into) {
      if (areRulesChanged) for (const slot of slots.values()) if (slot.held !== undefined) touch(slot);
      areRulesChanged = false;
      if (restoredCount > 0) forgetSettled();
      const looked = dirty;
      dirty = [];
      for (const slot of looked) {
        slot.isDirty = false;
        const row = winner(slot) ?? slot.restored;
        if (row !== undefined) {
          into.set(slot.key, row);
          continue;
        }
        into.delete(slot.key);
        if (slot.held === undefined) slots.delete(slot.key);
      }
    },
    waiting: () => dirty.length,
    restoredCount: () => restoredCount,
    refusedCount: () => refusedCount,
  };
}
