/**
 * What this apiserver publishes and mirrors, read by the strict reader: a program of its own that follows Cilium's readers to the
 * letter and shares no code with us.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { connect, shopManifest, startCluster, type TestCluster } from './testing/control-plane.ts';
import { assertAccepted, counts, removals, startReader } from './testing/strict-reader.ts';

const ENDPOINTS = Array.from({ length: 300 }, (_, i) => ({
  id: `e${i}`,
  ipv4: `10.2.${1 + (i >> 7)}.${(i & 127) + 2}`,
  identity: 131_100 + (i % 280),
}));

async function publishNodes(us: TestCluster): Promise<void> {
  // One identity stands for one set of labels.
  const endpoints = ENDPOINTS.map((endpoint) => ({ ...endpoint, app: `app-${endpoint.identity}` }));
  await us.publishNode('n1', 1, endpoints.slice(0, 150));
  await us.publishNode('n2', 2, endpoints.slice(150));
}

/** `us`, whose sources were all there before its control plane was. */
async function publisher(t: TestContext): Promise<TestCluster> {
  const us = await startCluster(t, { name: 'us', id: 2, nodes: ['n1', 'n2'] });
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.plane.bootstrap.addPeer('eu');
  await us.stop();
  us.manifest('shop.yaml', shopManifest(['10.2.1.2', '10.2.1.3']));
  us.manifest('headless.yaml', HEADLESS);
  await publishNodes(us);
  // As if it had never run: the canaries of the first run are not those that are to be judged.
  await us.admin.deletePrefix('cilium/');
  await us.start();
  await us.eventually('export', () => us.plane.exporter.synced().has('ip'));
  return us;
}

const HEADLESS = `apiVersion: v1
kind: Service
metadata: { name: db, namespace: shop, annotations: { service.cilium.io/global: "true" } }
spec: { clusterIP: None, ports: [{ name: sql, port: 5432 }], selector: { app: db } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: db-1, namespace: shop, labels: { kubernetes.io/service-name: db } }
addressType: IPv4
endpoints:
  - { addresses: ["10.2.1.4"], hostname: db-0, zone: a, conditions: { ready: true } }
  - { addresses: ["10.2.1.5"], hostname: db-1, conditions: { ready: false, serving: true, terminating: true } }
ports: [{ name: sql, port: 5432 }]
`;

const EXPECTED = { nodes: 2, services: 2, identities: 280, ip: 300, serviceexports: 0, endpointslices: 2 };

test('a strict reader accepts everything that is published, and finds no canary too early', async (t) => {
  const us = await publisher(t);
  const reader = await startReader(t, us, 'remote-eu', 'us', 'state', [
    ...['--own-id', '1', '--follow-ms', '2500', '--heartbeat-limit-ms', '5000', '--unchanging'],
  ]);
  const report = await reader.ended;
  assertAccepted(report);
  assert.deepEqual(counts(report), EXPECTED);
  assert.ok(report.heartbeat.events >= 2, `${report.heartbeat.events} heartbeats`);
});

test('a strict reader accepts every change, a restart of the apiserver included', async (t) => {
  const us = await publisher(t);
  const reader = await startReader(t, us, 'remote-eu', 'us', 'state', ['--follow-ms', '60000']);
  await us.eventually('the reader', () => reader.listed() === 1);
  us.manifest('shop.yaml', shopManifest(['10.2.1.2']));
  await us.stop();
  us.manifest('headless.yaml', undefined);
  await us.publishNode('n2', 2, [{ id: 'new', ipv4: '10.2.2.200', identity: 131_999, app: 'new' }]);
  await us.start();
  const oneLeft = async (family: string) => Object.keys(await us.dump(`cilium/state/${family}/`)).length === 1;
  await us.eventually('the removals', async () => (await oneLeft('services')) && (await oneLeft('endpointslices')));
  await us.eventually('the addition', () => us.admin.get('cilium/state/ip/v1/default/10.2.2.200'));
  const report = await reader.end();
  assertAccepted(report);
  assert.deepEqual(counts(report), { ...EXPECTED, services: 1, endpointslices: 1, identities: 281, ip: 301 });
});

test('a rebuilt etcd costs a strict reader no row', async (t) => {
  const us = await publisher(t);
  const reader = await startReader(t, us, 'remote-eu', 'us', 'state', ['--follow-ms', '60000']);
  await us.eventually('the reader', () => reader.listed() === 1);
  await us.server.wipe();
  await us.eventually('bootstrap', () => us.admin.get('clustermesh/bootstrap'));
  await publishNodes(us);
  await us.eventually('the reader again', () => reader.listed() === 2);
  const report = await reader.end();
  assertAccepted(report);
  assert.deepEqual(counts(report), EXPECTED);
  assert.equal(removals(report), 0);
});

test('a strict reader accepts the mirror of a peer, in the cache layout', async (t) => {
  const us = await publisher(t);
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await connect(eu, us);
  await eu.eventually('us', () => eu.plane.mirror.peers().find((peer) => peer.cluster === 'us')?.ready);
  const reader = await startReader(t, eu, 'local-eu', 'us', 'cache', ['--own-id', '1', '--unchanging']);
  const report = await reader.ended;
  assertAccepted(report);
  assert.deepEqual(counts(report), EXPECTED);
});

