/**
 * Faults of the reliability list that a control plane meets: each injects one, and asserts what is mirrored or published, what the
 * status says, and the recovery. F44 is in replicas.test.ts.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import {
  decodeEndpointSlice,
  decodeEndpointSliceMessage,
  encodeEndpointSlice,
  encodeEndpointSliceMessage,
  type PeerStatus,
} from '@clustermesh/contract';
import { openZstd } from '@clustermesh/runtime';
import {
  connect,
  shopManifest,
  startCluster,
  type TestCluster,
  type TestClusterOptions,
} from './testing/control-plane.ts';

const zstd = openZstd();
const FAMILY_NAMES = ['nodes', 'services', 'identities', 'ip', 'serviceexports', 'endpointslices'] as const;

const statusOf = (cluster: TestCluster, peer: string): PeerStatus | undefined =>
  cluster.plane.mirror.peers().find((status) => status.cluster === peer);
const ready = (cluster: TestCluster, peer: string) =>
  cluster.eventually(`${peer} ready`, () => statusOf(cluster, peer)?.ready && statusOf(cluster, peer)?.connected);
const errorOf = (cluster: TestCluster, peer: string) => statusOf(cluster, peer)?.error ?? '';
const cacheOf = async (cluster: TestCluster, peer: string) =>
  Object.fromEntries(
    Object.entries(await cluster.dump('cilium/cache/')).filter(([key]) => key.includes(`/v1/${peer}/`)),
  );

/** `us` with a node, a pod and a service. */
async function shop(t: TestContext, options: Partial<TestClusterOptions> & { name: string; id: number }) {
  const cluster = await startCluster(t, { nodes: ['n1'], ...options });
  cluster.manifest('shop.yaml', shopManifest([`10.${options.id}.1.5`]));
  await cluster.eventually('bootstrap', () => cluster.plane.bootstrap.ready());
  await cluster.publishNode('n1', 1, [{ id: 'a', ipv4: `10.${options.id}.1.5`, identity: options.id * 65_536 + 300 }]);
  await cluster.eventually('its export', () => cluster.plane.exporter.synced().size === 6);
  return cluster;
}

/** `eu` mirrors `us`, whose apiserver has ended: from here on a stranger writes into its etcd what the test likes. */
async function stranger(t: TestContext, options: { readonly eu?: Partial<TestClusterOptions> } = {}) {
  const [eu, us] = await Promise.all([
    startCluster(t, { name: 'eu', id: 1, ...options.eu }),
    shop(t, { name: 'us', id: 2 }),
  ]);
  await connect(eu, us);
  await ready(eu, 'us');
  await us.stop();
  const good = await cacheOf(eu, 'us');
  assert.equal(Object.keys(good).length, 5, 'a node, an identity, an address, a service, a slice');
  return { eu, us, good };
}

const ipEntry = (ip: string, ID = 131_372, more: object = {}) =>
  JSON.stringify({ IP: ip, Mask: null, HostIP: '172.31.2.11', ID, Key: 0, Metadata: '', ...more });

/** A change that comes after everything else has been seen: written last, so seen last in its family. */
async function after(eu: TestCluster, us: TestCluster, ip: string) {
  await us.admin.put(`cilium/state/ip/v1/default/${ip}`, ipEntry(ip));
  await eu.eventually(`${ip}, written last`, () => eu.admin.get(`cilium/cache/ip/v1/us/${ip}`));
}

const quarantined = (cluster: TestCluster) =>
  Object.fromEntries(
    Object.entries(statusOf(cluster, 'us')?.families ?? {})
      .filter(([, family]) => family.quarantined > 0)
      .map(([name, family]) => [name, family.quarantined]),
  );

test('F19 a second cluster with the numeric id or the name of another, or of this one, is refused; both are named', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const us = await shop(t, { name: 'us', id: 2 });
  await connect(eu, us);
  await ready(eu, 'us');
  const before = await cacheOf(eu, 'us');
  const [twin, mine] = [await shop(t, { name: 'ap', id: 2 }), await shop(t, { name: 'sa', id: 1 })];
  await connect(eu, twin);
  await connect(eu, mine);
  await eu.eventually('the twin refused', () =>
    /cluster id 2 of cluster ap is already used by cluster us, which stays undisturbed/.test(errorOf(eu, 'ap')),
  );
  await eu.eventually('its own id refused', () =>
    /cluster sa has cluster id 1, which is this cluster's own id/.test(errorOf(eu, 'sa')),
  );
  // A name is its file's name, so two peers cannot have one; one that is called otherwise than its file is refused.
  await connect(eu, us, { as: 'other' });
  await eu.eventually('the wrong name refused', () =>
    /is the cluster at .* really called other\?/.test(errorOf(eu, 'other')),
  );
  assert.deepEqual(await cacheOf(eu, 'us'), before);
  assert.equal(errorOf(eu, 'us'), '');
  for (const name of ['ap', 'sa', 'other']) assert.deepEqual(await cacheOf(eu, name), {});
});

