/** Scenarios: YAML and agents' records in → exact keys out → delete → empty. On a real etcd with TLS and auth. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeEndpointSlice, nodeRecordPrefix } from '@clustermesh/contract';
import { openZstd } from '@clustermesh/runtime';
import { shopManifest, startCluster, type TestCluster } from '../testing/control-plane.ts';

const zstd = openZstd();
const WITHOUT_TIME = /"changedAt":"[^"]*"/g;

/** The slices as a peer reads them, as JSON. */
async function slicesOf(cluster: TestCluster): Promise<Record<string, string>> {
  const { kvs } = await cluster.admin.range('cilium/state/endpointslices/');
  return Object.fromEntries(
    kvs.map((kv) => {
      const decoded = decodeEndpointSlice(kv.value, zstd);
      return [kv.key, decoded.ok ? JSON.stringify(decoded.value) : decoded.reason];
    }),
  );
}

/** Everything a peer can read, and everything our own agents can read of their own cluster; times blanked. */
async function published(cluster: TestCluster): Promise<Record<string, string>> {
  const all = {
    ...(await cluster.dump('cilium/')),
    ...(await slicesOf(cluster)),
    ...(await cluster.dump('clustermesh/local/')),
  };
  return Object.fromEntries(
    Object.entries(all).map(([key, value]) => [
      key,
      /^\d{4}-\d\d-\d\dT[\d:]+Z$/.test(value) ? 'TIME' : value.replace(WITHOUT_TIME, '"changedAt":"TIME"'),
    ]),
  );
}

const data = (rows: Record<string, string>) =>
  Object.keys(rows).filter((key) => !/synced|heartbeat|cluster-config/.test(key));

const EMPTY = {
  'cilium/.heartbeat': 'TIME',
  'cilium/cluster-config/eu':
    '{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"},"x-clustermesh":{"region":"eu-region"}}',
  ...Object.fromEntries(
    ['endpointslices', 'identities', 'ip', 'nodes', 'serviceexports', 'services'].map((family) => [
      `cilium/synced/eu/cilium/state/${family}/v1`,
      'TIME',
    ]),
  ),
  ...Object.fromEntries(
    ['endpointslices', 'namespaces', 'policies', 'services'].map((family) => [
      `clustermesh/local/synced/${family}`,
      'TIME',
    ]),
  ),
};

test('a cluster with nothing in it publishes exactly its config, its canaries and its heartbeat', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually(
    'the canaries',
    async () => Object.keys(await published(eu)).length === Object.keys(EMPTY).length,
  );
  assert.deepEqual(await published(eu), EMPTY);
  const heartbeat = await eu.admin.get('cilium/.heartbeat');
  assert.notEqual(heartbeat?.lease, '0', 'a dead apiserver must not look alive');
  assert.equal(
    (await eu.admin.get('cilium/cluster-config/eu'))?.lease,
    '0',
    'a dead apiserver must not withdraw anything',
  );
  await eu.eventually(
    'the next beat',
    async () => (await eu.admin.get('cilium/.heartbeat'))?.value.toString() !== heartbeat?.value.toString(),
  );
});

