import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NeighbourMap } from './neighbour-map.ts';

const KEYS = [
  '10.1.0.1/32',
  '10.1.9.9/32',
  '10.2.0.1/32',
  '10.1',
  '10.',
  '',
  '10.10.0.1/32',
  'fd00::1/128',
  '::ffff:10.1.0.1',
  '.a.b',
  '..',
];

test('is a map: whatever is put, asked for and removed, in whatever order', () => {
  const step = fc.record({ key: fc.constantFrom(...KEYS), value: fc.option(fc.nat(9), { nil: undefined }) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const [map, plain] = [new NeighbourMap<number>(), new Map<string, number>()];
      for (const { key, value } of steps) {
        if (value === undefined) assert.equal(map.delete(key), plain.delete(key));
        else {
          map.set(key, value);
          plain.set(key, value);
        }
        assert.equal(map.size, plain.size);
        for (const each of KEYS) assert.equal(map.get(each), plain.get(each));
      }
      const inOrder = (entries: Iterable<[string, number]>) => [...entries].sort(([a], [b]) => (a < b ? -1 : 1));
      assert.deepEqual(inOrder(map.entries()), inOrder(plain));
      assert.deepEqual([...map.values()].sort(), [...plain.values()].sort());
    }),
  );
});
