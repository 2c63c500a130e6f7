/**
 * Many sources may name one key (an address, a node); the kernel has one row for it. A source claims keys with a rank, the
 * lowest rank wins. Rows that were in the kernel when the agent started are claims too, the weakest: they stay until whoever
 * could confirm them has been heard out. Pure but for its own state.
 */
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
  restore(rows: ReadonlyMap<string, Row>): void;
  /** What `isSettled` answers may have changed for rows of this cluster (default: of all): look at restored rows again. */
  sourcesChanged(clusterId?: number): void;
  /** What `isRefused` answers may have changed: look at every row again. */
  rulesChanged(): void;
  flush(into: RowSink<Row>): void;
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

const isOnly = (held: OneOrMore<{ readonly source: string }>, source: string): boolean =>
  !Array.isArray(held) && (held as { readonly source: string }).source === source;

const compact = <T>(list: readonly T[]): OneOrMore<T> => (list.length === 1 ? list[0]! : list);

export function createClaims<Row extends { readonly clusterId: number }>(options: {
  /** True when every source that could confirm this restored row has been heard: unclaimed, it is a leftover. */
  readonly isSettled: (row: Row) => boolean;
  /** Claims that may not be made. */
  readonly isRefused?: (row: Row) => boolean;
}): ClaimsProjection<Row> {
  const bySource = new Map<string, OneOrMore<string>>();
  const byKey = new Map<string, OneOrMore<Held<Row>>>();
  let restored = new Map<string, Row>();
  const restoredOf = new Map<number, Set<string>>();
  let dirty = new Set<string>();
  const refused = new Set<string>();

  const isRefused = (key: string, row: Row): boolean => {
    if (options.isRefused?.(row) !== true) return false;
    refused.add(key);
    return true;
  };

  /** The best claim that may be made. */
  function winner(key: string): Row | undefined {
    if (refused.size > 0) refused.delete(key);
    const claims = byKey.get(key);
    if (claims === undefined) return undefined;
    if (!Array.isArray(claims)) {
      const { row } = claims as Held<Row>;
      return isRefused(key, row) ? undefined : row;
    }
    let best: Held<Row> | undefined;
    for (const claim of claims as readonly Held<Row>[]) {
      if (isRefused(key, claim.row)) continue;
      if (best === undefined || claim.rank < best.rank || (claim.rank === best.rank && claim.source < best.source))
        best = claim;
    }
    return best?.row;
  }

  function withdraw(source: string, key: string): void {
    const rest = listOf(byKey.get(key)).filter((claim) => claim.source !== source);
    if (rest.length > 0) byKey.set(key, compact(rest));
    else byKey.delete(key);
    dirty.add(key);
  }

  function forget(key: string, row: Row): void {
    restored.delete(key);
    const group = restoredOf.get(row.clusterId);
    group?.delete(key);
    if (group?.size === 0) restoredOf.delete(row.clusterId);
  }

  return {
    setClaims(source, claims) {
      for (const key of listOf(bySource.get(source))) withdraw(source, key);
      if (claims.length === 0) {
        bySource.delete(source);
        return;
      }
      bySource.set(source, compact(claims.map((claim) => claim.key)));
      for (const { key, rank, row } of claims) {
        const held: Held<Row> = { source, rank, row };
        const others = byKey.get(key);
        byKey.set(key, others === undefined ? held : [...listOf(others), held]);
        dirty.add(key);
      }
    },
    setClaim(source, key, claim) {
      const others = byKey.get(key);
      if (claim !== undefined) {
        const held: Held<Row> = { source, rank: claim.rank, row: claim.row };
        if (others === undefined || isOnly(others, source)) byKey.set(key, held);
        else byKey.set(key, [...listOf(others).filter((other) => other.source !== source), held]);
      } else if (others !== undefined) {
        withdraw(source, key);
        return;
      }
      dirty.add(key);
    },
    restore(rows) {
      restored = new Map(rows);
      restoredOf.clear();
      for (const [key, row] of restored) {
        dirty.add(key);
        const group = restoredOf.get(row.clusterId);
        if (group === undefined) restoredOf.set(row.clusterId, new Set([key]));
        else group.add(key);
      }
    },
    sourcesChanged(clusterId) {
      const keys = clusterId === undefined ? restored.keys() : (restoredOf.get(clusterId) ?? []);
      for (const key of keys) dirty.add(key);
    },
    rulesChanged() {
      for (const key of byKey.keys()) dirty.add(key);
    },
    flush(into) {
      const keys = dirty;
      dirty = new Set();
      for (const key of keys) {
        const old = restored.get(key);
        if (old !== undefined && options.isSettled(old)) forget(key, old);
        const row = winner(key) ?? restored.get(key);
        if (row === undefined) into.delete(key);
        else into.set(key, row);
      }
    },
    restoredCount: () => restored.size,
    refusedCount: () => refused.size,
  };
}
