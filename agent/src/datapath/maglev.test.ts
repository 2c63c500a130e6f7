import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { sortBackends } from '../services/merge.ts';
import { buildMaglev, type MaglevEntry, maglevSlots, maglevSteps, quotas } from './maglev.ts';
import { backendKey } from './rows.ts';

const ip = (n: number): string => `10.${(n >>> 16) & 255}.${(n >>> 8) & 255}.${n & 255}`;

/** Sets of different backends, with the weights that `weight` gives. */
const backendSets = (bounds: { min: number; max: number }, weight: fc.Arbitrary<number> = fc.constant(1)) =>
  fc
    .uniqueArray(fc.nat(0xffffff), { minLength: bounds.min, maxLength: bounds.max, size: 'max' })
    .chain((hosts) =>
      fc.tuple(...hosts.map((host) => weight.map((w): MaglevEntry => ({ id: `1/${ip(host)}:8080`, weight: w })))),
    );

const slotsOf = (table: Uint32Array, n: number): number[] => {
  const slots = new Array<number>(n).fill(0);
  for (const i of table) slots[i]! += 1;
  return slots;
};

const isPrime = (n: number): boolean => {
  for (let i = 2; i * i <= n; i++) if (n % i === 0) return false;
  return n > 1;
};
function primeFrom(n: number): number {
  while (!isPrime(n)) n++;
  return n;
}

/** Part of the slots of the others that lead elsewhere once `gone` is removed. */
function moved(entries: readonly MaglevEntry[], gone: number, slots: number): number {
  const before = buildMaglev(entries, slots);
  const rest = entries.filter((_, i) => i !== gone);
  const after = buildMaglev(rest, slots);
  let surviving = 0;
  let elsewhere = 0;
  before.forEach((owner, slot) => {
    if (owner === gone) return;
    surviving++;
    if (rest[after[slot]!] !== entries[owner]) elsewhere++;
  });
  return elsewhere / surviving;
}

