import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { IDENTITIES_PREFIX, identityByIdKey, identityByLabelsKey, isIdentityOf } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { silentLog } from '@clustermesh/runtime';
import { createAllocator } from './allocator.ts';

const LABELS = 'k8s:app=shop;k8s:io.cilium.k8s.policy.cluster=eu;';

describe('identity allocation', () => {
  let server: EtcdServer;
  let etcd: Etcd;
  before(async () => {
    server = await startEtcd();
    etcd = server.client();
  });
  after(() => server.close());
  beforeEach(() => etcd.deletePrefix(IDENTITIES_PREFIX));

  const allocator = (options: { client?: Etcd; random?: () => number; clusterId?: number; max?: 255 | 511 } = {}) =>
    createAllocator({
      etcd: options.client ?? etcd,
      clusterId: options.clusterId ?? 1,
      maxConnectedClusters: options.max ?? 255,
      log: silentLog(),
      ...(options.random === undefined ? {} : { random: options.random }),
    });
  const stored = async (key: string) => (await etcd.get(key))?.value.toString();

  test('writes both keys, and finds them again', async () => {
    const { identity } = await allocator().register(LABELS);
    assert.equal(await stored(identityByIdKey(identity)), LABELS);
    assert.equal(await stored(identityByLabelsKey(LABELS)), String(identity));
    assert.deepEqual(await allocator().register(LABELS), { identity });
  });

  for (const [clusterId, max] of [
    [1, 255],
    [255, 255],
    [1, 511],
    [511, 511],
  ] as const) {
    test(`stays in the range of cluster ${clusterId} of ${max}, at both ends`, async () => {
      for (const random of [0, 1 - Number.EPSILON]) {
        const { identity } = await allocator({ clusterId, max, random: () => random }).register(`k8s:n=${random};`);
        assert.ok(isIdentityOf(identity, clusterId, max), `${identity}`);
      }
    });
  }

  test('two agents racing for one label set end with one number', async () => {
    const clients = [server.client(), server.client(), server.client(), server.client()];
    for (let round = 0; round < 30; round++) {
      const labels = `k8s:round=${round};`;
      const results = await Promise.all(clients.map((client) => allocator({ client }).register(labels)));
      assert.equal(new Set(results.map((result) => result.identity)).size, 1, JSON.stringify(results));
    }
    const { kvs } = await etcd.range(IDENTITIES_PREFIX);
    assert.equal(kvs.length, 60, 'one pair per label set, no halves');
  });

  test('agents racing for one number get different ones', async () => {
    const clients = [server.client(), server.client(), server.client()];
    const results = await Promise.all(
      clients.map((client, i) => allocator({ client, random: () => 0.5 }).register(`k8s:set=${i};`)),
    );
    assert.equal(new Set(results.map((result) => result.identity)).size, 3);
  });

  test('a number that this node has been using is registered again', async () => {
    assert.deepEqual(await allocator().register(LABELS, 65_999), { identity: 65_999 });
  });

  test('a number that other labels have by now is replaced, and the reason given', async () => {
    await allocator().register('k8s:other=1;', 65_999);
    const result = await allocator().register(LABELS, 65_999);
    assert.notEqual(result.identity, 65_999);
    assert.match(result.instead ?? '', /65999 belongs to other labels/);
  });

  test('labels that got another number meanwhile are followed, and the reason given', async () => {
    const { identity } = await allocator().register(LABELS);
    const result = await allocator().register(LABELS, identity === 65_999 ? 66_000 : 65_999);
    assert.equal(result.identity, identity);
    assert.match(result.instead ?? '', /etcd has identity/);
  });

  test('a number of another cluster, however it came to disk, is not used', async () => {
    const result = await allocator().register(LABELS, 131_072);
    assert.ok(isIdentityOf(result.identity, 1, 255));
  });

  test('a pair with one half missing is mended', async () => {
    const { identity } = await allocator().register(LABELS);
    await etcd.delete(identityByIdKey(identity));
    assert.deepEqual(await allocator().register(LABELS, identity), { identity });
    assert.equal(await stored(identityByIdKey(identity)), LABELS);
    await etcd.delete(identityByLabelsKey(LABELS));
    assert.deepEqual(await allocator().register(LABELS, identity), { identity });
    assert.equal(await stored(identityByLabelsKey(LABELS)), String(identity));
  });

  test('a record that names a number of other labels is thrown away', async () => {
    await etcd.put(identityByLabelsKey(LABELS), '70000');
    await etcd.put(identityByIdKey(70_000), 'k8s:other=1;');
    const { identity } = await allocator().register(LABELS);
    assert.notEqual(identity, 70_000);
    await etcd.put(identityByLabelsKey('k8s:x=1;'), 'nonsense');
    assert.ok(isIdentityOf((await allocator().register('k8s:x=1;')).identity, 1, 255));
  });

  test('numbers that are hard to find are found', async () => {
    // Every blind try hits the same taken number.
    await etcd.put(identityByIdKey(65_536 + 32_768), 'k8s:taken=1;');
    const { identity } = await allocator({ random: () => 0.5 }).register(LABELS);
    assert.equal(identity, 65_536 + 32_769);
  });
});