const CLOSED = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: closed, namespace: shop }
spec: { podSelector: {} }
`;

test('services, nodes and pods come and go, in either order of arrival', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  const expected = {
    ...EMPTY,
    'cilium/state/endpointslices/v1/eu/shop/web-1':
      '{"cluster":"eu","clusterID":1,"namespace":"shop","name":"web-1","addressType":"IPv4","endpoints":[{"addresses":["10.1.1.5"],"conditions":{"ready":true,"serving":true,"terminating":false}}],"ports":[{"name":"http","protocol":"TCP","port":8080}],"labels":{"kubernetes.io/service-name":"web"}}',
    'cilium/state/identities/v1/id/65801':
      'k8s:app=web;k8s:io.cilium.k8s.policy.cluster=eu;k8s:io.kubernetes.pod.namespace=shop;',
    'cilium/state/ip/v1/default/10.1.1.5':
      '{"IP":"10.1.1.5","Mask":null,"HostIP":"172.31.1.11","ID":65801,"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"a","x-clustermesh":{"changedAt":"TIME"}}',
    'cilium/state/nodes/v1/eu/n1':
      '{"Name":"n1","Cluster":"eu","IPAddresses":[{"Type":"InternalIP","IP":"172.31.1.11"},{"Type":"CiliumInternalIP","IP":"10.1.1.1"}],"IPv4AllocCIDR":{"IP":"10.1.1.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":1,"Source":"custom-resource","EncryptionKey":0,"Labels":{},"Annotations":null,"WireguardPubKey":"","BootID":"","x-clustermesh":{"changedAt":"TIME"}}',
    'cilium/state/services/v1/eu/shop/web':
      '{"cluster":"eu","namespace":"shop","name":"web","frontends":{"10.96.0.10":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.1.1.5":{"http":{"Protocol":"TCP","Port":8080}}},"labels":{},"selector":null,"includeExternal":true,"shared":true,"clusterID":1,"x-clustermesh":{"changedAt":"TIME"}}',
    'clustermesh/local/endpointslices/shop/web-1':
      '{"namespace":"shop","name":"web-1","service":"web","endpoints":[{"addresses":["10.1.1.5"],"ready":true,"serving":true,"terminating":false}],"ports":[{"name":"http","protocol":"TCP","port":8080}]}',
    'clustermesh/local/namespaces/shop': '{"name":"shop","global":true,"labels":{}}',
    'clustermesh/local/policies/knp/shop/closed':
      '{"kind":"NetworkPolicy","namespace":"shop","name":"closed","specs":[{"subject":[{"source":"k8s","key":"io.kubernetes.pod.namespace","operator":"In","values":["shop"]}],"defaultDeny":{"ingress":true,"egress":false},"rules":[]}],"refused":[]}',
    'clustermesh/local/services/shop/web':
      '{"namespace":"shop","name":"web","clusterIPs":["10.96.0.10"],"ports":[{"name":"http","protocol":"TCP","port":80}],"global":true,"shared":true,"affinity":"none","labels":{},"selector":null}',
  };
  const arrive: readonly (() => Promise<void>)[] = [
    async () => eu.manifest('shop.yaml', `${shopManifest(['10.1.1.5'])}---\n${CLOSED}`),
    () => eu.publishNode('n1', 1, [{ id: 'a', ipv4: '10.1.1.5', identity: 65_801 }]),
  ];
  for (const order of [arrive, [...arrive].reverse()]) {
    for (const step of order) await step();
    await eu.eventually(
      'all of it',
      async () => Object.keys(await published(eu)).length === Object.keys(expected).length,
    );
    assert.deepEqual(await published(eu), expected);
    eu.manifest('shop.yaml', undefined);
    await eu.admin.deletePrefix(nodeRecordPrefix('n1'));
    // The rows of a node that lost its `synced` key are held for its grace period: it ends with the node's next, empty list.
    await eu.admin.put('clustermesh/nodes/n1/synced', 'TIME');
    await eu.eventually('nothing', async () => data(await published(eu)).length === 0);
    assert.deepEqual(await published(eu), EMPTY);
  }
});

test('closing a namespace withdraws its service, endpoints and identities, and nothing else', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  await eu.publishNode('n1', 1, [
    { id: 'a', ipv4: '10.1.1.5', identity: 65_801 },
    { id: 'b', ipv4: '10.1.1.6', identity: 65_802, namespace: 'open' },
  ]);
  const state = async () => Object.keys(await eu.dump('cilium/state/'));
  await eu.eventually('all', async () => (await state()).length === 7);
  eu.manifest(
    'ns.yaml',
    'apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, annotations: { clustermesh.cilium.io/global: "false" } }\n',
  );
  await eu.eventually('the withdrawal', async () => (await state()).length === 3);
  assert.deepEqual(await state(), [
    'cilium/state/identities/v1/id/65802',
    'cilium/state/ip/v1/default/10.1.1.6',
    'cilium/state/nodes/v1/eu/n1',
  ]);
  const everything = JSON.stringify(await eu.dump('cilium/'));
  assert.doesNotMatch(everything, /shop|10\.1\.1\.5"|65801/);
  assert.equal(
    JSON.parse((await eu.dump('clustermesh/local/services/'))['clustermesh/local/services/shop/web'] ?? '').global,
    false,
  );
});

test('a restart rewrites nothing, and removes what was deleted meanwhile', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  eu.manifest('gone.yaml', shopManifest(['10.1.1.9']).replaceAll('web', 'gone').replace('10.96.0.10', '10.96.0.11'));
  await eu.publishNode('n1', 1, [{ id: 'a', ipv4: '10.1.1.5', identity: 65_801 }]);
  const revisions = async () =>
    Object.fromEntries((await eu.admin.range('cilium/state/')).kvs.map((kv) => [kv.key, kv.modRevision]));
  await eu.eventually('all', async () => Object.keys(await revisions()).length === 7);
  const before = await revisions();
  const second = () => Math.floor(Date.now() / 1000);
  const written = second();
  await eu.stop();
  await eu.eventually('a time that a new stamp would show', () => second() > written);
  eu.manifest('gone.yaml', undefined);
  await eu.start();
  await eu.eventually('the removal', async () => Object.keys(await revisions()).length === 5);
  await eu.eventually('the first sync', () => eu.plane.exporter.synced().size === 6);
  const kept = Object.entries(before).filter(([key]) => !key.includes('gone'));
  assert.deepEqual(await revisions(), Object.fromEntries(kept));
});

test('malformed input in one place leaves everything else in force, and every place is named', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  eu.manifest('bad.yaml', shopManifest(['10.1.1.500']).replaceAll('web', 'api').replace('10.96.0.10', '10.97.0.1'));
  await eu.publishNode('n1', 1, [
    { id: 'a', ipv4: '10.1.1.5', identity: 65_801 },
    { id: 'far', ipv4: '10.1.1.6', identity: 131_072 },
  ]);
  await eu.eventually('the problems', () => eu.plane.local.problems().length >= 3);
  const problems = eu.plane.local.problems().join('\n');
  assert.match(
    problems,
    /bad\.yaml, document 1: Service shop\/api: clusterIP 10\.97\.0\.1 is outside the service CIDR/,
  );
  assert.match(
    problems,
    /bad\.yaml, document 2: EndpointSlice api-1: endpoints\.0\.addresses\.0: "10\.1\.1\.500" is no IPv4 address/,
  );
  assert.match(problems, /endpoint n1\/far: peers would refuse it/);
  await eu.eventually('the rest', async () => Object.keys(await eu.dump('cilium/state/')).length === 5);
});
