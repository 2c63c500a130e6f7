/**
 * The load of Cilium's own CI scale test for clustermesh, in the cached layout: clusters × (nodes, identities, endpoints), and what
 * changes per second. Deterministic: every process that asks gets the same keys and values. Also the model of what a kernel that
 * follows it must hold.
 */
import {
  canaryKey,
  clusterConfigKey,
  dataPrefix,
  encodeClusterConfig,
  encodeIpEntry,
  encodeNode,
  FAMILIES,
  identityKey,
  ipKey,
  makeNode,
  nodeKey,
  numberToIpv4,
} from '@clustermesh/contract';

export interface LoadShape {
  readonly clusters: number;
  readonly nodes: number;
  readonly identities: number;
  readonly endpoints: number;
}

/** Changes per second and cluster, as in the scale test. */
export const CHURN = { nodes: 0.1, identities: 0.2, endpoints: 1 } as const;

export const OWN = {
  ...{ name: 'cluster255', id: 255, node: 'n1', ip: '172.31.255.11' },
  ...{ podCIDR: '10.255.1.0/24', gatewayIP: '10.255.1.1' },
} as const;

export const clusterName = (id: number): string => `cluster${id}`;
export const keysOf = (shape: LoadShape): number => shape.clusters * (shape.nodes + shape.identities + shape.endpoints);

/** 100.64.0.0/10: 128 node addresses a cluster. */
export const nodeIp = (cluster: number, node: number): string => numberToIpv4(0x64400000 + cluster * 128 + node);
const podCidr = (cluster: number, node: number): string => `10.${cluster}.${node}.0/24`;
const gatewayIp = (cluster: number, node: number): string => `10.${cluster}.${node}.1`;
const nodeName = (node: number): string => `node-${String(node).padStart(4, '0')}`;

export interface EndpointAddress {
  readonly ip: string;
  readonly host: string;
}

/** Endpoints lie on the cluster's nodes in turn. */
export function endpointAddress(shape: LoadShape, cluster: number, endpoint: number): EndpointAddress {
  const node = endpoint % shape.nodes;
  return { ip: `10.${cluster}.${node}.${2 + Math.floor(endpoint / shape.nodes)}`, host: nodeIp(cluster, node) };
}

export const identityNumber = (cluster: number, identity: number): number => (cluster << 16) + 256 + identity;

export interface Entry {
  readonly key: string;
  readonly value: string;
}

const stamp = (): { readonly 'x-clustermesh': { readonly changedAt: string } } => ({
  'x-clustermesh': { changedAt: new Date().toISOString() },
});

export function nodeEntry(cluster: number, node: number): Entry {
  const name = nodeName(node);
  const value = makeNode({
    name,
    cluster: clusterName(cluster),
    clusterId: cluster,
    internalIp: nodeIp(cluster, node),
    gatewayIp: gatewayIp(cluster, node),
    podCidr: podCidr(cluster, node),
    labels: { 'kubernetes.io/hostname': name, 'kubernetes.io/os': 'linux', 'topology.kubernetes.io/zone': 'a' },
  });
  return { key: nodeKey(clusterName(cluster), name, 'cache'), value: encodeNode({ ...value, ...stamp() }) };
}

export function identityEntry(cluster: number, identity: number): Entry {
  const name = clusterName(cluster);
  return {
    key: identityKey(name, identityNumber(cluster, identity), 'cache'),
    value: `k8s:app=app-${identity};k8s:io.cilium.k8s.policy.cluster=${name};k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns-${identity % 10};`,
  };
}

export function endpointEntry(shape: LoadShape, cluster: number, endpoint: number, identity: number): Entry {
  const { ip, host } = endpointAddress(shape, cluster, endpoint);
  const value = encodeIpEntry({
    IP: ip,
    Mask: null,
    HostIP: host,
    ID: identityNumber(cluster, identity),
    Key: 0,
    Metadata: '',
    K8sNamespace: `ns-${identity % 10}`,
    K8sPodName: `app-${identity}-${endpoint}`,
    K8sServiceAccount: 'default',
    ...stamp(),
  });
  return { key: ipKey(clusterName(cluster), ip, 'cache'), value };
}

