/** What is deleted and created again faster than it is taken in: the last word of each counts, and the kernel keeps nothing of the rest. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { endpointSliceKey, localKey, serviceKey } from '@clustermesh/contract';
import { loadPrograms } from './datapath/loader.ts';
import { toFamily } from './datapath/rows.ts';
import { openServices } from './datapath/services.ts';
import { openSandbox } from './datapath/testing/sandbox.ts';
import { localService } from './services/testing.ts';
import { eventually, LOCAL_BACKEND, type PeerFixture, putSlice, startCluster } from './testing/cluster.ts';

const US: PeerFixture = { name: 'us', id: 2, pods: [], mode: 'endpointslices-only' };
const ROUNDS = 40;

test('F14 services and slices deleted and created again within one batch: the last word is in the kernel, and no id is left over', {
  timeout: 180_000,
}, async () => {
  const sandbox = await openSandbox();
  const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 1, identityShift: 16, underlayMtu: 0 };
  const objects = ['sock', 'pod', 'overlay'] as const;
  const { maps, close } = await loadPrograms({ objects, pinDir: `${sandbox.bpffs}/churn`, settings });
  /** Rows of each map in which ids are handed out. */
  const sizes = async () => {
    const counted = [maps.cm_services, maps.cm_slots, maps.cm_members, maps.cm_backends];
    return Promise.all(counted.map(async (map) => (await map.entries()).length));
  };
  try {
    await using cluster = await startCluster();
    const services = await openServices(maps);
    await cluster.writeLocal();
    await cluster.writePeer(US);
    const node = await cluster.node('n1', { services });
    // Not by services.list(): that one sweeps what was left over.
    const backends = async () =>
      (await services.dumpBackends())
        .map((row) => ('ip' in row ? row.ip : ''))
        .sort()
        .join();
    const settles = (what: string, ...ips: string[]) =>
      eventually(what, async () => (await backends()) === [LOCAL_BACKEND, ...ips].sort().join(), { intervalMs: 50 });
    await settles('the local backend');
    await eventually('all to be applied', () => node.agent.status().applied);
    const before = await sizes();

    const shop = localKey('services', 'default/shop');
    const sliceOf = (round: number) => Array.from({ length: 20 }, (_, i) => `10.2.${round + 1}.${i + 1}`);
    for (let round = 0; round < ROUNDS; round++) {
      for (const name of ['shop-1', 'shop-2']) {
        await cluster.etcd.delete(endpointSliceKey('us', 'default', name, 'cache'));
        if (name === 'shop-1' || round % 2 === 0) await putSlice(cluster.etcd, US, name, sliceOf(round), 'cache');
      }
      await cluster.etcd.delete(shop);
      await cluster.etcd.put(shop, JSON.stringify(localService()));
      await cluster.etcd.put(serviceKey('us', 'default', 'shop', 'cache'), '{}');
      await cluster.etcd.delete(serviceKey('us', 'default', 'shop', 'cache'));
    }
    await settles('the last of each', ...sliceOf(ROUNDS - 1));
    await cluster.etcd.delete(endpointSliceKey('us', 'default', 'shop-1', 'cache'));
    await settles('the local backend again');
    await eventually('nothing more than before', async () => String(await sizes()) === String(before), {
      intervalMs: 50,
    });
    assert.deepEqual(node.agent.status().problems, []);
  } finally {
    await close();
    await sandbox.close();
  }
});
