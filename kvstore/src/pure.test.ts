import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { resolveTargets } from './endpoints.ts';
import { FIRST_PAGE, nextPageSize, prefixEnd, prefixRange } from './ranges.ts';
import { hashOf, RowIndex } from './row-index.ts';
import { type Actual, batches, difference, MAX_BYTES, MAX_OPERATIONS } from './writer-plan.ts';

const row = (key: string, value: string, modRevision: number) => ({ key, value: Buffer.from(value), modRevision });

describe('key ranges', () => {
  it('a prefix ends where its last byte is one higher', () => {
    assert.equal(prefixEnd(Buffer.from('cilium/state/')).toString(), 'cilium/state0');
    assert.equal(prefixEnd(Buffer.from('cilium/.heartbeat')).toString(), 'cilium/.heartbeau');
    assert.deepEqual([...prefixEnd(Buffer.from([1, 255, 255]))], [2]);
    assert.deepEqual([...prefixEnd(Buffer.from([255]))], [0]);
  });

  it('the empty prefix is every key', () => {
    assert.deepEqual(prefixRange(''), { key: Buffer.from([0]), range_end: Buffer.from([0]) });
  });

  it('pages grow with small values, by four at most, and shrink with big ones', () => {
    assert.equal(nextPageSize(FIRST_PAGE, 256, 256 * 100), 1024);
    assert.equal(nextPageSize(16_384, 16_384, 16_384 * 10), 16_384);
    assert.equal(nextPageSize(1024, 1024, 1024 * 8192), 256);
    assert.equal(nextPageSize(256, 2, 2 * (4 << 20)), 1);
  });
});

describe('endpoints', () => {
  const aliases = [{ hostname: 'eu.mesh.cilium.io', ips: ['172.31.1.2', '172.31.1.3'] }];

  it('a name with an alias is connected to at each of its addresses', () => {
    const targets = resolveTargets(['https://eu.mesh.cilium.io:2379'], aliases);
    assert.deepEqual(
      targets.map((target) => [target.address, target.tlsName]),
      [
        ['ipv4:172.31.1.2:2379', 'eu.mesh.cilium.io'],
        ['ipv4:172.31.1.3:2379', 'eu.mesh.cilium.io'],
      ],
    );
  });

  it('an address of an alias is verified as its name, any other as itself', () => {
    assert.equal(resolveTargets(['https://172.31.1.3:2379'], aliases)[0]!.tlsName, 'eu.mesh.cilium.io');
    assert.equal(resolveTargets(['https://10.0.0.1:2379'], aliases)[0]!.tlsName, '10.0.0.1');
    const [v6] = resolveTargets(['https://[fd00::1]:2379/'], []);
    assert.deepEqual([v6!.address, v6!.tlsName], ['ipv6:[fd00::1]:2379', 'fd00::1']);
  });
});

describe('row index', () => {
  it('hashes as MurmurHash3 does', () => {
    const known = { '': 0, a: 0x3c2569b2, abcd: 0x43ed676a, 'Hello, world!': 0xc0363e43 };
    for (const [text, hash] of Object.entries(known)) assert.equal(hashOf(Buffer.from(text)), hash);
  });

  it('a row with the revision of before but another value is a change: another etcd counts anew', () => {
    const index = new RowIndex();
    index.beginList();
    assert.equal(index.listed(row('a', '1', 5)), true);
    index.endList();
    index.beginList();
    assert.equal(index.listed(row('a', '1', 5)), false);
    index.endList();
    index.beginList();
    assert.equal(index.listed(row('a', '2', 5)), true);
  });

  it('an event that is repeated or late changes nothing', () => {
    const index = new RowIndex();
    assert.equal(index.put(row('a', 'new', 7)), true);
    assert.equal(index.put(row('a', 'new', 7)), false);
    assert.equal(index.put(row('a', 'old', 6)), false);
    assert.equal(index.remove('a', 6), false);
    assert.equal(index.remove('a', 8), true);
    assert.equal(index.remove('a', 8), false);
  });

  it('only a list that was seen to its end forgets rows', () => {
    const index = new RowIndex();
    index.put(row('a', '1', 1));
    index.put(row('b', '1', 1));
    index.beginList();
    index.listed(row('a', '1', 1));
    index.beginList();
    index.listed(row('b', '1', 1));
    assert.equal(index.size, 2);
    assert.deepEqual(index.endList(), ['a']);
  });

  it('a row whose delivery failed is delivered or removed by the next list', () => {
    const index = new RowIndex();
    index.put(row('a', '1', 1));
    index.put(row('b', '1', 1));
    index.invalidate('a');
    index.invalidate('b');
    index.beginList();
    assert.equal(index.listed(row('a', '1', 1)), true);
    assert.deepEqual(index.endList(), ['b']);
  });
});

describe('writer plan', () => {
  it('cuts transactions by number and by size, in order', () => {
    const many = Array.from({ length: 250 }, (_, i) => ({ key: `k${i}`, value: Buffer.from('x') }));
    assert.deepEqual(
      [...batches(many)].map((batch) => batch.length),
      [MAX_OPERATIONS, MAX_OPERATIONS, 50],
    );
    assert.deepEqual([...batches(many)].flat(), many);
    const big = [0.6, 0.6, 3, 0.1].map((share, i) => ({ key: `b${i}`, value: Buffer.alloc(MAX_BYTES * share) }));
    assert.deepEqual(
      [...batches(big)].map((batch) => batch.length),
      [1, 1, 1, 1],
    );
  });

  it('finds what is missing, changed, on a foreign lease, or left over', () => {
    const desired = new Map(['same', 'changed', 'missing', 'lease'].map((key) => [key, Buffer.from('x')]));
    const there = (value: string, leaseFits = true): Actual => ({ value: Buffer.from(value), leaseFits });
    const actual = new Map([
      ['same', there('x')],
      ['changed', there('y')],
      ['lease', there('x', false)],
      ['leftover', there('x')],
      ['foreign', there('x')],
    ]);
    const { dirty, applied } = difference(desired, actual, (key) => key === 'leftover');
    assert.deepEqual([...dirty], ['changed', 'missing', 'lease', 'leftover']);
    assert.deepEqual([...applied.keys()], ['same', 'leftover', 'foreign']);
    assert.equal(applied.get('same'), desired.get('same'));
  });
});
