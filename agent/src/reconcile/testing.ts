/** Ops of the reconciler for tests: a map in memory, and one that fails. */
import { MeshError } from '@clustermesh/contract';
import type { MapOps, OpResult } from '../datapath/types.ts';

export interface FakeOps<Row> extends MapOps<Row> {
  readonly rows: Map<string, Row>;
  /** Every call: what, and how many rows. */
  readonly calls: { readonly op: 'list' | 'update' | 'remove'; readonly keys: readonly string[] }[];
}

export function fakeOps<Row>(keyOf: (row: Row) => string, options: { readonly maxRows?: number } = {}): FakeOps<Row> {
  const rows = new Map<string, Row>();
  const calls: FakeOps<Row>['calls'] = [];
  return {
    rows,
    calls,
    async list() {
      calls.push({ op: 'list', keys: [] });
      return new Map(rows);
    },
    async update(wanted) {
      calls.push({ op: 'update', keys: wanted.map(keyOf) });
      return wanted.map((row): OpResult => {
        const key = keyOf(row);
        if (!rows.has(key) && rows.size >= (options.maxRows ?? Number.POSITIVE_INFINITY)) {
          return {
            key,
            error: new MeshError({
              code: 'map-full',
              message: `adding ${key}: the map holds ${rows.size} rows, its maximum`,
            }),
          };
        }
        rows.set(key, row);
        return { key };
      });
    },
    async remove(keys) {
      calls.push({ op: 'remove', keys });
      for (const key of keys) rows.delete(key);
      return keys.map((key) => ({ key }));
    },
  };
}

/** Each row fails, and each call throws, with the given probability; a failed update may nevertheless have been done. */
export function faultyOps<Row>(
  inner: MapOps<Row>,
  keyOf: (row: Row) => string,
  probability: number,
  random: () => number,
): MapOps<Row> {
  const fault = (key: string): OpResult => ({
    key,
    error: new MeshError({ code: 'kernel', message: `injected fault at ${key}` }),
  });
  const strikes = () => random() < probability;
  return {
    async list() {
      if (strikes()) throw new Error('injected fault while listing');
      return inner.list();
    },
    async update(rows) {
      if (strikes()) throw new Error('injected fault in update');
      const good = rows.filter(() => !strikes());
      const results = new Map((await inner.update(good)).map((result) => [result.key, result]));
      return rows.map((row) => (strikes() ? fault(keyOf(row)) : (results.get(keyOf(row)) ?? fault(keyOf(row)))));
    },
    async remove(keys) {
      if (strikes()) throw new Error('injected fault in remove');
      const good = keys.filter(() => !strikes());
      await inner.remove(good);
      return keys.map((key) => (good.includes(key) ? { key } : fault(key)));
    },
  };
}

/** A clock that stands still until it is moved. */
export function manualClock() {
  let now = 0;
  return {
    nowMs: () => now,
    wallMs: () => now,
    sleep: async () => {},
    advance(ms: number) {
      now += ms;
    },
  };
}
