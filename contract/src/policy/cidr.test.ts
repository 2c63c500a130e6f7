import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { formatPrefix, parsePrefix, prefixContains } from './cidr.ts';

test('a prefix is the same in all its texts', () => {
  for (const [a, b] of [
    ['10.1.2.3/8', '10.0.0.0/8'],
    ['10.1.2.3', '10.1.2.3/32'],
    ['fd00::1', 'fd00:0:0:0:0:0:0:1/128'],
    ['::ffff:10.0.0.1/96', '::ffff:0:0/96'],
    ['fd00:1::/32', 'fd00:1:2:3:4:5:6:7/32'],
    ['::/0', '1::/0'],
  ] as const)
    assert.equal(formatPrefix(parsePrefix(a)!), formatPrefix(parsePrefix(b)!));
  for (const text of ['10.0.0.0/33', 'fd00::/129', '10.0.0/8', 'x', '']) assert.equal(parsePrefix(text), undefined);
});

test('containment is what the bits say', () => {
  const address = fc.integer({ min: 0, max: 0xffffffff });
  const text = (value: number, length: number) =>
    `${value >>> 24}.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}/${length}`;
  const length = fc.integer({ min: 0, max: 32 });
  fc.assert(
    fc.property(address, length, address, length, (a, la, b, lb) => {
      const bits = (value: number, n: number) => (value >>> 0).toString(2).padStart(32, '0').slice(0, n);
      const expected = la <= lb && bits(a, la) === bits(b, la);
      assert.equal(prefixContains(parsePrefix(text(a, la))!, parsePrefix(text(b, lb))!), expected);
    }),
  );
  assert.ok(!prefixContains(parsePrefix('::/0')!, parsePrefix('10.0.0.0/8')!));
});
