import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeClusterConfig, type EndpointRecord, type NodeRecord, validatePeerConfig } from '@clustermesh/contract';
import { parseManifestFile } from '../sources/manifests/parse.ts';
import { buildSnapshot, isGlobalNamespace, type ManifestSnapshot } from '../sources/manifests/snapshot.ts';
import type { LocatedEndpoint } from '../sources/nodes/node-table.ts';
import { ownClusterConfig } from './cluster-config.ts';
import { EndpointProjection } from './endpoint-projection.ts';
import { exportLocal } from './local.ts';
import { exportServices, fitServices } from './services.ts';
import { stampChanges } from './stamp.ts';

const CLUSTER = { name: 'eu', id: 1, maxConnectedClusters: 255 as const, region: 'eu-west' };

function snapshotOf(text: string): ManifestSnapshot {
  const parsed = parseManifestFile('app.yaml', text);
  assert.deepEqual(parsed.problems, []);
  return buildSnapshot({
    ...parsed,
    defaultGlobalNamespace: true,
    policies: { cluster: 'eu', defaultLocalCluster: true },
    serviceCidrs: { IPv4: '10.96.0.0/16' },
    previousIps: { IPv4: new Map(), IPv6: new Map() },
  }).snapshot;
}

const labels = (namespace: string, app: string) =>
  `k8s:app=${app};k8s:io.cilium.k8s.policy.cluster=eu;k8s:io.kubernetes.pod.namespace=${namespace};`;

function endpoint(
  node: string,
  id: string,
  fields: Partial<EndpointRecord> & { ipv4: string },
  revision = 1,
): LocatedEndpoint {
  const namespace = fields.namespace ?? 'shop';
  const record = { id, namespace, pod: `pod-${id}`, labels: labels(namespace, 'web'), identity: 65_800, ...fields };
  return { node, record, revision };
}

const NODES: readonly NodeRecord[] = [
  {
    name: 'n1',
    internalIp: '172.31.1.11',
    gatewayIp: '10.1.1.1',
    podCidr: '10.1.1.0/24',
    zone: 'eu-west-a',
    region: 'eu-west',
  },
  { name: 'n2', internalIp: '172.31.1.12', gatewayIp: '10.1.2.1', podCidr: '10.1.2.0/24' },
];

/** What is exported when these are all the endpoints; with a projection, after what it was told before. */
function exportOf(
  endpoints: readonly LocatedEndpoint[],
  manifests = snapshotOf(''),
  projection = new EndpointProjection(CLUSTER),
  nodes: readonly NodeRecord[] = NODES,
) {
  projection.apply(
    {
      nodes: new Map(nodes.map((node) => [node.name, node])),
      endpoints: endpoints.map((endpoint) => ({ node: endpoint.node, id: endpoint.record.id, endpoint })),
    },
    (ns) => isGlobalNamespace(manifests, ns),
  );
  return { ...projection.rows, problems: projection.problems(), projection };
}

const SHOP = `
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop, labels: { app: web }, annotations: { service.cilium.io/global: "true" } }
spec: { clusterIP: 10.96.0.10, selector: { app: web }, ports: [{ name: http, port: 80 }, { name: dns, port: 53, protocol: UDP }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
endpoints:
  - { addresses: [10.1.1.5], zone: eu-west-a }
  - { addresses: [10.1.1.6], conditions: { ready: false } }
  - { addresses: [10.1.2.7], conditions: { ready: false, serving: true, terminating: true } }
ports: [{ name: http, port: 8080 }, { name: dns, port: 5353, protocol: UDP }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-2, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
endpoints: [{ addresses: [10.1.2.8], zone: eu-west-b }]
ports: [{ name: http, port: 8080 }]
`;

test('a global service is exported with the backends that are ready or serving', () => {
  const manifests = snapshotOf(SHOP);
  const rows = exportServices(CLUSTER, manifests.services.values(), manifests.slices.values());
  assert.deepEqual([...rows.keys()], ['cilium/state/services/v1/eu/shop/web']);
  const http = { Protocol: 'TCP', Port: 8080 };
  const dns = { Protocol: 'UDP', Port: 5353 };
  assert.deepEqual(JSON.parse([...rows.values()][0] ?? ''), {
    cluster: 'eu',
    namespace: 'shop',
    name: 'web',
    frontends: { '10.96.0.10': { http: { Protocol: 'TCP', Port: 80 }, dns: { Protocol: 'UDP', Port: 53 } } },
    backends: { '10.1.1.5': { http, dns }, '10.1.2.7': { http, dns }, '10.1.2.8': { http } },
    zones: { '10.1.1.5': { zone: 'eu-west-a', forZones: null }, '10.1.2.8': { zone: 'eu-west-b', forZones: null } },
    labels: { app: 'web' },
    selector: { app: 'web' },
    includeExternal: true,
    shared: true,
    clusterID: 1,
  });
});

