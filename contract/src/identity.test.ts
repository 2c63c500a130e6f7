import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { clusterOfIdentity, identityRange, identityShift, isIdentityOf, isReservedIdentity } from './identity.ts';

describe('identity ranges', () => {
  const ranges = [
    { max: 255, cluster: 0, first: 256, last: 65_535 },
    { max: 255, cluster: 1, first: 65_536, last: 131_071 },
    { max: 255, cluster: 3, first: 196_608, last: 262_143 },
    { max: 255, cluster: 255, first: 16_711_680, last: 16_777_215 },
    { max: 511, cluster: 0, first: 256, last: 32_767 },
    { max: 511, cluster: 1, first: 32_768, last: 65_535 },
    { max: 511, cluster: 256, first: 8_388_608, last: 8_421_375 },
    { max: 511, cluster: 511, first: 16_744_448, last: 16_777_215 },
  ] as const;
  for (const { max, cluster, first, last } of ranges) {
    it(`cluster ${cluster} of ${max} owns ${first} to ${last} and nothing beside`, () => {
      assert.deepEqual(identityRange(cluster, max), { first, last });
      assert.equal(isIdentityOf(first, cluster, max), true);
      assert.equal(isIdentityOf(last, cluster, max), true);
      assert.equal(isIdentityOf(first - 1, cluster, max), false);
      assert.equal(isIdentityOf(last + 1, cluster, max), false);
    });
  }

  it('finds the cluster of the documented examples', () => {
    assert.equal(clusterOfIdentity(196_915, 255), 3);
    assert.equal(clusterOfIdentity(199_472, 255), 3);
    assert.equal(identityShift(255), 16);
    assert.equal(identityShift(511), 15);
  });

  it('gives no number to two clusters, and fits every number into the 24 bits of a VNI', () => {
    const maximum = fc.constantFrom(255 as const, 511 as const);
    fc.assert(
      fc.property(maximum, fc.integer({ min: 1, max: 511 }), fc.nat(65_535), (max, id, offset) => {
        const cluster = ((id - 1) % max) + 1;
        const { first, last } = identityRange(cluster, max);
        const number = first + (offset % (last - first + 1));
        assert.ok(number < 2 ** 24);
        assert.equal(clusterOfIdentity(number, max), cluster);
        assert.equal(isIdentityOf(number, cluster === max ? 1 : cluster + 1, max), false);
      }),
    );
  });

  it('reserves the numbers below 256', () => {
    assert.equal(isReservedIdentity(255), true);
    assert.equal(isReservedIdentity(256), false);
  });
});
