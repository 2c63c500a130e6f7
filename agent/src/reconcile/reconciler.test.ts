import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { createReconciler } from './reconciler.ts';
import { createTable } from './table.ts';
import { fakeOps, faultyOps, manualClock } from './testing.ts';

interface Row {
  readonly key: string;
  readonly value: number;
}
const keyOf = (row: Row) => row.key;
const equal = (a: Row, b: Row) => a.key === b.key && a.value === b.value;

function rig(options: { maxRows?: number; batchSize?: number } = {}) {
  const clock = manualClock();
  const table = createTable<Row>({ name: 'test', equal });
  const ops = fakeOps(keyOf, options);
  const reconciler = createReconciler({
    table,
    ops,
    clock,
    ...(options.batchSize === undefined ? {} : { batchSize: options.batchSize }),
  });
  const want = (key: string, value: number) => table.set(key, { key, value });
  const held = () => Object.fromEntries([...ops.rows].map(([key, row]) => [key, row.value]));
  return { clock, table, ops, reconciler, want, held };
}

test('a pass brings the kernel to what is desired, and a second one does nothing', async () => {
  const r = rig();
  r.want('a', 1);
  r.want('b', 2);
  await r.reconciler.pass();
  r.want('a', 3);
  r.table.delete('b');
  await r.reconciler.pass();
  assert.deepEqual(r.held(), { a: 3 });
  assert.deepEqual(r.table.counts(), { pending: 0, done: 1, error: 0 });
  const calls = r.ops.calls.length;
  r.want('a', 3);
  await r.reconciler.pass();
  assert.equal(r.ops.calls.length, calls);
});

test('rows go in batches', async () => {
  const r = rig({ batchSize: 10 });
  for (let i = 0; i < 25; i++) r.want(`row-${i}`, i);
  await r.reconciler.pass();
  assert.deepEqual(
    r.ops.calls.map((call) => call.keys.length),
    [10, 10, 5],
  );
});

test('rows taken over from the kernel are not written again', async () => {
  const r = rig();
  r.ops.rows.set('a', { key: 'a', value: 1 });
  r.table.seed('a', { key: 'a', value: 1 });
  r.want('a', 1);
  await r.reconciler.pass();
  assert.deepEqual(r.ops.calls, []);
});

test('a row that changes while it is written stays pending and is written again', async () => {
  const r = rig();
  r.want('a', 1);
  const update = r.ops.update;
  r.ops.update = async (rows) => {
    r.ops.update = update;
    const results = await update(rows);
    r.want('a', 2);
    return results;
  };
  await r.reconciler.pass();
  assert.equal(r.table.get('a')?.status, 'pending');
  await r.reconciler.pass();
  assert.deepEqual(r.held(), { a: 2 });
  assert.equal(r.table.get('a')?.status, 'done');
});

test('a row that is wanted again while it is removed comes back', async () => {
  const r = rig();
  r.want('a', 1);
  await r.reconciler.pass();
  r.table.delete('a');
  const remove = r.ops.remove;
  r.ops.remove = async (keys) => {
    const results = await remove(keys);
    r.want('a', 1);
    return results;
  };
  await r.reconciler.pass();
  await r.reconciler.pass();
  assert.deepEqual(r.held(), { a: 1 });
});

describe('a full map', () => {
  test('costs only the rows that do not fit, and says so', async () => {
    const r = rig({ maxRows: 2 });
    for (const [i, key] of ['a', 'b', 'c'].entries()) r.want(key, i);
    await r.reconciler.pass();
    assert.deepEqual(r.held(), { a: 0, b: 1 });
    assert.deepEqual(r.table.counts(), { pending: 0, done: 2, error: 1 });
    assert.equal(r.table.errors()[0]?.error.code, 'map-full');
  });

  test('recovers by itself when room returns', async () => {
    const r = rig({ maxRows: 2 });
    for (const [i, key] of ['a', 'b', 'c'].entries()) r.want(key, i);
    await r.reconciler.pass();
    r.table.delete('a');
    await r.reconciler.pass();
    r.clock.advance(60_000);
    await r.reconciler.pass();
    assert.deepEqual(r.held(), { b: 1, c: 2 });
    assert.deepEqual(r.table.counts(), { pending: 0, done: 2, error: 0 });
  });

  test('takes a replacement in the pass that makes room for it', async () => {
    const r = rig({ maxRows: 1 });
    r.want('old', 1);
    await r.reconciler.pass();
    r.want('new', 2);
    r.table.delete('old');
    await r.reconciler.pass();
    assert.deepEqual(r.held(), { new: 2 });
  });
});