test('a headless service has no frontends, and tells hostnames', () => {
  const manifests = snapshotOf(
    SHOP.replace('10.96.0.10', 'None').replace(
      '{ addresses: [10.1.1.5], zone: eu-west-a }',
      '{ addresses: [10.1.1.5], hostname: web-0 }',
    ),
  );
  const [value] = exportServices(CLUSTER, manifests.services.values(), manifests.slices.values()).values();
  const service = JSON.parse(value ?? '');
  assert.deepEqual(service.frontends, {});
  assert.deepEqual(service.hostnames, { '10.1.1.5': 'web-0' });
});

for (const { title, from, to } of [
  { title: 'not annotated', from: 'service.cilium.io/global: "true"', to: 'x: y' },
  { title: 'not shared', from: 'global: "true"', to: 'global: "true", service.cilium.io/shared: "false"' },
  { title: 'annotated with an unknown value', from: 'global: "true"', to: 'global: "maybe"' },
]) {
  test(`a service that is ${title} is not exported, but its own agents know it`, () => {
    const manifests = snapshotOf(SHOP.replace(from, to));
    assert.equal(exportServices(CLUSTER, manifests.services.values(), manifests.slices.values()).size, 0);
    assert.ok(exportLocal(manifests).get('services')?.has('clustermesh/local/services/shop/web'));
  });
}

test('a namespace marked not global leaks no service, endpoint or identity; nodes stay', () => {
  const closed = `${SHOP}---\napiVersion: v1\nkind: Namespace\nmetadata: { name: shop, annotations: { clustermesh.cilium.io/global: "false" } }\n`;
  const manifests = snapshotOf(closed);
  const other = { namespace: 'open', labels: labels('open', 'db'), identity: 65_801 };
  const result = exportOf(
    [endpoint('n1', 'a', { ipv4: '10.1.1.5' }), endpoint('n1', 'b', { ipv4: '10.1.1.9', ...other })],
    manifests,
  );
  assert.equal(exportServices(CLUSTER, manifests.services.values(), manifests.slices.values()).size, 0);
  assert.deepEqual([...result.ip.keys()], ['cilium/state/ip/v1/default/10.1.1.9']);
  assert.deepEqual([...result.identities], [['cilium/state/identities/v1/id/65801', other.labels]]);
  assert.deepEqual([...result.nodes.keys()], ['cilium/state/nodes/v1/eu/n1', 'cilium/state/nodes/v1/eu/n2']);
});

test('an endpoint is exported as Cilium writes it', () => {
  const { ip, identities, problems } = exportOf([endpoint('n1', 'a', { ipv4: '10.1.1.5', serviceAccount: 'default' })]);
  assert.deepEqual(problems, []);
  assert.deepEqual(JSON.parse(ip.get('cilium/state/ip/v1/default/10.1.1.5') ?? ''), {
    IP: '10.1.1.5',
    Mask: null,
    HostIP: '172.31.1.11',
    ID: 65_800,
    Key: 0,
    Metadata: '',
    K8sNamespace: 'shop',
    K8sPodName: 'pod-a',
    K8sServiceAccount: 'default',
  });
  assert.deepEqual([...identities], [['cilium/state/identities/v1/id/65800', labels('shop', 'web')]]);
});

test('a dual-stack endpoint is exported once per address, its identity once; so is its node', () => {
  const { ip, identities, problems } = exportOf([endpoint('n1', 'a', { ipv4: '10.1.1.5', ipv6: 'fd00:1:1::5' })]);
  assert.deepEqual(problems, []);
  const rows = [...ip].map(([key, value]) => [key, JSON.parse(value).HostIP]);
  assert.deepEqual(rows, [
    ['cilium/state/ip/v1/default/10.1.1.5', '172.31.1.11'],
    ['cilium/state/ip/v1/default/fd00:1:1::5', '172.31.1.11'],
  ]);
  assert.equal(identities.size, 1);
  const ipv6 = { internalIp: 'fd31::1:11', gatewayIp: 'fd00:1:1::1', podCidr: 'fd00:1:1::/64' };
  const exported = exportOf([], undefined, undefined, [{ ...NODES[0]!, ipv6 }]);
  const node = JSON.parse([...exported.nodes.values()][0]!);
  assert.deepEqual(
    node.IPAddresses.map((address: { Type: string; IP: string }) => `${address.Type} ${address.IP}`),
    ['InternalIP 172.31.1.11', 'CiliumInternalIP 10.1.1.1', 'InternalIP fd31::1:11', 'CiliumInternalIP fd00:1:1::1'],
  );
  assert.deepEqual(node.IPv6AllocCIDR, { IP: 'fd00:1:1::', Mask: '//////////8AAAAAAAAAAA==' });
});

