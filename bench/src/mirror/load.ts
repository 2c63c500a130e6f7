/**
 * The load of Cilium's own CI scale test, as peers publish it (state layout): each peer holds the nodes, identities and endpoints of
 * `worth` of its clusters, so that a few real etcds carry as many keys as many small ones. Deterministic but for the time stamps.
 */
import {
  canaryKey,
  clusterConfigKey,
  dataPrefix,
  encodeClusterConfig,
  encodeIpEntry,
  encodeNode,
  FAMILIES,
  type Family,
  HEARTBEAT_KEY,
  identityKey,
  ipKey,
  makeNode,
  nodeKey,
  numberToIpv4,
} from '@clustermesh/contract';

export interface MirrorShape {
  readonly peers: number;
  /** Clusters of the scale test that each peer stands for. */
  readonly worth: number;
}

export interface Entry {
  readonly key: string;
  readonly value: string;
}

/** Of one cluster of the scale test. */
const NODES = 100;
const IDENTITIES = 100;
const ENDPOINTS = 1000;
export const KEYS_PER_CLUSTER = NODES + IDENTITIES + ENDPOINTS;
const PER_NODE = ENDPOINTS / NODES;

export const peerName = (peer: number): string => `peer${peer}`;

/** 10.0.0.0/8 in equal parts, the first of which is the mirroring cluster's. */
export function podCidrLength(peers: number): number {
  return 8 + Math.ceil(Math.log2(peers + 1));
}

/** A node's pods: a /28 with its gateway and 10 endpoints, so that 40 clusters' worth fits into a /16. */
function nodeNetwork(shape: MirrorShape, peer: number, node: number): number {
  return 0x0a000000 + peer * 2 ** (32 - podCidrLength(shape.peers)) + node * 16;
}

export function podCidrOf(shape: MirrorShape, peer: number): string {
  const length = podCidrLength(shape.peers);
  return `${numberToIpv4(0x0a000000 + peer * 2 ** (32 - length))}/${length}`;
}

/** Throws when the address plan does not hold this many. */
export function checkShape(shape: MirrorShape): void {
  const room = 2 ** (32 - podCidrLength(shape.peers));
  if (shape.worth * NODES * 16 > room || shape.worth * IDENTITIES > 65_000 || shape.peers > 250)
    throw new Error(`${shape.peers} peers cannot be worth ${shape.worth} clusters each: the address plan ends before`);
}

/** 100.64.0.0/10: 16 384 node addresses a peer. */
const nodeIp = (peer: number, node: number): string => numberToIpv4(0x64400000 + peer * 16_384 + node);

const stamp = () => ({ 'x-clustermesh': { changedAt: new Date().toISOString() } });

export function nodeEntry(shape: MirrorShape, peer: number, node: number): Entry {
  const name = `node-${String(node).padStart(5, '0')}`;
  const network = nodeNetwork(shape, peer, node);
  const value = makeNode({
    name,
    cluster: peerName(peer),
    clusterId: peer,
    internalIp: nodeIp(peer, node),
    gatewayIp: numberToIpv4(network + 1),
    podCidr: `${numberToIpv4(network)}/28`,
    labels: { 'kubernetes.io/hostname': name, 'kubernetes.io/os': 'linux', 'topology.kubernetes.io/zone': 'a' },
  });
  return { key: nodeKey(peerName(peer), name), value: encodeNode({ ...value, ...stamp() }) };
}

const identityNumber = (peer: number, identity: number): number => (peer << 16) + 256 + identity;

export function identityEntry(peer: number, identity: number): Entry {
  return {
    key: identityKey(peerName(peer), identityNumber(peer, identity)),
    value: `k8s:app=app-${identity};k8s:io.cilium.k8s.policy.cluster=${peerName(peer)};k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns-${identity % 10};`,
  };
}

export function endpointEntry(shape: MirrorShape, peer: number, endpoint: number, identity: number): Entry {
  const node = Math.floor(endpoint / PER_NODE);
  const ip = numberToIpv4(nodeNetwork(shape, peer, node) + 2 + (endpoint % PER_NODE));
  const value = encodeIpEntry({
    IP: ip,
    Mask: null,
    HostIP: nodeIp(peer, node),
    ID: identityNumber(peer, identity),
    Key: 0,
    Metadata: '',
    K8sNamespace: `ns-${identity % 10}`,
    K8sPodName: `app-${identity}-${endpoint}`,
    K8sServiceAccount: 'default',
    ...stamp(),
  });
  return { key: ipKey(peerName(peer), ip), value };
}

export const countsOf = ({ worth }: MirrorShape) => ({
  nodes: NODES * worth,
  identities: IDENTITIES * worth,
  endpoints: ENDPOINTS * worth,
});

export function* dataOf(shape: MirrorShape, peer: number): Generator<Entry> {
  const { nodes, identities, endpoints } = countsOf(shape);
  for (let node = 0; node < nodes; node++) yield nodeEntry(shape, peer, node);
  for (let identity = 0; identity < identities; identity++) yield identityEntry(peer, identity);
  for (let endpoint = 0; endpoint < endpoints; endpoint++)
    yield endpointEntry(shape, peer, endpoint, endpoint % identities);
}

export const heartbeat = (): Entry => ({ key: HEARTBEAT_KEY, value: new Date().toISOString() });

/** Written after the data: canaries, the heartbeat, then the config that makes readers look. */
export function announcementsOf(peer: number): Entry[] {
  const name = peerName(peer);
  const capabilities = { syncedCanaries: true, maxConnectedClusters: 255 };
  return [
    ...FAMILIES.map((family) => ({ key: canaryKey(name, family, 'state'), value: new Date().toISOString() })),
    heartbeat(),
    { key: clusterConfigKey(name), value: encodeClusterConfig({ id: peer, capabilities }) },
  ];
}

/** Where a family of a peer lies, and where its copy does. */
export const prefixesOf = (peer: number, family: Family): { readonly source: string; readonly target: string } => ({
  source: dataPrefix(peerName(peer), family, 'state'),
  target: dataPrefix(peerName(peer), family, 'cache'),
});