const DUAL_STACK = `apiVersion: v1
kind: Service
metadata: { name: dual, namespace: shop, annotations: { service.cilium.io/global: "true" } }
spec: { clusterIP: 10.96.0.11, ports: [{ name: http, port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: dual-4, namespace: shop, labels: { kubernetes.io/service-name: dual } }
addressType: IPv4
endpoints: [{ addresses: ["10.2.1.6"], conditions: { ready: true } }]
ports: [{ name: http, port: 8080 }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: dual-6, namespace: shop, labels: { kubernetes.io/service-name: dual } }
addressType: IPv6
endpoints: [{ addresses: ["fd00:2:1::6"], conditions: { ready: true } }]
ports: [{ name: http, port: 8080 }]
`;

test('a strict reader accepts nodes, addresses, services and slices of IPv6 beside IPv4, here and mirrored', async (t) => {
  const us = await publisher(t);
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await connect(eu, us);
  const ipv6 = { internalIp: 'fd31::2:13', gatewayIp: 'fd00:2:3::1', podCidr: 'fd00:2:3::/64' };
  const six = { id: 'six', ipv4: '10.2.3.206', ipv6: 'fd00:2:3::6', identity: 131_998, app: 'six' };
  await us.publishNode('n3', 3, [six], ipv6);
  us.manifest('dual.yaml', DUAL_STACK);
  const mirrored: readonly (readonly [key: string, text: string])[] = [
    ['nodes/v1/us/n3', 'fd31::2:13'],
    ['ip/v1/us/10.2.3.206', '10.2.3.206'],
    ['ip/v1/us/fd00:2:3::6', 'fd00:2:3::6'],
    ['services/v1/us/shop/dual', 'fd00:2:1::6'],
    ['endpointslices/v1/us/shop/dual-4', ''],
    ['endpointslices/v1/us/shop/dual-6', ''],
  ];
  for (const [key, text] of mirrored)
    await eu.eventually(key, async () => (await eu.admin.get(`cilium/cache/${key}`))?.value.toString().includes(text));
  const expected = { nodes: 3, services: 3, identities: 281, ip: 302, serviceexports: 0, endpointslices: 4 };
  for (const [from, as, layout] of [
    [us, 'remote-eu', 'state'],
    [eu, 'local-eu', 'cache'],
  ] as const) {
    const report = await (await startReader(t, from, as, 'us', layout, ['--own-id', '1'])).ended;
    assertAccepted(report);
    assert.deepEqual(counts(report), expected, layout);
  }
});

test('what is planted in an etcd is found there, and the mirror lets none of it pass', async (t) => {
  const us = await publisher(t);
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await connect(eu, us);
  await eu.eventually('us', () => eu.plane.mirror.peers().find((peer) => peer.cluster === 'us')?.ready);
  await us.stop(); // or it would put things right
  const text = async (key: string) => (await us.admin.get(key))?.value.toString() ?? '';
  const node = await text('cilium/state/nodes/v1/us/n1');
  const ip = await text('cilium/state/ip/v1/default/10.2.1.2');
  const service = await text('cilium/state/services/v1/us/shop/web');
  const labels = (cluster: string) => `k8s:app=x;k8s:io.cilium.k8s.policy.cluster=${cluster};`;
  const planted: [string, string][] = [
    ['cilium/state/nodes/v1/us/n9', node.replace('"n1"', '"n9"').replace('"Cluster":"us"', '"Cluster":"eu"')],
    ['cilium/state/nodes/v1/us/n8', node.replace('"n1"', '"n8"').replace('"ClusterID":2', '"ClusterID":1')],
    ['cilium/state/ip/v1/default/10.2.9.9', ip],
    ['cilium/state/ip/v1/default/10.2.9.8', ip.replace('10.2.1.2', '10.2.9.8').replace(/"ID":\d+/, '"ID":70000')],
    ['cilium/state/identities/v1/id/70001', labels('us')],
    ['cilium/state/identities/v1/id/132000', labels('eu')],
    ['cilium/state/services/v1/us/shop/other', service],
    ['cilium/state/services/v1/us/shop/broken', service.slice(0, -1)],
    ['cilium/state/endpointslices/v1/us/shop/plain', service],
  ];
  for (const [key, value] of planted) await us.admin.put(key, value);

  const atSource = await (await startReader(t, us, 'remote-eu', 'us', 'state')).ended;
  assert.deepEqual(
    [...new Set(atSource.violations.map(({ where }) => where))].sort(),
    planted.map(([key]) => key).sort(),
  );
  assert.ok(atSource.violations.every(({ rule }) => rule === 'value'));
  const tooLate = await (await startReader(t, us, 'remote-eu', 'us', 'state', ['--unchanging'])).ended;
  assert.equal(tooLate.violations.filter(({ rule }) => rule === 'canary').length, planted.length);

  await eu.eventually('quarantine', () => {
    const families = eu.plane.mirror.peers().find((peer) => peer.cluster === 'us')?.families ?? {};
    return Object.values(families).reduce((sum, family) => sum + family.quarantined, 0) === planted.length;
  });
  const mirrored = await (await startReader(t, eu, 'local-eu', 'us', 'cache')).ended;
  assertAccepted(mirrored);
  assert.deepEqual(counts(mirrored), EXPECTED);
});