test('of two claimants of one address the first stays owner, and the next is promoted when it goes', () => {
  const first = endpoint('n2', 'z', { ipv4: '10.1.1.5' }, 10);
  const second = endpoint('n1', 'a', { ipv4: '10.1.1.5' }, 20);
  const host = (rows: ReadonlyMap<string, string>) =>
    JSON.parse(rows.get('cilium/state/ip/v1/default/10.1.1.5') ?? '{}').HostIP;
  const both = exportOf([second, first]);
  assert.equal(host(both.ip), '172.31.1.12', 'the older record owns the address');
  assert.match(both.problems.join(), /address 10\.1\.1\.5 of endpoint n1\/a already belongs to n2\/z/);
  const rewritten = exportOf([{ ...first, revision: 30 }], undefined, both.projection);
  assert.equal(host(rewritten.ip), '172.31.1.12', 'an owner that is written again stays owner');
  const gone = { node: 'n2', id: 'z', endpoint: undefined };
  both.projection.apply({ nodes: new Map(), endpoints: [gone] }, () => true);
  const alone = exportOf([], undefined, both.projection);
  assert.equal(host(alone.ip), '172.31.1.11');
  assert.deepEqual(alone.problems, []);
});

test('an endpoint that peers would refuse stays at home and is reported', () => {
  const result = exportOf([
    endpoint('n1', 'range', { ipv4: '10.1.1.5', identity: 131_072 }),
    endpoint('n1', 'label', { ipv4: '10.1.1.6', labels: 'k8s:io.cilium.k8s.policy.cluster=us;' }),
    endpoint('n9', 'homeless', { ipv4: '10.1.1.7' }),
  ]);
  assert.equal(result.ip.size, 0);
  assert.match(result.problems.join('\n'), /n1\/range: peers would refuse it: identity 131072 is not in the range/);
  assert.match(result.problems.join('\n'), /n1\/label: peers would refuse it/);
  assert.match(result.problems.join('\n'), /n9\/homeless: its node has published no address/);
});

test('one identity number never stands for two label sets', () => {
  const result = exportOf([
    endpoint('n1', 'a', { ipv4: '10.1.1.5' }, 1),
    endpoint('n1', 'b', { ipv4: '10.1.1.6', labels: labels('shop', 'other') }, 2),
  ]);
  assert.deepEqual([...result.identities.values()], [labels('shop', 'web')]);
  assert.match(result.problems.join(), /n1\/b: identity 65800 already stands for/);
});

test("named ports of a pod's containers are told with its address", () => {
  const namedPorts = [{ name: 'http', port: 8080, protocol: 'TCP' as const }];
  const { ip } = exportOf([
    endpoint('n1', 'a', { ipv4: '10.1.1.5', namedPorts }),
    endpoint('n1', 'b', { ipv4: '10.1.1.6' }),
  ]);
  assert.deepEqual(
    [...ip.values()].map((text) => JSON.parse(text).NamedPorts),
    [[{ Name: 'http', Port: 8080, Protocol: 'TCP' }], undefined],
  );
});

test('nothing in, nothing out', () => {
  const manifests = snapshotOf('');
  const result = exportOf([], undefined, undefined, []);
  assert.deepEqual([result.nodes.size, result.ip.size, result.identities.size], [0, 0, 0]);
  assert.equal(exportServices(CLUSTER, manifests.services.values(), manifests.slices.values()).size, 0);
  assert.deepEqual(
    [...exportLocal(manifests).values()].map((rows) => rows.size),
    [0, 0, 0, 0],
  );
});

test('our cluster config is one that a peer accepts', () => {
  for (const mode of ['services', 'services-and-endpointslices', 'endpointslices-only'] as const) {
    const decoded = decodeClusterConfig(ownClusterConfig(CLUSTER, mode));
    assert.ok(decoded.ok);
    assert.ok(validatePeerConfig('eu', decoded.value, { id: 2, maxConnectedClusters: 255 }).ok);
    assert.deepEqual(decoded.value.capabilities, {
      syncedCanaries: true,
      maxConnectedClusters: 255,
      serviceExportsEnabled: false,
      ...(mode === 'services' ? {} : { endpointSlicesExportMode: mode }),
    });
  }
});

