import assert from 'node:assert/strict';
import { readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { agentKey, decodePeerStatus, type PeerStatus } from '@clustermesh/contract';
import { silentLog, systemClock } from '@clustermesh/runtime';
import { connect, disconnect, shopManifest, startCluster, type TestCluster } from '../testing/control-plane.ts';
import { drainPeer } from './drain.ts';

/** `eu` mirrors `us`; `us` has a node, a pod and a global service. */
async function mesh(
  t: TestContext,
  timers: Record<string, number> = {},
  config: Record<string, unknown> = {},
): Promise<{ eu: TestCluster; us: TestCluster }> {
  const [eu, us] = await Promise.all([
    startCluster(t, { name: 'eu', id: 1, timers, config }),
    startCluster(t, { name: 'us', id: 2, nodes: ['n1'] }),
  ]);
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.publishNode('n1', 1, [{ id: 'a', ipv4: '10.2.1.5', identity: 131_100 }]);
  await connect(eu, us);
  await ready(eu, 'us');
  return { eu, us };
}

const statusOf = (cluster: TestCluster, peer: string): PeerStatus | undefined =>
  cluster.plane.mirror.peers().find((status) => status.cluster === peer);
const ready = (cluster: TestCluster, peer: string) =>
  cluster.eventually(`${peer} ready`, () => statusOf(cluster, peer)?.ready);

async function recordOf(cluster: TestCluster, peer: string): Promise<PeerStatus | undefined> {
  const kv = await cluster.admin.get(`clustermesh/peers/${peer}`);
  const decoded = kv === undefined ? undefined : decodePeerStatus(kv.value.toString());
  if (decoded !== undefined) assert.ok(decoded.ok, 'the record in etcd is a valid peer status');
  return decoded?.ok ? decoded.value : undefined;
}

const cacheKeys = async (cluster: TestCluster) => Object.keys(await cluster.dump('cilium/cache/'));
const MIRRORED = [
  'cilium/cache/endpointslices/v1/us/shop/web-1',
  'cilium/cache/identities/v1/us/id/131100',
  'cilium/cache/ip/v1/us/10.2.1.5',
  'cilium/cache/nodes/v1/us/n1',
  'cilium/cache/services/v1/us/shop/web',
];

test('a peer is mirrored byte for byte in the cache layout, with config, canaries and status', async (t) => {
  const { eu, us } = await mesh(t);
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
  const state = await us.dump('cilium/state/');
  const cache = await eu.dump('cilium/cache/');
  assert.equal(cache['cilium/cache/services/v1/us/shop/web'], state['cilium/state/services/v1/us/shop/web']);
  assert.equal(cache['cilium/cache/ip/v1/us/10.2.1.5'], state['cilium/state/ip/v1/default/10.2.1.5']);
  assert.deepEqual(JSON.parse((await eu.admin.get('cilium/cluster-config/us'))?.value.toString() ?? ''), {
    id: 2,
    capabilities: {
      syncedCanaries: true,
      maxConnectedClusters: 255,
      serviceExportsEnabled: false,
      endpointSlicesExportMode: 'services-and-endpointslices',
      cached: true,
    },
    'x-clustermesh': { region: 'us-region' },
  });
  const canaries = Object.keys(await eu.dump('cilium/synced/us/'));
  assert.deepEqual(
    canaries,
    ['endpointslices', 'identities', 'ip', 'nodes', 'serviceexports', 'services'].map(
      (family) => `cilium/synced/us/cilium/cache/${family}/v1`,
    ),
  );
  assert.deepEqual(Object.keys(await us.dump('cilium/cache/')), [], 'connecting one way mirrors one way');

  const record = await eu.eventually('the record', async () => {
    const status = await recordOf(eu, 'us');
    return status?.ready && status.lastProofAgeMs !== null ? status : undefined;
  });
  assert.equal(record.error, undefined);
  assert.deepEqual([record.clusterId, record.connected], [2, true]);
  for (const [family, key] of [
    ['services', MIRRORED[4]],
    ['ip', MIRRORED[2]],
  ] as const) {
    assert.equal(record.families[family]?.count, 1);
    assert.equal(
      record.families[family]?.revision,
      (await eu.admin.get(key ?? ''))?.modRevision,
      `${family}: revision of the last data change`,
    );
  }
});

test('changes and removals travel, and the revision in the status follows them', async (t) => {
  const { eu, us } = await mesh(t);
  us.manifest('shop.yaml', shopManifest(['10.2.1.5', '10.2.1.6']));
  const kv = await eu.eventually('the change', async () => {
    const found = await eu.admin.get('cilium/cache/services/v1/us/shop/web');
    return found?.value.toString().includes('10.2.1.6') ? found : undefined;
  });
  await eu.eventually(
    'the revision',
    async () => (await recordOf(eu, 'us'))?.families['services']?.revision === kv.modRevision,
  );
  us.manifest('shop.yaml', undefined);
  await eu.eventually('the removal', async () => !(await cacheKeys(eu)).includes(MIRRORED[4] ?? ''));
});

test('while a peer is away its data stays, and the status says since when', async (t) => {
  const { eu, us } = await mesh(t);
  await us.server.stop();
  const record = await eu.eventually('the error', async () => {
    const status = await recordOf(eu, 'us');
    // Ready: what is there is complete.
    return status?.ready && !status.connected ? status : undefined;
  });
  assert.match(record.error ?? '', /not connected for \d+ s: /);
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
  await us.server.start();
  await eu.eventually('the connection', () => statusOf(eu, 'us')?.connected && statusOf(eu, 'us')?.error === undefined);
  us.manifest('shop.yaml', shopManifest(['10.2.1.7']));
  await eu.eventually('a change after it', async () =>
    (await eu.dump('cilium/cache/services/'))[MIRRORED[4] ?? '']?.includes('10.2.1.7'),
  );
});

test('a restart with the peer away loses nothing, and a change meanwhile is caught up with', async (t) => {
  const { eu, us } = await mesh(t);
  await eu.stop();
  us.manifest('shop.yaml', undefined);
  await us.eventually('the removal', async () => Object.keys(await us.dump('cilium/state/services/')).length === 0);
  await us.server.stop();
  await eu.start();
  await eu.eventually('the error', () => statusOf(eu, 'us')?.error?.includes('not connected'));
  await eu.eventually('its first full compare', () => eu.plane.exporter.synced().size === 6);
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
  await eu.eventually('the id, known from what is mirrored', () => statusOf(eu, 'us')?.clusterId === 2);
  await us.server.start();
  await ready(eu, 'us');
  assert.deepEqual(await cacheKeys(eu), MIRRORED.slice(1, 4));
});

test("a peer's wiped etcd empties nothing: rows go only when its new list is complete", async (t) => {
  const { eu, us } = await mesh(t);
  await us.stop();
  const nodes = us.server.wipe();
  await nodes;
  await eu.eventually(
    'another etcd',
    () => statusOf(eu, 'us')?.connected === true || statusOf(eu, 'us')?.error !== undefined,
  );
  let shrunk = false;
  const watching = setInterval(() => {
    void cacheKeys(eu).then((keys) => {
      shrunk ||= !keys.includes(MIRRORED[1] ?? '') || !keys.includes(MIRRORED[4] ?? '');
    });
  }, 20);
  t.after(() => clearInterval(watching));
  await us.start();
  await us.eventually('services exported again', () => us.plane.exporter.synced().has('services'));
  assert.equal(us.plane.exporter.synced().has('ip'), false, 'no canary while the known node has not published');
  await us.publishNode('n1', 1, [
    { id: 'a', ipv4: '10.2.1.5', identity: 131_100 },
    { id: 'b', ipv4: '10.2.1.6', identity: 131_100 },
  ]);
  await eu.eventually('the new pod', async () => (await cacheKeys(eu)).includes('cilium/cache/ip/v1/us/10.2.1.6'));
  clearInterval(watching);
  assert.equal(shrunk, false);
  assert.deepEqual(await cacheKeys(eu), [...MIRRORED, 'cilium/cache/ip/v1/us/10.2.1.6'].sort());
});

test('a bad object is quarantined with its reason, its last good version stays, the rest is applied', async (t) => {
  const { eu, us } = await mesh(t);
  const entry = (ip: string, ID: number) =>
    JSON.stringify({ IP: ip, Mask: null, HostIP: '172.31.2.11', ID, Key: 0, Metadata: '', Novel: [1] });
  // Cilium-style data of a second writer, outside what our exporter of `us` repairs at once.
  await us.stop();
  await us.admin.put('cilium/state/ip/v1/default/10.2.9.1', entry('10.2.9.1', 65_800));
  await us.admin.put('cilium/state/ip/v1/default/10.2.9.2', entry('10.2.9.3', 131_100));
  await us.admin.put('cilium/state/ip/v1/default/10.2.9.4', Buffer.from([0x7b, 0xff, 0xfe]));
  await us.admin.put('cilium/state/nodes/v1/us/..%2f', '{}');
  await us.admin.put(MIRRORED[4]?.replace('cache', 'state') ?? '', '{"cluster":"eu"}');
  const good = entry('10.2.9.5', 131_100);
  await us.admin.put('cilium/state/ip/v1/default/10.2.9.5', good);
  await eu.eventually(
    'the good one',
    async () => (await eu.dump('cilium/cache/ip/'))['cilium/cache/ip/v1/us/10.2.9.5'] === good,
  );
  const record = await eu.eventually('the quarantine', async () => {
    const status = await recordOf(eu, 'us');
    return status?.families['ip']?.quarantined === 3 && status.families['services']?.quarantined === 1
      ? status
      : undefined;
  });
  assert.match(record.families['ip']?.lastQuarantineReason ?? '', /10\.2\.9\.4" is not UTF-8/);
  assert.match(record.families['services']?.lastQuarantineReason ?? '', /service/);
  assert.equal(record.families['nodes']?.quarantined, 1);
  assert.deepEqual(await cacheKeys(eu), [...MIRRORED, 'cilium/cache/ip/v1/us/10.2.9.5'].sort());
  const lastGood = (await eu.admin.get(MIRRORED[4] ?? ''))?.value.toString();
  assert.match(lastGood ?? '', /10\.2\.1\.5/);

  await eu.stop();
  await eu.start();
  await ready(eu, 'us');
  assert.equal((await eu.admin.get(MIRRORED[4] ?? ''))?.value.toString(), lastGood, 'also across a restart');

  await us.admin.put('cilium/state/ip/v1/default/10.2.9.1', entry('10.2.9.1', 131_100));
  await eu.eventually('the mended one', async () => (await cacheKeys(eu)).includes('cilium/cache/ip/v1/us/10.2.9.1'));
  await eu.eventually('the count', async () => (await recordOf(eu, 'us'))?.families['ip']?.quarantined === 2);
});

test('of a peer with which no IPv6 was agreed everything but IPv6 is mirrored, and all once it is', async (t) => {
  const { eu, us } = await mesh(t);
  await connect(eu, us, { podCidrV6: '' });
  const ipv6 = { internalIp: 'fd31::2:13', gatewayIp: 'fd00:2:3::1', podCidr: 'fd00:2:3::/64' };
  await us.publishNode('n3', 3, [{ id: 'six', ipv4: '10.2.3.6', ipv6: 'fd00:2:3::6', identity: 131_101 }], ipv6);
  us.manifest('shop.yaml', shopManifest(['10.2.3.6']));
  us.manifest('six.yaml', SLICE_OF_IPV6);
  const mirrored = async (key: string) => (await eu.admin.get(`cilium/cache/${key}`))?.value.toString() ?? '';
  await eu.eventually('the quarantine', async () => {
    const families = (await recordOf(eu, 'us'))?.families;
    return ['nodes', 'ip', 'services', 'endpointslices'].every((family) => families?.[family]?.quarantined === 1);
  });
  const reason = (await recordOf(eu, 'us'))?.families['nodes']?.lastQuarantineReason ?? '';
  assert.match(reason, /^node n3, taken over without IPv6: its pod CIDR fd00:2:3::\/64 .* set cluster\.podCIDRv6/);
  await eu.eventually('the pod', () => mirrored('ip/v1/us/10.2.3.6'));
  await eu.eventually('the node', async () => (await mirrored('nodes/v1/us/n3')).includes('10.2.3.0'));
  await eu.eventually('the service', async () => (await mirrored('services/v1/us/shop/web')).includes('10.2.3.6'));
  const all = JSON.stringify(await eu.dump('cilium/cache/'));
  assert.doesNotMatch(all, /fd00:2/);

  await connect(eu, us);
  await eu.eventually('the pod of IPv6', () => mirrored('ip/v1/us/fd00:2:3::6'));
  for (const key of ['nodes/v1/us/n3', 'services/v1/us/shop/web'])
    await eu.eventually(
      key,
      async () => (await mirrored(key)) === (await us.dump('cilium/state/'))[`cilium/state/${key}`],
    );
});

const SLICE_OF_IPV6 = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-6, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv6
endpoints: [{ addresses: ["fd00:2:3::6"], conditions: { ready: true } }]
ports: [{ name: http, port: 8080 }]
`;

test('F21 what lies outside the agreed pod CIDR is quarantined, and what is at a node waits for that node', async (t) => {
  const { eu, us } = await mesh(t);
  await us.publishNode('n9', 9, []);
  await us.admin.put(
    'clustermesh/nodes/n9/node',
    JSON.stringify({ name: 'n9', internalIp: '172.31.2.19', gatewayIp: '10.3.9.1', podCidr: '10.3.9.0/24' }),
  );
  us.manifest('shop.yaml', shopManifest(['172.31.2.77']));
  const pod = { IP: '10.2.67.5', Mask: null, HostIP: '172.31.2.77', ID: 131_100, Key: 0, Metadata: '' };
  await us.admin.put('cilium/state/ip/v1/default/10.2.67.5', JSON.stringify(pod));
  const record = await eu.eventually('the quarantine', async () => {
    const status = await recordOf(eu, 'us');
    return ['services', 'nodes', 'ip'].every((family) => status?.families[family]?.quarantined === 1)
      ? status
      : undefined;
  });
  assert.match(
    record.families['ip']?.lastQuarantineReason ?? '',
    /10\.2\.67\.5 is at host 172\.31\.2\.77, which is no/,
  );
  assert.match(
    record.families['nodes']?.lastQuarantineReason ?? '',
    /node n9: its pod CIDR 10\.3\.9\.0\/24 lies outside/,
  );
  assert.match(
    record.families['services']?.lastQuarantineReason ?? '',
    /backend 172\.31\.2\.77\/32 lies outside 10\.2/,
  );
  // Node 67 has that address.
  await us.publishNode('n67', 67, []);
  const atNode = () =>
    eu.eventually('the service', async () =>
      (await eu.dump('cilium/cache/services/'))['cilium/cache/services/v1/us/shop/web']?.includes('172.31.2.77'),
    );
  await atNode();
  await eu.eventually('the pod', () => eu.admin.get('cilium/cache/ip/v1/us/10.2.67.5'));

  await eu.stop();
  let withdrawn = false;
  const stop = new AbortController();
  const watching = eu.admin.watch({
    prefix: 'cilium/cache/services/',
    startRevision: 0,
    signal: stop.signal,
    onEvents: (events) => {
      withdrawn ||= events.some((event) => event.type === 'delete');
    },
  });
  await eu.start();
  await ready(eu, 'us');
  await atNode();
  stop.abort();
  await watching;
  assert.equal(withdrawn, false, 'a restart does not withdraw it');
});

test('F21 what another peer is granted later is withdrawn from the one that used it so far, and comes back when it is free', async (t) => {
  const [eu, us] = await Promise.all([
    startCluster(t, { name: 'eu', id: 1 }),
    startCluster(t, { name: 'us', id: 2, nodes: ['n1'] }),
  ]);
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.publishNode('n1', 1, [{ id: 'a', ipv4: '10.2.1.5', identity: 131_100 }]);
  // As with a cluster of plain Cilium, no pod CIDR was agreed.
  await connect(eu, us, { podCidr: '', podCidrV6: '' });
  await ready(eu, 'us');
  assert.deepEqual(await cacheKeys(eu), MIRRORED);

  await connect(eu, us, { as: 'ap', podCidr: '10.2.0.0/17', podCidrV6: '' });
  await eu.eventually('the withdrawal', async () => (await cacheKeys(eu)).join() === MIRRORED[1]);
  const { families } = await eu.eventually('the reason', async () => {
    const status = await recordOf(eu, 'us');
    return ['nodes', 'ip', 'services', 'endpointslices'].every((family) => status?.families[family]?.quarantined === 1)
      ? status
      : undefined;
  });
  assert.match(
    families['nodes']?.lastQuarantineReason ?? '',
    /node n1: its pod CIDR 10\.2\.1\.0\/24 overlaps 10\.2\.0\.0\/17 of cluster ap/,
  );

  disconnect(eu, 'ap');
  await eu.eventually('all of it', async () => (await cacheKeys(eu)).join() === MIRRORED.join());
  await eu.eventually('no quarantine', () =>
    Object.values(statusOf(eu, 'us')?.families ?? {}).every((family) => family.quarantined === 0),
  );
});

test("F21 an agreed pod CIDR that overlaps this cluster's services does not count", async (t) => {
  const [eu, us] = await Promise.all([
    startCluster(t, { name: 'eu', id: 1, cluster: { serviceCIDR: '10.2.0.0/20' } }),
    startCluster(t, { name: 'us', id: 2, nodes: ['n1'] }),
  ]);
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.publishNode('n1', 1, [{ id: 'a', ipv4: '10.2.1.5', identity: 131_100 }]);
  await connect(eu, us);
  const { families } = await eu.eventually('the quarantine', () => {
    const status = statusOf(eu, 'us');
    return status?.families['ip']?.quarantined === 1 && status.families['nodes']?.quarantined === 1
      ? status
      : undefined;
  });
  assert.match(
    families['nodes']?.lastQuarantineReason ?? '',
    /no pod CIDR apart from this cluster's pods and services was agreed/,
  );
  assert.doesNotMatch((await cacheKeys(eu)).join(), /10\.2\.1\.5|n1/);
});

test('a removed peer is drained in order: config, then the agents, then canaries and data', async (t) => {
  const { eu } = await mesh(t, { drainWaitMs: 60_000 });
  await eu.publishAgent({ node: 'n1', applied: { us: { ip: 1 } } });
  await eu.eventually('the agent', () => eu.plane.agents.agents().length === 1);
  disconnect(eu, 'us');
  await eu.eventually('the config gone', async () => (await eu.admin.get('cilium/cluster-config/us')) === undefined);
  await eu.eventually('the wait', () => statusOf(eu, 'us')?.error?.includes('waiting for n1 to let go'));
  assert.deepEqual(await cacheKeys(eu), MIRRORED, 'nothing is deleted under a reader');
  assert.equal(Object.keys(await eu.dump('cilium/synced/us/')).length, 6);
  await eu.publishAgent({ node: 'n1', applied: {} });
  await eu.eventually('the end', () => statusOf(eu, 'us') === undefined);
  const left = Object.keys({ ...(await eu.dump('cilium/')), ...(await eu.dump('clustermesh/peers/')) }).filter((key) =>
    /\/us(\/|$)/.test(key),
  );
  assert.deepEqual(left, []);
  await eu.admin.delete(agentKey('n1'));
});

test('as long as anything of a removed peer is left, it is shown as draining', async (t) => {
  const { eu } = await mesh(t, { drainWaitMs: 60_000 });
  await eu.publishAgent({ node: 'n1', applied: { us: { ip: 1 } } });
  await eu.eventually('the agent', () => eu.plane.agents.agents().length === 1);
  disconnect(eu, 'us');
  for (;;) {
    const status = statusOf(eu, 'us');
    assert.ok(status !== undefined, 'shown all the time');
    if (status.error?.includes('waiting for n1')) break;
    await new Promise((resolve) => setImmediate(resolve));
  }
  await eu.admin.delete(agentKey('n1'));
  await eu.eventually('the end', () => statusOf(eu, 'us') === undefined);
});

test('a drain writes nothing into an etcd that has not been bootstrapped', async (t) => {
  const { eu } = await mesh(t);
  await assert.rejects(
    drainPeer({
      cluster: 'us',
      local: eu.admin,
      agents: () => [],
      right: {
        fence: () => [{ key: 'no/such/marker', value: '1' }],
        leadership: { fence: () => [], onChange: () => () => {}, holder: undefined },
      },
      waitMs: 0,
      foreignWaitMs: 0,
      status: () => '{}',
      clock: systemClock,
      log: silentLog(),
      signal: new AbortController().signal,
      onStep: () => {},
    }),
    { code: 'conflict', message: /this etcd is a new one/ },
  );
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
});

test('a config directory that vanishes drains nobody, is reported, and is followed again when it is back', async (t) => {
  const { eu, us } = await mesh(t);
  const [dir, away] = [join(eu.root, 'clustermesh'), join(eu.root, 'away')];
  renameSync(dir, away);
  await eu.eventually('the problem', () => /clustermesh: the directory is gone/.test(eu.plane.local.problems().join()));
  us.manifest('shop.yaml', shopManifest(['10.2.1.8']));
  await eu.eventually('a change meanwhile', async () =>
    (await eu.dump('cilium/cache/services/'))['cilium/cache/services/v1/us/shop/web']?.includes('10.2.1.8'),
  );
  renameSync(away, dir);
  await eu.eventually('no problem', () => eu.plane.local.problems().length === 0);
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
  disconnect(eu, 'us');
  await eu.eventually('the end', () => statusOf(eu, 'us') === undefined);
});

test('a drain waits no longer than its limit for an agent that does not let go', async (t) => {
  const { eu } = await mesh(t, { drainWaitMs: 300 });
  await eu.publishAgent({ node: 'n1', applied: { us: { ip: 1 } } });
  await eu.eventually('the agent', () => eu.plane.agents.agents().length === 1);
  disconnect(eu, 'us');
  await eu.eventually('the end', async () => (await cacheKeys(eu)).length === 0 && statusOf(eu, 'us') === undefined);
});

test('readers that cannot acknowledge are given their time between the config and the rest, where there are any', async (t) => {
  const config = { mirror: { foreignReaders: true } };
  const { eu } = await mesh(t, { drainWaitMs: 0, foreignDrainWaitMs: 3000 }, config);
  const foreign = await eu.clientAs('local-eu');
  t.after(() => foreign.close());
  const present = async (prefix: string) => (await foreign.range(prefix)).kvs.length;
  disconnect(eu, 'us');
  await eu.eventually('the config gone', async () => (await present('cilium/cluster-config/us')) === 0);
  const until = await eu.eventually(
    'it to say until when',
    () => /waiting until (\S+Z) for readers that cannot say/.exec(statusOf(eu, 'us')?.error ?? '')?.[1],
  );
  await eu.eventually('the canaries gone', async () => (await present('cilium/synced/us/')) === 0);
  assert.ok(Date.now() >= Date.parse(until), `gone before ${until}`);
  await eu.eventually('the end', () => statusOf(eu, 'us') === undefined);
});

test('a peer that was removed while the apiserver was down is drained at its start', async (t) => {
  const { eu } = await mesh(t);
  await eu.stop();
  disconnect(eu, 'us');
  await eu.start();
  await eu.eventually(
    'the end',
    async () => (await cacheKeys(eu)).length === 0 && (await recordOf(eu, 'us')) === undefined,
  );
  assert.equal(await eu.admin.get('cilium/cluster-config/us'), undefined);
});

test('connecting again after a removal mirrors again', async (t) => {
  const { eu, us } = await mesh(t);
  disconnect(eu, 'us');
  await eu.eventually('the end', () => statusOf(eu, 'us') === undefined);
  await connect(eu, us);
  await ready(eu, 'us');
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
});

test('a second cluster with a used id is refused, both are named, the first is undisturbed also across a restart', async (t) => {
  const { eu } = await mesh(t);
  const twin = await startCluster(t, { name: 'ap', id: 2 });
  await connect(eu, twin);
  const refused = /cluster id 2 of cluster ap is already used by cluster us, which stays undisturbed/;
  await eu.eventually('the refusal', () => refused.test(statusOf(eu, 'ap')?.error ?? ''));
  assert.equal(statusOf(eu, 'us')?.error, undefined);
  await eu.stop();
  await eu.start();
  await ready(eu, 'us');
  await eu.eventually('the refusal again', () => refused.test(statusOf(eu, 'ap')?.error ?? ''));
  assert.deepEqual(await cacheKeys(eu), MIRRORED);
  disconnect(eu, 'us');
  await ready(eu, 'ap');
});

test('a peer that is not who the file says is refused: wrong name, own id, other maximum', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const [us, own, big] = await Promise.all([
    startCluster(t, { name: 'us', id: 2 }),
    startCluster(t, { name: 'own', id: 1 }),
    startCluster(t, { name: 'big', id: 3, cluster: { maxConnectedClusters: 511 } }),
  ]);
  await connect(eu, us, { as: 'other' });
  await connect(eu, own);
  await connect(eu, big);
  await eu.eventually('the wrong name', () => /other/.test(statusOf(eu, 'other')?.error ?? ''));
  await eu.eventually('the own id', () =>
    /cluster own has cluster id 1, which is this cluster's own id/.test(statusOf(eu, 'own')?.error ?? ''),
  );
  await eu.eventually('the other maximum', () => /maxConnectedClusters 511/.test(statusOf(eu, 'big')?.error ?? ''));
  assert.deepEqual(await cacheKeys(eu), []);
});

test('a peer that changes its id is drained and mirrored anew', async (t) => {
  const { eu, us } = await mesh(t);
  await us.stop();
  await us.admin.put(
    'cilium/cluster-config/us',
    JSON.stringify({ id: 7, capabilities: { syncedCanaries: true, maxConnectedClusters: 255 } }),
  );
  await us.admin.deletePrefix('cilium/state/');
  await us.admin.put('cilium/state/identities/v1/id/458800', 'k8s:io.cilium.k8s.policy.cluster=us;');
  await eu.stop();
  await eu.start();
  await eu.eventually('the new id', () => statusOf(eu, 'us')?.ready && statusOf(eu, 'us')?.clusterId === 7);
  assert.deepEqual(await cacheKeys(eu), ['cilium/cache/identities/v1/us/id/458800']);
});

test('the peer file is followed: malformed keeps, symlink swaps work, new endpoints are taken', async (t) => {
  const { eu, us } = await mesh(t);
  const file = join(eu.root, 'clustermesh', 'us');
  writeFileSync(file, 'endpoints: [');
  await eu.eventually('the problem', () =>
    eu.plane.local
      .problems()
      .some((problem) => /is malformed \(.+\); the last good version stays in force/.test(problem)),
  );
  us.manifest('shop.yaml', shopManifest(['10.2.1.8']));
  await eu.eventually('a change', async () =>
    (await eu.dump('cilium/cache/services/'))[MIRRORED[4] ?? '']?.includes('10.2.1.8'),
  );

  const proxy = await us.server.proxy();
  await connect(eu, us, { endpoint: proxy.endpoint });
  const swapped = join(eu.root, 'swapped');
  renameSync(file, swapped);
  symlinkSync(swapped, file);
  await eu.eventually(
    'the other endpoint',
    () => statusOf(eu, 'us')?.connected && eu.plane.local.problems().length === 0,
  );
  await ready(eu, 'us');
  await proxy.close();
  await eu.eventually('that it was in use', () => statusOf(eu, 'us')?.connected === false);
  rmSync(file);
});

test('a peer file that cannot be used is named, and the other peers are mirrored', async (t) => {
  const { eu } = await mesh(t);
  const text = readFileSync(join(eu.root, 'clustermesh', 'us'), 'utf8');
  writeFileSync(join(eu.root, 'clustermesh', 'ap'), text.replace(/https:[^\n"']*/, 'ap.example:port'));
  await eu.eventually('the reason', () => /endpoints.*must be http/.test(statusOf(eu, 'ap')?.error ?? ''));
  assert.match(eu.plane.local.problems().join(), /clustermesh\/ap is not usable: endpoints.*must be http/);
  assert.equal(statusOf(eu, 'us')?.connected, true);
  disconnect(eu, 'ap');
  await eu.eventually('its end', () => statusOf(eu, 'ap') === undefined && eu.plane.local.problems().length === 0);
});

test('a wiped local etcd is filled again, also while the peer is away', async (t) => {
  const { eu, us } = await mesh(t);
  await us.server.stop();
  await eu.eventually('the error', () => statusOf(eu, 'us')?.connected === false);
  await eu.server.wipe();
  await eu.eventually(
    'the mirror',
    async () =>
      (await cacheKeys(eu)).length === MIRRORED.length && Object.keys(await eu.dump('cilium/synced/us/')).length === 6,
  );
  assert.ok(await eu.eventually('the config', () => eu.admin.get('cilium/cluster-config/us')));
});