test('a failed row is left alone until its time comes', async () => {
  const r = rig({ maxRows: 0 });
  r.want('a', 1);
  await r.reconciler.pass();
  const calls = r.ops.calls.length;
  await r.reconciler.pass();
  assert.equal(r.ops.calls.length, calls);
  assert.equal(r.table.nextRetryAtMs(), 100);
  r.clock.advance(100);
  await r.reconciler.pass();
  assert.equal(r.ops.calls.length, calls + 1);
  assert.equal(r.table.nextRetryAtMs(), 300);
});

describe('the check against the kernel', () => {
  test('mends rows that were changed, removed or added behind our back', async () => {
    const r = rig();
    r.want('changed', 1);
    r.want('lost', 2);
    r.want('same', 3);
    await r.reconciler.pass();
    r.ops.rows.set('changed', { key: 'changed', value: 99 });
    r.ops.rows.delete('lost');
    r.ops.rows.set('foreign', { key: 'foreign', value: 4 });
    assert.equal(await r.reconciler.check(), 3);
    await r.reconciler.pass();
    assert.deepEqual(r.held(), { changed: 1, lost: 2, same: 3 });
    assert.equal(await r.reconciler.check(), 0);
  });

  test('that cannot read the kernel changes nothing', async () => {
    const r = rig();
    r.want('a', 1);
    await r.reconciler.pass();
    r.ops.list = async () => {
      throw new Error('EPERM');
    };
    await assert.rejects(r.reconciler.check());
    await r.reconciler.pass();
    assert.deepEqual(r.held(), { a: 1 });
  });
});

test('property: with ops that fail at random the kernel still ends as desired', async () => {
  const step = fc.oneof(
    fc.record({ op: fc.constant('set' as const), key: fc.constantFrom('a', 'b', 'c', 'd'), value: fc.nat(5) }),
    fc.record({ op: fc.constant('delete' as const), key: fc.constantFrom('a', 'b', 'c', 'd') }),
    fc.record({ op: fc.constant('pass' as const) }),
    fc.record({ op: fc.constant('check' as const) }),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 40 }),
      fc.infiniteStream(fc.double({ min: 0, max: 1, noNaN: true })),
      async (steps, stream) => {
        const clock = manualClock();
        const table = createTable<Row>({ name: 'test', equal });
        const inner = fakeOps(keyOf);
        let faulty = true;
        const random = () => (faulty ? Number(stream.next().value) : 1);
        const reconciler = createReconciler({ table, ops: faultyOps(inner, keyOf, 0.4, random), clock, batchSize: 2 });
        const desired = new Map<string, number>();
        for (const next of steps) {
          if (next.op === 'set') {
            desired.set(next.key, next.value);
            table.set(next.key, { key: next.key, value: next.value });
          } else if (next.op === 'delete') {
            desired.delete(next.key);
            table.delete(next.key);
          } else if (next.op === 'pass') await reconciler.pass();
          else await reconciler.check().catch(() => undefined);
          clock.advance(50);
        }
        faulty = false;
        clock.advance(60_000);
        await reconciler.check();
        await reconciler.pass();
        assert.deepEqual(new Map([...inner.rows].map(([key, row]) => [key, row.value])), desired);
        assert.deepEqual(table.counts(), { pending: 0, error: 0, done: desired.size });
      },
    ),
    { numRuns: 300 },
  );
});