test('F20 a cluster id that changes in place: old state is withdrawn whole before the new one comes', async (t) => {
  const { eu, us } = await stranger(t);
  let mixed = false;
  let wasEmpty = false;
  const history = new AbortController();
  t.after(() => history.abort());
  const present = new Set(Object.keys(await eu.dump('cilium/cache/identities/')));
  const { header } = await eu.admin.getWithHeader('cilium/.heartbeat');
  void eu.admin
    .watch({
      prefix: 'cilium/cache/identities/v1/us/',
      startRevision: header.revision + 1,
      signal: history.signal,
      onEvents(events) {
        for (const { type, key } of events) type === 'put' ? present.add(key) : present.delete(key);
        const ids = [...present].map((key) => Number(key.split('/').at(-1)) >> 16);
        mixed ||= new Set(ids).size > 1;
        wasEmpty ||= ids.length === 0;
      },
    })
    .catch(() => {});
  await us.admin.deletePrefix('cilium/state/');
  await us.admin.put('cilium/state/identities/v1/id/458800', 'k8s:io.cilium.k8s.policy.cluster=us;');
  await us.admin.put('cilium/cluster-config/us', '{"id":7,"capabilities":{"syncedCanaries":true}}');
  await eu.eventually('the new id', () => statusOf(eu, 'us')?.ready && statusOf(eu, 'us')?.clusterId === 7);
  assert.deepEqual(Object.keys(await cacheOf(eu, 'us')), ['cilium/cache/identities/v1/us/id/458800']);
  assert.ok(wasEmpty && !mixed, 'identities of two ids were never there at once');
});

test('F22 corrupt values and keys of every family are quarantined one by one; the rest is applied, unknown fields kept', async (t) => {
  const { eu, us, good } = await stranger(t);
  const put = (key: string, value: string | Buffer) => us.admin.put(`cilium/state/${key}`, value);
  const novel = ipEntry('10.2.9.1', 131_372, { Novel: { deep: [1, null] } });
  await put('ip/v1/default/10.2.9.1', novel);
  // Corrupt JSON, wrong types, bad UTF-8, NUL, a name of one MiB, and each of them beside something good.
  await put('ip/v1/default/10.2.9.2', '{"IP":"10.2.9.2"');
  await put('ip/v1/default/10.2.9.3', ipEntry('10.2.9.3').replace('131372', '"many"'));
  await put('ip/v1/default/10.2.9.4', Buffer.from([0x7b, 0xff, 0xfe]));
  await put(`ip/v1/default/${'9'.repeat(1024 * 1024)}`, ipEntry('10.2.9.5'));
  await put('ip/v1/default/10.2.9.6\u0000', ipEntry('10.2.9.6'));
  await put('nodes/v1/us/n2', '[]');
  await put('nodes/v1/us/N 3', '{}');
  await put('services/v1/us/shop/api', 'null');
  await put('services/v1/us/shop/web', '{"cluster":7}');
  await put('identities/v1/id/131373', '');
  await put('identities/v1/id/0x20000', 'k8s:io.cilium.k8s.policy.cluster=us;');
  await put('serviceexports/v1/us/shop/web', '{"cluster":"us","namespace":"shop","name":"web"}');
  await put('endpointslices/v1/us/shop/web-2', 'not a frame');
  await put('endpointslices/v1/us/shop/web-3', Buffer.from(zstd.compress(Buffer.from([0xff, 0xff, 0xff]))));
  await put('endpointslices/v1/us/shop/web-4', Buffer.from(zstd.compress(Buffer.alloc(20 * 1024 * 1024))));
  await after(eu, us, '10.2.9.7');
  const expected = { ip: 5, nodes: 2, services: 2, identities: 2, serviceexports: 1, endpointslices: 3 };
  await eu.eventually(
    'all quarantined',
    () => JSON.stringify(sorted(quarantined(eu))) === JSON.stringify(sorted(expected)),
  );
  assert.deepEqual(await cacheOf(eu, 'us'), {
    ...good,
    'cilium/cache/ip/v1/us/10.2.9.1': novel,
    'cilium/cache/ip/v1/us/10.2.9.7': ipEntry('10.2.9.7'),
  });
  for (const family of FAMILY_NAMES) {
    const reason = statusOf(eu, 'us')?.families[family]?.lastQuarantineReason ?? '';
    assert.ok(reason.length > 10 && reason.length <= 400, `${family}: ${reason}`);
  }
  assert.match(
    statusOf(eu, 'us')?.families['endpointslices']?.lastQuarantineReason ?? '',
    /at most 16777216 are taken/,
  );
  assert.equal(statusOf(eu, 'us')?.ready, true, 'what is bad costs only itself');
  assert.equal(errorOf(eu, 'us'), '');

  await us.admin.deletePrefix('cilium/state/endpointslices/v1/us/shop/web-');
  await put('nodes/v1/us/n2', good['cilium/cache/nodes/v1/us/n1']?.replaceAll('"n1"', '"n2"') ?? '');
  await us.admin.delete('cilium/state/nodes/v1/us/N 3');
  await eu.eventually('recovery', () => !('nodes' in quarantined(eu)) && !('endpointslices' in quarantined(eu)));
});

