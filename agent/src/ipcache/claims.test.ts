import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createClaims } from './claims.ts';

interface Row {
  readonly by: string;
  readonly clusterId: number;
}

const KEYS = ['v', 'w', 'x', 'y', 'z'];
const CLUSTERS = [1, 2];
const clusterOf = (key: string): number => (key < 'x' ? 1 : 2);

const key = fc.constantFrom(...KEYS);
const step = fc.oneof(
  fc.record({ do: fc.constant('claim' as const), key, source: fc.constantFrom('a', 'b'), rank: fc.nat(1) }),
  fc.record({ do: fc.constant('withdraw' as const), key, source: fc.constantFrom('a', 'b') }),
  fc.record({ do: fc.constant('refuse' as const), source: fc.constantFrom('a', 'b', undefined) }),
  fc.record({ do: fc.constant('settle' as const), cluster: fc.constantFrom(...CLUSTERS) }),
  fc.record({ do: fc.constant('flush' as const) }),
);

test('property: the best claim that may be made is in force, else what was restored and not settled since', () => {
  fc.assert(
    fc.property(fc.subarray(KEYS), fc.boolean(), fc.array(step, { maxLength: 40 }), (restored, byCluster, steps) => {
      const settled = new Set<number>();
      let refused: string | undefined;
      const claims = createClaims<Row>({
        isSettled: ({ clusterId }) => settled.has(clusterId),
        ...(byCluster ? { isClusterSettled: (id: number) => settled.has(id) } : {}),
        isRefused: ({ by }) => by === refused,
      });
      const kept = new Map(restored.map((each) => [each, { by: 'kernel', clusterId: clusterOf(each) }]));
      const held = new Map<string, Map<string, { readonly rank: number; readonly row: Row }>>();
      const kernel = new Map<string, Row>(kept);
      const sink = {
        set: (each: string, row: Row) => void kernel.set(each, row),
        delete: (each: string) => void kernel.delete(each),
      };
      claims.restore(kept);

      function flush(): void {
        claims.flush(sink);
        for (const each of [...kept.keys()]) if (settled.has(clusterOf(each))) kept.delete(each);
        const expected = KEYS.flatMap((each) => {
          const may = [...(held.get(each) ?? [])].filter(([source]) => source !== refused);
          const [best] = may.sort(([a, x], [b, y]) => x.rank - y.rank || (a < b ? -1 : 1));
          const row = best?.[1].row ?? kept.get(each);
          return row === undefined ? [] : [[each, row.by]];
        });
        assert.deepEqual([...kernel].map(([each, row]) => [each, row.by]).sort(), expected);
        assert.equal(claims.restoredCount(), kept.size);
        const asked = [...held.values()].filter((sources) => refused !== undefined && sources.has(refused));
        assert.equal(claims.refusedCount(), asked.length);
      }

      for (const each of [...steps, { do: 'flush' as const }]) {
        if (each.do === 'claim') {
          const row = { by: each.source, clusterId: clusterOf(each.key) };
          claims.setClaim(each.source, each.key, { key: each.key, rank: each.rank, row });
          const sources = held.get(each.key) ?? new Map();
          held.set(each.key, sources.set(each.source, { rank: each.rank, row }));
        } else if (each.do === 'withdraw') {
          claims.setClaim(each.source, each.key, undefined);
          held.get(each.key)?.delete(each.source);
        } else if (each.do === 'refuse') {
          refused = each.source;
          claims.rulesChanged();
        } else if (each.do === 'settle') {
          settled.add(each.cluster);
          claims.sourcesChanged(each.cluster);
        } else flush();
      }
    }),
    { numRuns: 2_000 },
  );
});
