/** Endpoint slices of peers, from etcd to the kernel's tables. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { canaryKey, clusterConfigKey, dataPrefix, endpointSliceKey, localKey, serviceKey } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { loadPrograms } from './datapath/loader.ts';
import { toFamily } from './datapath/rows.ts';
import { openServices } from './datapath/services.ts';
import { openSandbox } from './datapath/testing/sandbox.ts';
import { localService } from './services/testing.ts';
import {
  eventually,
  LOCAL_BACKEND,
  type PeerFixture,
  putSlice,
  startCluster,
  type TestCluster,
  type TestNode,
  writePeer,
} from './testing/cluster.ts';

const US = { name: 'us', id: 2, pods: ['10.2.1.5', '10.2.1.6'] } satisfies PeerFixture;
const BOTH: PeerFixture = { ...US, mode: 'services-and-endpointslices', slices: { 'shop-1': US.pods } };
const ONLY: PeerFixture = { ...BOTH, mode: 'endpointslices-only' };

const backendsAre = (node: TestNode, what: string, ...expected: string[]) =>
  eventually(what, () => JSON.stringify(node.backends()?.sort()) === JSON.stringify(expected.sort()));
const problem = (node: TestNode, pattern: RegExp) =>
  eventually(`a problem like ${pattern}`, () => node.agent.status().problems.find((text) => pattern.test(text)));
const applied = (node: TestNode) => eventually('all to be applied', () => node.agent.status().applied);

async function settled(cluster: TestCluster, peer: PeerFixture): Promise<TestNode> {
  await cluster.writeLocal();
  await cluster.writePeer(peer);
  const node = await cluster.node('n1');
  await applied(node);
  return node;
}

describe('endpoint slices of a peer', { timeout: 180_000 }, () => {
  test('that publishes nothing else are its backends; a slice comes, changes and goes, and all go with the cluster', async () => {
    await using cluster = await startCluster();
    const node = await settled(cluster, ONLY);
    await backendsAre(node, 'the slice', LOCAL_BACKEND, ...US.pods);
    await putSlice(cluster.etcd, US, 'shop-2', ['10.2.1.7'], 'cache');
    await backendsAre(node, 'another slice', LOCAL_BACKEND, ...US.pods, '10.2.1.7');
    await putSlice(cluster.etcd, US, 'shop-1', ['10.2.1.6'], 'cache');
    await backendsAre(node, 'the smaller slice', LOCAL_BACKEND, '10.2.1.6', '10.2.1.7');
    await cluster.etcd.delete(endpointSliceKey('us', 'default', 'shop-2', 'cache'));
    await backendsAre(node, 'the slice to go', LOCAL_BACKEND, '10.2.1.6');
    await cluster.removePeerConfig('us');
    await backendsAre(node, 'the cluster to go', LOCAL_BACKEND);
  });

  test('count only behind their canary, and the agent is not ready before', async () => {
    await using cluster = await startCluster();
    await cluster.writeLocal();
    await cluster.writePeer({ ...ONLY, without: ['endpointslices'] });
    const node = await cluster.node('n1');
    await eventually("the peer's addresses", () => node.kernel.ipcache.rows.has('10.2.1.5/32'));
    await eventually(
      'slices to be missing alone',
      () => node.agent.notReady() === 'not heard yet: endpointslices of us',
    );
    await backendsAre(node, 'the local backend alone', LOCAL_BACKEND);
    await cluster.etcd.put(canaryKey('us', 'endpointslices', 'cache'), 'now');
    await backendsAre(node, 'the backends', LOCAL_BACKEND, ...US.pods);
    await applied(node);
  });

  test('of which a part is known never take the place of the whole legacy value', async () => {
    await using cluster = await startCluster();
    await cluster.writeLocal();
    await cluster.writePeer({ ...BOTH, slices: { 'shop-1': ['10.2.1.7'], 'shop-2': US.pods } });
    let release = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    // The list of the slices stops after the first of them.
    const through = (etcd: Etcd) =>
      Object.create(etcd, {
        pages: {
          value: async function* (...args: Parameters<Etcd['pages']>) {
            const isSlices = args[0] === dataPrefix('us', 'endpointslices', 'cache');
            for await (const page of etcd.pages(...args)) {
              if (isSlices) {
                yield { ...page, kvs: page.kvs.slice(0, 1) };
                await released;
              }
              yield page;
            }
          },
        },
      }) as Etcd;
    const node = await cluster.node('n1', { through });
    await backendsAre(node, 'the legacy value', LOCAL_BACKEND, ...US.pods);
    await eventually('the first slice', () =>
      node.agent.status().families.some((of) => of.peer === 'us' && of.family === 'endpointslices' && of.count === 1),
    );
    // Written by a pass that began after that.
    const marker = localService({ name: 'marker', clusterIPs: ['10.96.0.99'] });
    await cluster.etcd.put(localKey('services', 'default/marker'), JSON.stringify(marker));
    await eventually('the next pass', () => node.kernel.services.rows.has('10.96.0.99:80/TCP'));
    assert.deepEqual(node.backends(), [LOCAL_BACKEND, ...US.pods]);
    release();
    await backendsAre(node, 'all the slices', LOCAL_BACKEND, ...US.pods, '10.2.1.7');
    await applied(node);
  });

  test('that are bad are quarantined one by one, and the last good version stays', async () => {
    await using cluster = await startCluster();
    const node = await settled(cluster, { ...ONLY, slices: { 'shop-1': ['10.2.1.5'], 'shop-2': ['10.2.1.6'] } });
    await cluster.etcd.put(endpointSliceKey('us', 'default', 'shop-1', 'cache'), 'no zstd at all');
    await problem(node, /1 endpointslices of us are quarantined.*zstd/);
    await putSlice(cluster.etcd, { name: 'us', id: 3 }, 'shop-2', ['10.2.1.9'], 'cache');
    await problem(node, /2 endpointslices of us are quarantined.*cluster id 3/);
    assert.deepEqual(node.backends(), [LOCAL_BACKEND, ...US.pods]);
    await putSlice(cluster.etcd, US, 'shop-1', ['10.2.1.7'], 'cache');
    await backendsAre(node, 'the good one again', LOCAL_BACKEND, '10.2.1.7', '10.2.1.6');
  });

  test('are taken where the legacy value is behind, missing or bad, though it is preferred', async () => {
    await using cluster = await startCluster();
    const node = await settled(cluster, { ...BOTH, pods: ['10.2.1.5'] });
    await backendsAre(node, 'more than the legacy value has', LOCAL_BACKEND, ...US.pods);
    await cluster.writePeer({ ...BOTH, pods: ['10.2.1.5', '10.2.1.6', '10.2.1.7'] });
    await backendsAre(node, 'the legacy value', LOCAL_BACKEND, ...US.pods, '10.2.1.7');
    await cluster.writePeer({
      ...BOTH,
      pods: ['10.2.1.5', '10.2.1.6', '10.2.1.7'],
      outgrownAt: '2026-01-01T00:00:00Z',
    });
    await backendsAre(node, 'the slices of an outgrown service', LOCAL_BACKEND, ...US.pods);
    await cluster.etcd.delete(serviceKey('us', 'default', 'shop', 'cache'));
    await eventually('the legacy value to be gone', () =>
      node.agent
        .status()
        .families.some(({ peer, family, count }) => peer === 'us' && family === 'services' && count === 0),
    );
    assert.deepEqual(node.backends(), [LOCAL_BACKEND, ...US.pods]);
    assert.deepEqual(node.agent.status().problems, []);
  });

  test('that it cannot publish leave its outgrown services behind, which is said and counted', async () => {
    await using cluster = await startCluster();
    const node = await settled(cluster, { ...US, outgrownAt: '2026-01-01T00:00:00Z' });
    await backendsAre(node, 'the last version that fitted', LOCAL_BACKEND, ...US.pods);
    await problem(node, /1 services of us have more backends than one value in etcd holds.*default\/shop, since 2026/);
    assert.match(await node.agent.metrics.metrics(), /^clustermesh_agent_services_outgrown\{cluster="us"\} 1$/m);
  });

  test('take over from the legacy family and hand back to it without a backend missing in between', async () => {
    await using cluster = await startCluster();
    const node = await settled(cluster, US);
    const seen = new Set<string>();
    const { update } = node.kernel.services;
    node.kernel.services.update = (rows) => {
      for (const row of rows) seen.add(row.backends.map(({ ip }) => ip).join());
      return update(rows);
    };
    await cluster.writePeer({ ...ONLY, without: ['endpointslices'] });
    await eventually('the slices to be followed', () => familiesOf(node).includes('endpointslices'));
    // The legacy family goes before the slices have been heard: what it said stays until then.
    await cluster.etcd.delete(serviceKey('us', 'default', 'shop', 'cache'));
    await cluster.etcd.put(canaryKey('us', 'endpointslices', 'cache'), 'now');
    await eventually('the slices to be heard', () => synced(node));
    assert.deepEqual(node.backends(), [LOCAL_BACKEND, ...US.pods]);
    await eventually('the family to leave the status', () => !familiesOf(node).includes('services'));
    await cluster.writePeer(US);
    await cluster.etcd.delete(endpointSliceKey('us', 'default', 'shop-1', 'cache'));
    await eventually(
      'the legacy family alone',
      () => familiesOf(node).includes('services') && !familiesOf(node).includes('endpointslices'),
    );
    await eventually('it to be heard', () => node.agent.status().families.every((family) => family.synced));
    assert.deepEqual(node.backends(), [LOCAL_BACKEND, ...US.pods]);
    assert.deepEqual([...seen], []);
  });

  test('are read from its own etcd too', async () => {
    await using cluster = await startCluster();
    await using elsewhere = await startCluster();
    await cluster.writeLocal();
    await writePeer(elsewhere.etcd, ONLY, 'state');
    const dir = mkdtempSync(join(tmpdir(), 'cm-slices-'));
    writeFileSync(join(dir, 'us'), `endpoints: [${elsewhere.server.endpoint}]`);
    const node = await cluster.node('n1', { configDir: dir });
    await backendsAre(node, 'the backends of us', LOCAL_BACKEND, ...US.pods);
    await putSlice(elsewhere.etcd, US, 'shop-2', ['10.2.1.7'], 'state');
    await backendsAre(node, 'another slice', LOCAL_BACKEND, ...US.pods, '10.2.1.7');
    await applied(node);
    rmSync(join(dir, 'us'));
    await backendsAre(node, 'the cluster to go with its file', LOCAL_BACKEND);
    rmSync(dir, { recursive: true });
  });

  test('are all there is, if the agent is told so; a cluster without them is named', async () => {
    await using cluster = await startCluster();
    await cluster.writeLocal();
    await cluster.writePeer(US);
    const node = await cluster.node('n1', { serviceV2: 'only-endpointslice' });
    await problem(node, /cluster us publishes no endpoint slices/);
    await cluster.writePeer({ ...BOTH, pods: [...US.pods, '10.2.1.99'] });
    await backendsAre(node, 'the slices', LOCAL_BACKEND, ...US.pods);
  });
});

const familiesOf = (node: TestNode) =>
  node.agent
    .status()
    .families.flatMap(({ peer, family }) => (peer === 'us' ? [family] : []))
    .sort();
const synced = (node: TestNode) =>
  node.agent
    .status()
    .families.some(({ peer, family, synced }) => peer === 'us' && family === 'endpointslices' && synced);

test('a service of 10 000 backends of a peer is in the maps of this kernel, and follows its slices', {
  timeout: 300_000,
}, async () => {
  const sandbox = await openSandbox();
  const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 1, identityShift: 16, underlayMtu: 0 };
  const { maps, close } = await loadPrograms({
    objects: ['sock', 'pod', 'overlay'],
    pinDir: `${sandbox.bpffs}/big`,
    settings,
  });
  try {
    await using cluster = await startCluster();
    await cluster.writeLocal();
    await cluster.etcd.delete(localKey('endpointslices', 'default/shop-1'));
    const sliceOf = (n: number, third = 2) => Array.from({ length: 100 }, (_, i) => `10.${third}.${n + 1}.${i + 1}`);
    const slices = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [`shop-${n}`, sliceOf(n)]));
    // The legacy value is the last one that fitted.
    await cluster.writePeer({ ...BOTH, slices, outgrownAt: '2026-01-01T00:00:00Z' });
    const services = await openServices(maps);
    const node = await cluster.node('n1', { services });
    await applied(node);
    const inKernel = async () => {
      // What the maps have, in turn with what is written.
      const [row] = (await services.list()).values();
      return new Set(row?.backends.map(({ ip }) => ip));
    };
    assert.deepEqual(await inKernel(), new Set(Object.values(slices).flat()));
    assert.equal((await maps.cm_backends.entries()).length, 10_000);

    const startedAt = performance.now();
    await putSlice(cluster.etcd, US, 'shop-7', sliceOf(7, 3), 'cache');
    const expected = new Set([
      ...Object.entries(slices).flatMap(([name, ips]) => (name === 'shop-7' ? [] : ips)),
      ...sliceOf(7, 3),
    ]);
    await eventually('one changed slice', async () => (await inKernel()).has('10.3.8.1'), { intervalMs: 50 });
    console.log(`      one slice of 100, changed: in the kernel after ${Math.round(performance.now() - startedAt)} ms`);
    assert.deepEqual(await inKernel(), expected);

    await cluster.etcd.delete(clusterConfigKey('us'));
    await eventually('the cluster to be drained', async () => (await inKernel()).size === 0, { intervalMs: 50 });
    await eventually('no backend to be left', async () => (await maps.cm_backends.entries()).length === 0);
  } finally {
    await close();
    await sandbox.close();
  }
});