const sorted = (record: Readonly<Record<string, number>>) =>
  Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1));

/** 10 000 backends in slices of 100, with so many ports that the one value of the legacy family cannot hold them. */
function bigManifest(backends: number): string {
  const ports = [8080, 8443, 9090, 9100].map((port) => `{ name: port-${port}, port: ${port} }`).join(', ');
  const slices = Array.from({ length: Math.ceil(backends / 100) }, (_, slice) => {
    const size = Math.min(100, backends - slice * 100);
    const addresses = Array.from({ length: size }, (_, i) => slice * 100 + i).map(
      (n) => `10.2.${(n >> 8) + 16}.${n & 255}`,
    );
    return `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: big-${slice}, namespace: shop, labels: { kubernetes.io/service-name: big } }
addressType: IPv4
endpoints: [${addresses.map((ip) => `{ addresses: ["${ip}"], zone: us-west-a }`).join(', ')}]
ports: [${ports}]
`;
  });
  return `apiVersion: v1
kind: Service
metadata: { name: big, namespace: shop, annotations: { service.cilium.io/global: "true" } }
spec: { clusterIP: 10.96.0.99, ports: [${ports}] }
---
${slices.join('---\n')}`;
}

test('F23 a service with 10 000 backends travels in slices; its legacy value is refused by name, never truncated', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const us = await shop(t, { name: 'us', id: 2 });
  await connect(eu, us);
  const legacyKey = 'cilium/cache/services/v1/us/shop/big';
  const mirroredBackends = async () => {
    const { kvs } = await eu.admin.range('cilium/cache/endpointslices/v1/us/shop/big-');
    const addresses = kvs.flatMap((kv) => {
      const decoded = decodeEndpointSlice(kv.value, zstd);
      assert.ok(decoded.ok);
      return decoded.value.endpoints.flatMap((endpoint) => endpoint.addresses);
    });
    return new Set(addresses).size;
  };
  us.manifest('big.yaml', bigManifest(200));
  await eu.eventually(
    '200 backends in both forms',
    async () => (await mirroredBackends()) === 200 && (await eu.admin.get(legacyKey)),
  );
  const small = (await eu.admin.get(legacyKey))?.value.toString();

  us.manifest('big.yaml', bigManifest(10_000));
  await eu.eventually('10 000 backends', async () => (await mirroredBackends()) === 10_000);
  assert.match(
    us.plane.local.problems().join('\n'),
    /Service shop\/big: with 10000 backends its value for peers has 2\.\d\d MiB, more than etcd takes \(1\.50 MiB\): readers of services alone keep its last version that fitted; its endpoint slices carry all backends/,
  );
  await eu.eventually('the mark', async () =>
    /outgrownAt/.test((await eu.admin.get(legacyKey))?.value.toString() ?? ''),
  );
  const semantic = (text: string | undefined) => ({ ...JSON.parse(text ?? '{}'), 'x-clustermesh': undefined });
  assert.deepEqual(
    semantic((await eu.admin.get(legacyKey))?.value.toString()),
    semantic(small),
    'the last version that fitted, whole',
  );
  assert.equal(await eu.admin.count('cilium/cache/services/v1/us/'), 2, 'the other service is there');

  us.manifest('big.yaml', bigManifest(300));
  await eu.eventually('it fits again', async () => {
    const text = (await eu.admin.get(legacyKey))?.value.toString() ?? '{"backends":{}}';
    return Object.keys(JSON.parse(text).backends).length === 300;
  });
  assert.doesNotMatch((await eu.admin.get(legacyKey))?.value.toString() ?? '', /outgrownAt/);
  assert.deepEqual(us.plane.local.problems(), []);
});

