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
  restore(rows: ReadonlyMap<string, Row>): void;
  /** What `isSettled` answers may have changed: look at restored rows again. */
  sourcesChanged(): void;
  /** What `isRefused` answers may have changed: look at every row again. */
  rulesChanged(): void;
  flush(into: RowSink<Row>): void;
  restoredCount(): number;
  /** Keys whose best claim was refused, so that another one or none is in force. */
  refusedCount(): number;
}

interface Held<Row> extends Claim<Row> {
  readonly source: string;
}

export function createClaims<Row>(options: {
  /** True when every source that could confirm this restored row has been heard: unclaimed, it is a leftover. */
  readonly isSettled: (row: Row) => boolean;
  /** Claims that may not be made. */
  readonly isRefused?: (row: Row) => boolean;
}): ClaimsProjection<Row> {
  const bySource = new Map<string, readonly Claim<Row>[]>();
  const byKey = new Map<string, Held<Row>[]>();
  let restored = new Map<string, Row>();
  let dirty = new Set<string>();
  const refused = new Set<string>();

  /** The best claim that may be made. */
  function winner(key: string): Held<Row> | undefined {
    let best: Held<Row> | undefined;
    refused.delete(key);
    for (const claim of byKey.get(key) ?? []) {
      if (options.isRefused?.(claim.row) === true) {
        refused.add(key);
        continue;
      }
      if (best === undefined || claim.rank < best.rank || (claim.rank === best.rank && claim.source < best.source))
        best = claim;
    }
    return best;
  }

  function withdraw(source: string, key: string): void {
    const rest = byKey.get(key)?.filter((claim) => claim.source !== source) ?? [];
    if (rest.length > 0) byKey.set(key, rest);
    else byKey.delete(key);
    dirty.add(key);
  }

  return {
    setClaims(source, claims) {
      for (const claim of bySource.get(source) ?? []) withdraw(source, claim.key);
      if (claims.length === 0) {
        bySource.delete(source);
        return;
      }
      bySource.set(source, claims);
      for (const claim of claims) {
        const held = byKey.get(claim.key) ?? [];
        held.push({ ...claim, source });
        byKey.set(claim.key, held);
        dirty.add(claim.key);
      }
    },
    restore(rows) {
      restored = new Map(rows);
      for (const key of restored.keys()) dirty.add(key);
    },
    sourcesChanged() {
      for (const key of restored.keys()) dirty.add(key);
    },
    rulesChanged() {
      for (const key of byKey.keys()) dirty.add(key);
    },
    flush(into) {
      const keys = dirty;
      dirty = new Set();
      for (const key of keys) {
        const old = restored.get(key);
        if (old !== undefined && options.isSettled(old)) restored.delete(key);
        const row = winner(key)?.row ?? restored.get(key);
        if (row === undefined) into.delete(key);
        else into.set(key, row);
      }
    },
    restoredCount: () => restored.size,
    refusedCount: () => refused.size,
  };
}