test('a value that differs only in our own object is not written again', () => {
  const rows = new Map([['k', '{"a":1,"x-clustermesh":{"zone":"z"}}']]);
  const first = stampChanges(rows, new Map(), Date.parse('2025-01-01T00:00:00.007Z'));
  assert.deepEqual(JSON.parse(first.get('k') ?? ''), {
    a: 1,
    'x-clustermesh': { zone: 'z', changedAt: '2025-01-01T00:00:00.007Z' },
  });
  const second = stampChanges(new Map([['k', '{"a":1}']]), first, Date.parse('2025-01-02T00:00:00Z'));
  assert.equal(second.get('k'), first.get('k'));
  const third = stampChanges(new Map([['k', '{"a":2}']]), second, Date.parse('2025-01-03T00:00:00Z'));
  assert.equal(JSON.parse(third.get('k') ?? '')['x-clustermesh'].changedAt, '2025-01-03T00:00:00.000Z');
});

test('weights of backends travel in our own object, and a change of them alone is a change', () => {
  const published = (weight: string, before: ReadonlyMap<string, string>, day: string) => {
    const { services, slices } = snapshotOf(`apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop, annotations: { service.cilium.io/global: "true" } }
spec: { clusterIP: 10.96.0.10, ports: [{ name: http, port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web }${weight} }
addressType: IPv4
endpoints: [{ addresses: ["10.1.1.5"] }]
ports: [{ name: http, port: 8080 }]
`);
    return stampChanges(exportServices(CLUSTER, services.values(), slices.values()), before, Date.parse(day));
  };
  const extensionOf = (rows: ReadonlyMap<string, string>) => JSON.parse([...rows.values()][0] ?? '')['x-clustermesh'];
  const weighing = ', annotations: { service.cilium.io/weight: "3" }';
  const plain = published('', new Map(), '2025-01-01T00:00:00Z');
  assert.deepEqual(extensionOf(plain), { changedAt: '2025-01-01T00:00:00.000Z' });
  const weighted = published(weighing, plain, '2025-01-02T00:00:00Z');
  assert.deepEqual(extensionOf(weighted), { weights: { '10.1.1.5': 3 }, changedAt: '2025-01-02T00:00:00.000Z' });
  assert.deepEqual(published(weighing, weighted, '2025-01-03T00:00:00Z'), weighted, 'not written again');
  assert.equal(extensionOf(published('', weighted, '2025-01-04T00:00:00Z')).weights, undefined);
});

test('a service that outgrows one value keeps its last version that fitted, marked, until it fits again', () => {
  const at = (text: string) => Date.parse(text);
  const options = (text: string) => ({ hasSlices: true, wallMs: at(text) });
  const value = (count: number) => {
    const backends = Object.fromEntries(
      Array.from({ length: count }, (_, n) => [
        `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`,
        { http: { Protocol: 'TCP', Port: 80 } },
      ]),
    );
    return new Map([['k', JSON.stringify({ namespace: 'shop', name: 'web', backends })]]);
  };
  const publish = (count: number, before: ReadonlyMap<string, string>, when: string) =>
    fitServices(stampChanges(value(count), before, at(when)), before, options(when));
  const read = (values: ReadonlyMap<string, string>) => {
    const service = JSON.parse(values.get('k') ?? '');
    return { count: Object.keys(service.backends).length, ...service['x-clustermesh'] };
  };

  const tooLargeAtOnce = publish(40_000, new Map(), '2026-01-01T00:00:00Z');
  assert.equal(tooLargeAtOnce.values.size, 0);
  assert.match(
    tooLargeAtOnce.problems[0] ?? '',
    /^Service shop\/web: with 40000 backends .*readers of services alone get nothing/,
  );

  const small = publish(100, new Map(), '2026-01-01T00:00:00Z');
  assert.deepEqual(small.problems, []);
  const outgrown = publish(40_000, small.values, '2026-01-02T00:00:00Z');
  const marked = { count: 100, changedAt: '2026-01-02T00:00:00.000Z', outgrownAt: '2026-01-02T00:00:00.000Z' };
  assert.deepEqual(read(outgrown.values), marked);
  assert.match(
    outgrown.problems[0] ?? '',
    /keep its last version that fitted; its endpoint slices carry all backends$/,
  );
  const later = publish(50_000, outgrown.values, '2026-01-03T00:00:00Z');
  assert.deepEqual([...later.values], [...outgrown.values], 'a large value is not written again for each change');

  for (const count of [100, 101]) {
    const shrunk = publish(count, later.values, '2026-01-04T00:00:00Z');
    assert.equal(read(shrunk.values).count, count);
    assert.equal(read(shrunk.values).outgrownAt, undefined);
    assert.deepEqual(shrunk.problems, []);
  }
});