test("F23 a peer's value beyond 1.5 MiB is quarantined with its size, before this cluster's etcd refuses it", async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const us = await shop(t, { name: 'us', id: 2, etcdArgs: ['--max-request-bytes', String(8 * 1024 * 1024)] });
  await connect(eu, us);
  await ready(eu, 'us');
  await us.stop();
  await us.admin.put('cilium/state/ip/v1/default/10.2.9.1', ipEntry('10.2.9.1', 131_372, { x: 'y'.repeat(2_000_000) }));
  await after(eu, us, '10.2.9.2');
  await eu.eventually('the quarantine', () =>
    /ip "10\.2\.9\.1" has 1\.91 MiB; this cluster's etcd takes 1\.50 MiB/.test(
      statusOf(eu, 'us')?.families['ip']?.lastQuarantineReason ?? '',
    ),
  );
  assert.equal(errorOf(eu, 'us'), '');
});

test('F24 what a hostile peer claims of others, of this cluster or of every host is ignored and reported', async (t) => {
  const { eu, us, good } = await stranger(t);
  const put = (key: string, value: string | Buffer) => us.admin.put(`cilium/state/${key}`, value);
  const hostile: readonly (readonly [family: string, key: string, value: string | Buffer])[] = [
    ['identities', 'identities/v1/id/65836', 'k8s:io.cilium.k8s.policy.cluster=us;'],
    ['identities', 'identities/v1/id/131500', 'k8s:io.cilium.k8s.policy.cluster=eu;'],
    ['identities', 'identities/v1/id/1', 'reserved:host='],
    ['ip', 'ip/v1/default/10.2.9.1', ipEntry('10.2.9.1', 65_836)],
    ['ip', 'ip/v1/default/10.2.9.2', ipEntry('10.2.9.3')],
    ['ip', 'ip/v1/default/127.0.0.1', ipEntry('127.0.0.1')],
    ['ip', 'ip/v1/default/169.254.169.254', ipEntry('169.254.169.254')],
    ['ip', 'ip/v1/default/0.0.0.0/0', ipEntry('0.0.0.0').replace('null', '"AAAAAA=="')],
    ['ip', 'ip/v1/default/10.1.0.5', ipEntry('10.1.0.5')],
    ['ip', 'ip/v1/default/../../../../clustermesh/bootstrap', ipEntry('10.2.9.4')],
    ['nodes', 'nodes/v1/us/n9', good['cilium/cache/nodes/v1/us/n1']?.replace('"Cluster":"us"', '"Cluster":"eu"') ?? ''],
    ['nodes', 'nodes/v1/us/../eu/n1', good['cilium/cache/nodes/v1/us/n1'] ?? ''],
    ['services', 'services/v1/us/shop/other', good['cilium/cache/services/v1/us/shop/web'] ?? ''],
    ['services', 'services/v1/us/../eu/shop/web', good['cilium/cache/services/v1/us/shop/web'] ?? ''],
    [
      'services',
      'services/v1/us/shop/local',
      (good['cilium/cache/services/v1/us/shop/web'] ?? '').replace('"web"', '"local"').replace('10.2.1.5', '127.0.0.1'),
    ],
    ['endpointslices', 'endpointslices/v1/us/shop/stolen', slice({ name: 'stolen', clusterID: 1 })],
    ['endpointslices', 'endpointslices/v1/us/shop/local', slice({ name: 'local' }, '127.0.0.1')],
  ];
  const expected: Record<string, number> = {};
  for (const [family, key, value] of hostile) {
    await put(key, value);
    expected[family] = (expected[family] ?? 0) + 1;
  }
  // Outside of what is its own: never even read.
  await put('nodes/v1/eu/n1', good['cilium/cache/nodes/v1/us/n1'] ?? '');
  await us.admin.put('clustermesh/bootstrap', 'x');
  await after(eu, us, '10.2.9.9');
  await eu.eventually(
    'all ignored',
    () => JSON.stringify(sorted(quarantined(eu))) === JSON.stringify(sorted(expected)),
  );
  assert.deepEqual(await cacheOf(eu, 'us'), { ...good, 'cilium/cache/ip/v1/us/10.2.9.9': ipEntry('10.2.9.9') });
  assert.deepEqual(
    Object.keys(await eu.dump('cilium/cache/')).filter((key) => !key.includes('/v1/us/')),
    [],
  );
  assert.equal((await eu.admin.get('clustermesh/bootstrap'))?.value.toString(), '1');
  assert.equal(eu.plane.mirror.counters().get('us')?.quarantined, hostile.length, 'the alarm counts them');
});

