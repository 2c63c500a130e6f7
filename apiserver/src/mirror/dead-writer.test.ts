/** A peer whose apiserver is dead for longer than any lease, its etcd being well: what is mirrored of it stays. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { HEARTBEAT_KEY } from '@clustermesh/contract';
import { connect, shopManifest, startCluster, type TestCluster } from '../testing/control-plane.ts';
import { etcdctl } from '../testing/etcdctl.ts';

/** `eu` mirrors `us`, which reaches its own etcd through `link`. */
async function mesh(t: TestContext, config: object = {}) {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const options = { name: 'us', id: 2, nodes: ['n1'], config: { ...config } };
  const first = await startCluster(t, options);
  await first.stop();
  const link = await first.server.proxy();
  const us = await startCluster(t, { ...options, replicaOf: first, endpoint: link.endpoint });
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.publishNode('n1', 1, [{ id: 'a', ipv4: '10.2.1.5', identity: 131_100 }]);
  await connect(eu, us);
  await eu.eventually('us', () => statusOf(eu)?.ready);
  return { eu, us, link };
}
const statusOf = (eu: TestCluster) => eu.plane.mirror.peers().find(({ cluster }) => cluster === 'us');
const mirrored = (eu: TestCluster) => eu.dump('cilium/cache/');

/** Before its time; etcd does the same when it has come. */
const endLease = (cluster: TestCluster, lease: string) =>
  etcdctl(cluster, 'lease', 'revoke', BigInt(lease).toString(16));

const leasesOf = async (cluster: TestCluster, prefix: string) => {
  const leases = (await cluster.admin.range(prefix)).kvs.map(({ lease }) => lease);
  return new Set(leases.filter((lease) => lease !== '0'));
};

/** All leases of what is published, in the order in which they end: the heartbeat has the shortest. */
async function outliveLeases(eu: TestCluster, us: TestCluster): Promise<void> {
  for (const lease of await leasesOf(us, HEARTBEAT_KEY)) await endLease(us, lease);
  await eu.eventually('the silence', () =>
    /its heartbeat has been silent for \d+ s: is its apiserver running\?/.test(statusOf(eu)?.error ?? ''),
  );
  for (const lease of await leasesOf(us, 'cilium/')) await endLease(us, lease);
}

/** Rows that come after all that went: whatever went has been read when they are here. Their copies. */
async function later(eu: TestCluster, us: TestCluster, web: string): Promise<Record<string, string>> {
  const copies: Record<string, string> = {};
  for (const [key, value] of [
    ['ip/v1/default/10.2.1.9', '{"IP":"10.2.1.9","HostIP":"172.31.2.11","ID":131100,"Key":0,"Metadata":""}'],
    ['services/v1/us/shop/late', web.replace('"web"', '"late"')],
  ] as const) {
    await us.admin.put(`cilium/state/${key}`, value);
    const copy = `cilium/cache/${key.replace('default', 'us')}`;
    await eu.eventually(copy, () => eu.admin.get(copy));
    copies[copy] = value;
  }
  return copies;
}

for (const mode of ['leased', 'unleased'] as const)
  for (const fate of ['dead', 'cut off from its etcd'] as const)
    test(`F10 a writer that is ${fate} for longer than any lease (${mode}): its mirror loses nothing, and goes on with it`, async (t) => {
      const config = mode === 'leased' ? { export: { leaseTtlSeconds: 600 } } : {};
      const { eu, us, link } = await mesh(t, config);
      const before = await mirrored(eu);
      if (fate === 'dead') await us.stop();
      else link.blackhole();
      await outliveLeases(eu, us);
      assert.equal((await us.admin.count('cilium/state/')) > 0, mode === 'unleased');
      const after = await later(eu, us, before['cilium/cache/services/v1/us/shop/web'] ?? '');
      assert.deepEqual(await mirrored(eu), { ...before, ...after });
      // Whoever starts meanwhile has never heard it.
      await eu.stop();
      await eu.start();
      await eu.eventually('the reason', () => /there is no heartbeat/.test(statusOf(eu)?.error ?? ''));
      assert.deepEqual(await mirrored(eu), { ...before, ...after });

      if (fate === 'dead') await us.start();
      else link.heal();
      us.manifest('shop.yaml', shopManifest(['10.2.1.6']));
      await eu.eventually('a change', async () =>
        (await mirrored(eu))['cilium/cache/services/v1/us/shop/web']?.includes('10.2.1.6'),
      );
      await eu.eventually('us as it is', () => statusOf(eu)?.ready && statusOf(eu)?.error === undefined);
      await eu.eventually(
        'what is not its own to go',
        async () => JSON.stringify(Object.keys(await mirrored(eu))) === JSON.stringify(Object.keys(before)),
      );
    });

test('F10 a dead writer whose keys go with their lease: the copies stay, and the status says what is missing', async (t) => {
  const { eu, us } = await mesh(t);
  const before = await mirrored(eu);
  await us.stop();
  // As Cilium's apiserver writes: everything has a lease.
  const lease = await us.admin.lease({ ttlSeconds: 600 });
  for (const { key, value } of (await us.admin.range('cilium/')).kvs)
    await us.admin.put(key, value, { lease: lease.id });
  await us.admin.delete(HEARTBEAT_KEY);
  // This mirror has never heard the writer, which is silence without the wait.
  await eu.stop();
  await eu.start();
  // All of it: an address waits for its node.
  await eu.eventually('us again', () => statusOf(eu)?.ready);
  await lease.close();
  assert.equal(await us.admin.count('cilium/'), 0);
  await eu.eventually('the reason', () => /has not published its cluster config/.test(statusOf(eu)?.error ?? ''));
  const after = await later(eu, us, before['cilium/cache/services/v1/us/shop/web'] ?? '');
  assert.deepEqual(await mirrored(eu), { ...before, ...after });
});
