/** A peer whose apiserver is dead for longer than any lease, its etcd being well: what is mirrored of it stays. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { HEARTBEAT_KEY } from '@clustermesh/contract';
import { connect, shopManifest, startCluster, type TestCluster } from '../testing/control-plane.ts';

async function mesh(t: TestContext): Promise<{ eu: TestCluster; us: TestCluster }> {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const us = await startCluster(t, { name: 'us', id: 2, nodes: ['n1'] });
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.publishNode('n1', 1, [{ id: 'a', ipv4: '10.2.1.5', identity: 131_100 }]);
  await connect(eu, us);
  await eu.eventually('us', () => statusOf(eu)?.ready);
  return { eu, us };
}
const statusOf = (eu: TestCluster) => eu.plane.mirror.peers().find(({ cluster }) => cluster === 'us');
const mirrored = (eu: TestCluster) => eu.dump('cilium/cache/');

const restart = async (eu: TestCluster) => {
  await eu.stop();
  await eu.start();
  await eu.eventually('us again', () => statusOf(eu)?.families['ip']?.synced);
};

test('F10 a dead writer whose keys have no lease: what it left is followed on, also by a mirror that starts meanwhile', async (t) => {
  const { eu, us } = await mesh(t);
  const before = await mirrored(eu);
  await us.stop();
  const leased = async () => (await us.admin.range('cilium/')).kvs.filter(({ lease }) => lease !== '0');
  await us.eventually('the end of every lease', async () => (await leased()).length === 0);
  await restart(eu);
  assert.deepEqual(await mirrored(eu), before);
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
  await restart(eu);
  await lease.close();
  assert.equal(await us.admin.count('cilium/'), 0);
  await eu.eventually('the reason', () => /has not published its cluster config/.test(statusOf(eu)?.error ?? ''));
  // A row that comes after the deletes: they have been read when it is here.
  const after: Record<string, string> = {};
  for (const [key, value] of [
    ['ip/v1/default/10.2.1.9', '{"IP":"10.2.1.9","HostIP":"172.31.2.11","ID":131100,"Key":0,"Metadata":""}'],
    ['services/v1/us/shop/late', (before['cilium/cache/services/v1/us/shop/web'] ?? '').replace('"web"', '"late"')],
  ] as const) {
    await us.admin.put(`cilium/state/${key}`, value);
    const copy = `cilium/cache/${key.replace('default', 'us')}`;
    await eu.eventually(copy, () => eu.admin.get(copy));
    after[copy] = value;
  }
  assert.deepEqual(await mirrored(eu), { ...before, ...after });
});