function slice(fields: { readonly name: string; readonly clusterID?: number }, address = '10.2.1.5'): Buffer {
  const value = {
    ...{ cluster: 'us', clusterID: 2, namespace: 'shop', addressType: 'IPv4', ports: [] },
    endpoints: [{ addresses: [address], conditions: {} }],
    ...fields,
  };
  return encodeEndpointSlice(value, zstd);
}

test('F25 a peer beyond its quota is marked and not followed; what is there stays, the others go on, and it recovers', async (t) => {
  const { eu, us, good } = await stranger(t, {
    eu: { config: { peers: { maxKeys: 40, maxBytes: 100_000, retryMs: 200 } } },
  });
  const ap = await shop(t, { name: 'ap', id: 3 });
  await connect(eu, ap);
  await ready(eu, 'ap');
  const flood = async (count: number) => {
    for (let i = 0; i < count; i++)
      await us.admin.put(`cilium/state/ip/v1/default/10.2.8.${i}`, ipEntry(`10.2.8.${i}`));
  };
  await flood(100);
  await eu.eventually('the mark', () =>
    /it has (105|more than the 40) objects.* taken of one peer: not followed any further, what is here stays/.test(
      errorOf(eu, 'us'),
    ),
  );
  const held = await cacheOf(eu, 'us');
  assert.ok(Object.keys(held).length <= 40);
  for (const [key, value] of Object.entries(good)) assert.equal(held[key], value);
  ap.manifest('shop.yaml', shopManifest(['10.3.1.6']));
  await eu.eventually('the other peer', async () =>
    (await cacheOf(eu, 'ap'))['cilium/cache/services/v1/ap/shop/web']?.includes('10.3.1.6'),
  );

  // Restarted while it floods: nothing more is taken, and what was there is no leftover.
  await eu.stop();
  await eu.start();
  await eu.eventually('the mark again', () => /it has 105 objects, more than the 40/.test(errorOf(eu, 'us')));
  await ready(eu, 'ap');
  for (const [key, value] of Object.entries(good)) assert.equal((await cacheOf(eu, 'us'))[key], value);

  await us.admin.deletePrefix('cilium/state/ip/v1/default/10.2.8.');
  await eu.eventually('recovery', () => statusOf(eu, 'us')?.ready && errorOf(eu, 'us') === '');
  assert.deepEqual(await cacheOf(eu, 'us'), good);

  await us.admin.put('cilium/state/ip/v1/default/10.2.8.1', ipEntry('10.2.8.1', 131_372, { x: 'y'.repeat(100_000) }));
  await eu.eventually('the mark for bytes', () => /its data has more than the 0\.10 MiB/.test(errorOf(eu, 'us')));
  assert.deepEqual(await cacheOf(eu, 'us'), good);
});

test('F33 an older peer, without capabilities and canaries, is mirrored; an unknown family or field harms nothing', async (t) => {
  const { eu, us, good } = await stranger(t);
  await eu.stop();
  await us.admin.deletePrefix('cilium/synced/us/');
  await us.admin.put('cilium/cluster-config/us', '{"id":2}');
  await us.admin.put('cilium/state/things/v9/us/x', 'y');
  await eu.start();
  await ready(eu, 'us');
  const { 'cilium/cache/endpointslices/v1/us/shop/web-1': _, ...rest } = good;
  await eu.eventually('what it publishes no more is withdrawn', async () => {
    const slices = await eu.admin.count('cilium/cache/endpointslices/');
    return slices === 0 && (await eu.admin.count('cilium/synced/us/')) === 4;
  });
  assert.deepEqual(await cacheOf(eu, 'us'), rest);
  assert.deepEqual(Object.keys(statusOf(eu, 'us')?.families ?? {}).sort(), ['identities', 'ip', 'nodes', 'services']);
  assert.deepEqual(JSON.parse((await eu.admin.get('cilium/cluster-config/us'))?.value.toString() ?? ''), {
    id: 2,
    capabilities: { cached: true, syncedCanaries: true },
  });
});