export function* dataOf(shape: LoadShape, cluster: number): Generator<Entry> {
  for (let node = 0; node < shape.nodes; node++) yield nodeEntry(cluster, node);
  for (let identity = 0; identity < shape.identities; identity++) yield identityEntry(cluster, identity);
  for (let endpoint = 0; endpoint < shape.endpoints; endpoint++)
    yield endpointEntry(shape, cluster, endpoint, endpoint % shape.identities);
}

/** Written after the data: canaries, then the config that makes agents look. */
export function announcementsOf(cluster: number): Entry[] {
  const name = clusterName(cluster);
  const capabilities = { syncedCanaries: true, cached: true, maxConnectedClusters: 255 };
  return [
    ...FAMILIES.map((family) => ({ key: canaryKey(name, family, 'cache'), value: '2026-01-01T00:00:00Z' })),
    { key: clusterConfigKey(name), value: encodeClusterConfig({ id: cluster, capabilities }) },
  ];
}

export function prefixesOf(shape: LoadShape): string[] {
  const ids = Array.from({ length: shape.clusters }, (_, i) => i + 1);
  return ids.flatMap((id) => FAMILIES.map((family) => dataPrefix(clusterName(id), family, 'cache')));
}

/** What the kernel must hold: rows by table and key. */
export interface Expected {
  readonly ipcache: Map<string, string>;
  readonly nodes: Map<string, string>;
}

export const ipcacheText = (identity: number, cluster: number, tunnel: string | null): string =>
  `${identity}/${cluster}/${tunnel ?? '-'}`;

export function expectNode(expected: Expected, cluster: number, node: number, present: boolean): void {
  const ip = nodeIp(cluster, node);
  const rows: [string, string][] = [
    [`${ip}/32`, ipcacheText(6, cluster, null)],
    [`${gatewayIp(cluster, node)}/32`, ipcacheText(6, cluster, ip)],
    [podCidr(cluster, node), ipcacheText(3, cluster, ip)],
  ];
  for (const [key, row] of rows) {
    if (present) expected.ipcache.set(key, row);
    else expected.ipcache.delete(key);
  }
  if (present) expected.nodes.set(ip, String(cluster));
  else expected.nodes.delete(ip);
}

export function expectEndpoint(
  expected: Expected,
  at: EndpointAddress,
  cluster: number,
  identity: number | undefined,
): void {
  const key = `${at.ip}/32`;
  if (identity === undefined) expected.ipcache.delete(key);
  else expected.ipcache.set(key, ipcacheText(identityNumber(cluster, identity), cluster, at.host));
}

export function expectedOf(shape: LoadShape): Expected {
  const expected: Expected = { ipcache: new Map(), nodes: new Map() };
  expected.ipcache.set('0.0.0.0/0', ipcacheText(2, 0, null));
  expected.ipcache.set('::/0', ipcacheText(10, 0, null));
  expected.ipcache.set(`${OWN.ip}/32`, ipcacheText(1, OWN.id, null));
  expected.ipcache.set(`${OWN.gatewayIP}/32`, ipcacheText(1, OWN.id, null));
  expected.nodes.set(OWN.ip, String(OWN.id));
  for (let cluster = 1; cluster <= shape.clusters; cluster++) {
    for (let node = 0; node < shape.nodes; node++) expectNode(expected, cluster, node, true);
    for (let endpoint = 0; endpoint < shape.endpoints; endpoint++)
      expectEndpoint(expected, endpointAddress(shape, cluster, endpoint), cluster, endpoint % shape.identities);
  }
  return expected;
}

/** Equal for equal sets of rows, whatever their order. */
export function fingerprint(rows: Iterable<readonly [string, string]>): {
  readonly rows: number;
  readonly sum: number;
} {
  let count = 0;
  let sum = 0;
  for (const [key, value] of rows) {
    let hash = 0x811c9dc5;
    const text = `${key}=${value}`;
    for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
    sum = (sum + (hash >>> 0)) % 0xffffffff;
    count++;
  }
  return { rows: count, sum };
}