describe('a Maglev table', () => {
  it('gives each backend its weight, exact to a slot', () => {
    const weights = fc.oneof(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 0, max: 65_535 }));
    fc.assert(
      fc.property(backendSets({ min: 1, max: 200 }, weights), fc.constantFrom(251, 1021, 4093), (entries, slots) => {
        const sum = entries.reduce((total, { weight }) => total + weight, 0);
        const table = buildMaglev(entries, slots);
        if (sum === 0) return assert.equal(table.length, 0);
        assert.equal(table.length, slots);
        slotsOf(table, entries.length).forEach((got, i) => {
          const exact = (entries[i]!.weight / sum) * slots;
          assert.ok(Math.abs(got - exact) < 1, `${got} slots, ${exact} due`);
        });
      }),
      { numRuns: 60 },
    );
  });

  it('without weights, no backend has two slots more than another', () => {
    fc.assert(
      fc.property(backendSets({ min: 1, max: 300 }), (entries) => {
        const slots = slotsOf(buildMaglev(entries, maglevSlots(entries.length)), entries.length);
        assert.ok(Math.max(...slots) - Math.min(...slots) <= 1);
      }),
      { numRuns: 40 },
    );
  });

  it('is the same on every node, in whatever order the backends became known there', () => {
    const backends = fc.uniqueArray(
      fc.record({ clusterId: fc.integer({ min: 1, max: 3 }), host: fc.nat(300), port: fc.constantFrom(80, 8080) }),
      { minLength: 2, maxLength: 60, selector: (b) => `${b.clusterId} ${b.host} ${b.port}` },
    );
    const tableOf = (found: readonly { clusterId: number; host: number; port: number }[]): string[] => {
      const sorted = sortBackends(found.map(({ clusterId, host, port }) => ({ clusterId, ip: ip(host), port })));
      const entries = sorted.map((backend, i) => ({ id: backendKey(backend, 'TCP'), weight: 1 + (i % 3) }));
      return [...buildMaglev(entries, 1021)].map((i) => entries[i]!.id);
    };
    fc.assert(
      fc.property(
        backends.chain((found) =>
          fc.tuple(fc.constant(found), fc.shuffledSubarray(found, { minLength: found.length })),
        ),
        ([one, other]) => assert.deepEqual(tableOf(one), tableOf(other)),
      ),
      { numRuns: 40 },
    );
  });

  it('is the one that nodes of other versions have: what it was made of must not change', () => {
    const entries = ['1/10.1.0.1:80', '1/10.1.0.2:80', '2/10.2.0.1:80'].map((id, i) => ({ id, weight: i + 1 }));
    assert.deepEqual([...buildMaglev(entries, 13)], [1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 0, 0]);
  });

  describe('moves few flows of the others when one of N backends is removed', () => {
    const removal = (bounds: { min: number; max: number }) =>
      backendSets(bounds).chain((entries) => fc.tuple(fc.constant(entries), fc.nat(entries.length - 1)));

    it('at most 3.5 %, with as many slots as such a service gets', () => {
      fc.assert(
        fc.property(removal({ min: 2, max: 400 }), ([entries, gone]) => {
          const part = moved(entries, gone, maglevSlots(entries.length));
          assert.ok(part <= 0.035, `${part} of the flows to ${entries.length - 1} backends`);
        }),
        { numRuns: 150 },
      );
    });

    it('at most 3.5 % with 100·N slots, at most 1 % with 1000·N, from 20 backends on', () => {
      fc.assert(
        fc.property(removal({ min: 20, max: 200 }), ([entries, gone]) => {
          for (const [perBackend, bound] of [
            [100, 0.035],
            [1000, 0.01],
          ] as const) {
            const slots = primeFrom(entries.length * perBackend);
            const part = moved(entries, gone, slots);
            assert.ok(part <= bound, `${part} of the flows to ${entries.length - 1} backends, ${slots} slots`);
          }
        }),
        { numRuns: 40 },
      );
    });

    it('with fewer backends, where chance weighs more: the same on average', () => {
      for (const [perBackend, bound] of [
        [100, 0.035],
        [1000, 0.01],
      ] as const) {
        for (let n = 2; n < 20; n++) {
          const parts = Array.from({ length: 60 }, (_, run) => {
            const entries = Array.from({ length: n }, (_, i) => ({ id: `${run}/${i}`, weight: 1 }));
            return moved(entries, run % n, primeFrom(n * perBackend));
          });
          const mean = parts.reduce((sum, part) => sum + part, 0) / parts.length;
          assert.ok(mean <= bound, `${n} backends, ${perBackend} slots each: ${mean}`);
        }
      }
    });

    it('with weights, too', () => {
      const weighted = backendSets({ min: 20, max: 200 }, fc.integer({ min: 1, max: 100 })).chain((entries) =>
        fc.tuple(fc.constant(entries), fc.nat(entries.length - 1)),
      );
      fc.assert(
        fc.property(weighted, ([entries, gone]) => {
          const part = moved(entries, gone, maglevSlots(entries.length));
          assert.ok(part <= 0.035, `${part} of the flows to ${entries.length - 1} backends`);
        }),
        { numRuns: 60 },
      );
    });
  });

  it('has a prime number of slots, at least 100 per backend up to ten thousand backends', () => {
    assert.deepEqual([0, 1].map(maglevSlots), [0, 1]);
    for (let n = 2; n <= 10_000; n = Math.ceil(n * 1.3)) {
      const slots = maglevSlots(n);
      assert.ok(slots >= 100 * n && isPrime(slots), `${n} backends, ${slots} slots`);
    }
    assert.equal(maglevSlots(50_000), 1_048_573);
  });

  it('is made in slices that leave room for others: none takes long, also with thousands of different weights', () => {
    const entries = Array.from({ length: 5_000 }, (_, i) => ({ id: String(i), weight: i + 1 }));
    const steps = maglevSteps(entries, maglevSlots(entries.length));
    let slices = 1;
    while (steps.next().done !== true) slices++;
    assert.ok(slices > 20 && slices < 1_000, `${slices} slices`);
  });
});

it('quotas are exact to a slot and always add up', () => {
  assert.deepEqual(quotas([1, 1, 1], 10), [4, 3, 3]);
  assert.deepEqual(quotas([1, 0, 2], 10), [3, 0, 7]);
  assert.deepEqual(quotas([0, 0], 10), [0, 0]);
  fc.assert(
    fc.property(
      fc.array(fc.nat(1_000_000), { minLength: 1, maxLength: 50 }),
      fc.integer({ min: 1, max: 70_000 }),
      (w, m) => {
        const sum = w.reduce((total, n) => total + n, 0);
        const due = quotas(w, m);
        assert.equal(
          due.reduce((total, n) => total + n, 0),
          sum === 0 ? 0 : m,
        );
      },
    ),
  );
});