test('F33 a newer peer: unknown fields survive the mirror byte for byte; an unknown mode is refused and what is there stays', async (t) => {
  const { eu, us, good } = await stranger(t);
  const config = JSON.parse((await us.admin.get('cilium/cluster-config/us'))?.value.toString() ?? '');
  const capabilities = { ...config.capabilities, novel: [1], serviceExportsEnabled: true };
  await us.admin.put('cilium/cluster-config/us', JSON.stringify({ ...config, capabilities, future: { a: 1 } }));
  const decoded = decodeEndpointSlice(
    (await us.admin.get('cilium/state/endpointslices/v1/us/shop/web-1'))?.value ?? Buffer.alloc(0),
    zstd,
  );
  assert.ok(decoded.ok);
  // Field 99, varint 1, behind what is known.
  const message = Buffer.concat([encodeEndpointSliceMessage(decoded.value), Buffer.from([0x98, 0x06, 0x01])]);
  const newer = Buffer.from(zstd.compress(message));
  await us.admin.put('cilium/state/endpointslices/v1/us/shop/web-1', newer);
  const exported = JSON.stringify({
    ...{ cluster: 'us', namespace: 'shop', name: 'web', type: 'ClusterSetIP', ports: [{ port: 80 }] },
    ...{ exportCreationTimestamp: '2024-05-01T10:00:00Z', sessionAffinity: '', unheard: true },
  });
  await us.admin.put('cilium/state/serviceexports/v1/us/shop/web', exported);
  // Fields of a newer writer, and labels of sources that nobody knows, at the end of what is there and inside of it.
  const novel = (key: string, inner: string) => {
    const text = good[`cilium/cache/${key}`] ?? '';
    return text.replace(inner, `${inner}"novel":[1,null],`).replace(/}$/, ',"Future":{"deep":[{}]}}');
  };
  const newerTexts = {
    'nodes/v1/us/n1': novel('nodes/v1/us/n1', '"IPAddresses":[{'),
    'services/v1/us/shop/web': novel('services/v1/us/shop/web', '"http":{'),
    'ip/v1/us/10.2.1.5': novel('ip/v1/us/10.2.1.5', '{'),
    'identities/v1/us/id/131372': `novel:x=y;${good['cilium/cache/identities/v1/us/id/131372']}`,
  };
  for (const [name, text] of Object.entries(newerTexts)) {
    assert.notEqual(text, good[`cilium/cache/${name}`]);
    await us.admin.put(`cilium/state/${name.replace('ip/v1/us', 'ip/v1/default').replace('us/id/', 'id/')}`, text);
  }
  for (const [name, text] of Object.entries(newerTexts))
    await eu.eventually(name, async () => (await cacheOf(eu, 'us'))[`cilium/cache/${name}`] === text);
  await eu.eventually('the newer slice', async () => {
    const there = await eu.admin.get('cilium/cache/endpointslices/v1/us/shop/web-1');
    return there?.value.equals(newer);
  });
  assert.ok(decodeEndpointSliceMessage(message).ok);
  await eu.eventually(
    'the export',
    async () => (await cacheOf(eu, 'us'))['cilium/cache/serviceexports/v1/us/shop/web'] === exported,
  );
  await eu.eventually('the config, looked at now and then', async () => {
    const text = (await eu.admin.get('cilium/cluster-config/us'))?.value.toString() ?? '{}';
    const { future, capabilities: mirrored } = JSON.parse(text);
    return future?.a === 1 && mirrored.novel?.[0] === 1 && mirrored.cached === true;
  });

  const unknown = { ...config, capabilities: { ...capabilities, endpointSlicesExportMode: 'holographic' } };
  await us.admin.put('cilium/cluster-config/us', JSON.stringify(unknown));
  await eu.eventually('the refusal', () => /unknown endpointSlicesExportMode "holographic"/.test(errorOf(eu, 'us')));
  assert.equal(Object.keys(await cacheOf(eu, 'us')).length, Object.keys(good).length + 1);
});
