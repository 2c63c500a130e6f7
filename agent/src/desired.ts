/**
 * From what is known to what the kernel should hold. Takes rows of the mesh and of the own endpoints, keeps the projections, and
 * on `flush` writes desired rows into the tables. No IO, no clock.
 */
import {
  canonicalCidr,
  canonicalIp,
  clusterOfIdentity,
  hostCidr,
  isIpv4,
  isReservedIdentity,
  type MaxConnectedClusters,
  type NamedPort,
  namedPortsOfEntry,
  namedPortTable,
  nodeInternalIp,
  nodePodCidrs,
  parseCidr,
} from '@clustermesh/contract';
import type { EndpointRow, IpcacheRow, NodeRow, ServiceRow } from './datapath/types.ts';
import { type Claim, type ClaimsProjection, createClaims } from './ipcache/claims.ts';
import { createNodeIds } from './ipcache/node-ids.ts';
import { createPodNets } from './ipcache/pod-nets.ts';
import {
  localEndpointClaims,
  localNodeClaims,
  ownEndpointClaims,
  ownNodeClaims,
  RANK,
  remoteIpClaims,
  remoteNodeClaims,
  worldClaims,
} from './ipcache/rows.ts';
import type { MeshSink, MeshView } from './mesh/types.ts';
import { isLocalIdentity } from './policy/cidrs.ts';
import { createPolicyEngine, type EndpointPolicyInfo } from './policy/engine.ts';
import type { PolicyRow, PolicyStateRow } from './policy/types.ts';
import type { RowSink } from './reconcile/table.ts';
import type { ServiceV2 } from './services/choice.ts';
import { createServicesProjection } from './services/projection.ts';

/** A pod of this node. */
export interface OwnEndpoint {
  readonly ips: readonly string[];
  readonly identity: number;
  readonly endpointId: number;
  /** The identity's label string. */
  readonly labels: string;
  /** Absent: none of its ports has a name. */
  readonly namedPorts?: readonly NamedPort[] | undefined;
}

export interface DesiredOptions {
  readonly own: {
    readonly cluster: string;
    readonly maxConnectedClusters: MaxConnectedClusters;
    readonly clusterId: number;
    readonly nodeIp: string;
    readonly gatewayIp: string;
    readonly podCidr: string;
    readonly ipv6?:
      | { readonly internalIp?: string | undefined; readonly gatewayIp: string; readonly podCidr: string }
      | undefined;
  };
  readonly view: MeshView;
  /** Clusters (the own included) whose pods are reached by routes instead of the tunnel. Default: none. */
  readonly isDirect?: (cluster: string) => boolean;
  /** Whether the node itself may reach its pods unless a policy denies it. */
  readonly allowHost: boolean;
  /** Which of the two forms in which peers publish backends is taken, where there are both. */
  readonly serviceV2: ServiceV2;
  /** Asked for after changes: a pass is wanted. */
  readonly onChanged: () => void;
}

/** A node as the kernel knows it, before it has a number. */
type KnownNode = Omit<NodeRow, 'nodeId'>;

export interface Desired extends MeshSink {
  ownEndpoint(id: string, endpoint: OwnEndpoint | undefined): void;
  /** An endpoint that only the kernel knows: it stays until somebody adds one with its address. */
  unknownEndpoint(ip: string, endpoint: Pick<EndpointRow, 'identity' | 'endpointId'> | undefined): void;
  policyOf(endpointId: number): EndpointPolicyInfo;
  /** What policies know an identity as. */
  describeIdentity(identity: number): string | undefined;
  /** Endpoints of which the kernel lacks a denial. */
  policyRowsFailed(endpointIds: ReadonlySet<number>, states: RowSink<PolicyStateRow>): void;
  /** Policy rows that were to go are gone. */
  policyRowsRemoved(states: RowSink<PolicyStateRow>): void;
  /** What the kernel held when the agent started. */
  restore(rows: {
    readonly ipcache: ReadonlyMap<string, IpcacheRow>;
    readonly services: ReadonlyMap<string, ServiceRow>;
    readonly nodes: ReadonlyMap<string, NodeRow>;
    readonly policies: ReadonlyMap<string, PolicyRow>;
    readonly policyStates: ReadonlyMap<string, PolicyStateRow>;
    readonly endpointIds: Iterable<number>;
  }): void;
  flush(into: {
    readonly ipcache: RowSink<IpcacheRow>;
    readonly services: RowSink<ServiceRow>;
    readonly nodes: RowSink<NodeRow>;
    readonly policies: RowSink<PolicyRow>;
    readonly policyStates: RowSink<PolicyStateRow>;
  }): void;
  /** About how many addresses, nodes and services the next flush will write. */
  waiting(): number;
  problems(): string[];
  /** Services of peers whose present backends nobody has told here, by cluster. */
  outgrownServices(): ReadonlyMap<string, readonly string[]>;
  /** Rows kept only because their source has not spoken since the start. */
  restoredCount(): number;
}

const MOST_SHARED = 100_000;

const podCidrsOf = (of: { readonly podCidr: string; readonly ipv6?: { readonly podCidr: string } | undefined }) => [
  of.podCidr,
  of.ipv6?.podCidr,
];

export function createDesired(options: DesiredOptions): Desired {
  const { own, view } = options;
  const podCidr = parseCidr(own.podCidr);
  const ownPodNets = createPodNets();
  ownPodNets.set('', podCidrsOf(own));
  const isOwnPodAddress = (ip: string): boolean => ownPodNets.contain({ ip, length: isIpv4(ip) ? 32 : 128 });
  const ownUnderlay = [own.nodeIp, ...(own.ipv6?.internalIp === undefined ? [] : [own.ipv6.internalIp])];
  const nodeIds = createNodeIds();

  function isNodeAddressSettled(ip: string): boolean {
    // The own node and its endpoints are known from config and disk: nobody else has a say.
    return ownUnderlay.includes(ip) || isOwnPodAddress(ip) || view.isNodeSettled(ip);
  }

  /** Of another cluster: its rows do not say which of its families they came from. */
  const hasSpoken = (clusterId: number, ...families: readonly ('ip' | 'nodes')[]): boolean =>
    view.isGone(clusterId) || families.every((family) => view.isSettled(clusterId, family));

  function isIpcacheRowSettled(row: IpcacheRow): boolean {
    if (row.clusterId === 0) return !isLocalIdentity(row.identity) || view.arePoliciesHeard();
    if (row.clusterId === own.clusterId)
      return isNodeAddressSettled(row.tunnelEndpoint ?? row.prefix.slice(0, row.prefix.indexOf('/')));
    return hasSpoken(row.clusterId, 'ip', 'nodes');
  }

  /** Of this cluster's nodes: what lies in them is not a peer's to claim. */
  const podNets = createPodNets();
  podNets.set('', podCidrsOf(own));
  const peerNets = createPodNets();

  function isRefused(row: IpcacheRow): boolean {
    // A range of a policy inside a pod CIDR would hide the way to it, and no pod is ever meant by a range.
    if (row.clusterId === own.clusterId || (row.clusterId === 0 && !isLocalIdentity(row.identity))) return false;
    const claimed = parseCidr(row.prefix);
    if (claimed === undefined) return true;
    return podNets.contain(claimed) || (row.clusterId === 0 && peerNets.contain(claimed));
  }

  const policies = createPolicyEngine({
    ownCluster: own.cluster,
    allowHost: options.allowHost,
    isReady: () => view.arePoliciesHeard(),
    isSettled(identity) {
      const cluster = isReservedIdentity(identity) ? 0 : clusterOfIdentity(identity, own.maxConnectedClusters);
      if (cluster === 0 || isLocalIdentity(identity)) return true;
      return view.isSettled(cluster, 'identities') || view.isGone(cluster);
    },
  });
  /** Prefixes that policies name. */
  const ranges = new Set<string>();
  const endpointIds = new Map<string, number>();
  /** The identity that a pod had when it was last told of. */
  const identityBefore = new Map<string, number>();

  function identityOf(source: string, pod: { readonly identity: number; readonly labels: string } | undefined): void {
    const before = identityBefore.get(source);
    if (pod !== undefined) policies.setIdentity(source, pod.identity, pod.labels);
    if (before !== undefined && before !== pod?.identity) policies.setIdentity(source, before, undefined);
    if (pod === undefined) identityBefore.delete(source);
    else identityBefore.set(source, pod.identity);
  }

  /** Whose named ports a source told of last. */
  const portsOf = new Map<string, number>();
  /** Peers of which a pod ever named a port: the addresses of others cost nothing here. */
  const namingPeers = new Set<string>();

  function namedPortsOf(source: string, identity: number, ports: readonly NamedPort[] | undefined): void {
    const table = namedPortTable(ports);
    const before = portsOf.get(source);
    if (before !== undefined && (table === undefined || before !== identity))
      policies.setNamedPorts(source, before, undefined);
    if (table === undefined) {
      portsOf.delete(source);
      return;
    }
    portsOf.set(source, identity);
    policies.setNamedPorts(source, identity, table);
  }

  function setRange(text: string, identity: number | undefined): void {
    const cidr = parseCidr(text);
    const prefix = cidr && canonicalCidr(cidr);
    if (prefix === undefined) return;
    if (identity === undefined) ranges.delete(prefix);
    else ranges.add(prefix);
    const row = { prefix, clusterId: 0, tunnelEndpoint: null, encryptKey: 0 };
    ipcache.setClaims(
      `policy/${prefix}`,
      identity === undefined ? [] : [{ key: prefix, rank: RANK.policyRange, row: { ...row, identity } }],
    );
  }

  const ipcache: ClaimsProjection<IpcacheRow> = createClaims({
    isSettled: isIpcacheRowSettled,
    isClusterSettled: (id) => (id === 0 || id === own.clusterId ? undefined : hasSpoken(id, 'ip', 'nodes')),
    isRefused,
  });
  const nodes: ClaimsProjection<KnownNode> = createClaims({
    isSettled: (row) =>
      row.clusterId === own.clusterId ? isNodeAddressSettled(row.ip) : hasSpoken(row.clusterId, 'nodes'),
    isClusterSettled: (id) => (id === own.clusterId ? undefined : hasSpoken(id, 'nodes')),
  });
  const services = createServicesProjection({
    clusterId: own.clusterId,
    podCidr,
    node: {
      own: ownUnderlay,
      isHere: (ip) => ownUnderlay.includes(ip) || isOwnPodAddress(ip),
    },
    serviceV2: options.serviceV2,
    sources: {
      isSettled: (id) => view.isSettled(id, 'services'),
      areSlicesHeard: (id) => view.areSlicesHeard(id),
      isGone: (id) => view.isGone(id),
    },
  });

  const nodeAddresses = new Map<string, string>();
  function shared(ip: string): string {
    const known = nodeAddresses.get(ip);
    if (known !== undefined) return known;
    // Nodes come and go; what is forgotten here is only kept twice.
    if (nodeAddresses.size >= MOST_SHARED) nodeAddresses.clear();
    // A text of its own: as a part of the value that it was read from, it would keep all of that in memory.
    const copy = Buffer.from(ip, 'latin1').toString('latin1');
    nodeAddresses.set(copy, copy);
    return copy;
  }

  const isDirect = options.isDirect ?? (() => false);
  /** What lies behind a node of that cluster is reached as is configured for it. */
  function routed(cluster: string, claims: Claim<IpcacheRow>[]): Claim<IpcacheRow>[] {
    if (!isDirect(cluster)) return claims;
    return claims.map((claim) =>
      claim.row.tunnelEndpoint === null ? claim : { ...claim, row: { ...claim.row, direct: true as const } },
    );
  }

  /** One string for all addresses of a peer. */
  const sourcesOfIps = new Map<string, string>();
  function sourceOfIps({ name }: { readonly name: string }): string {
    const known = sourcesOfIps.get(name);
    if (known !== undefined) return known;
    const source = `peer/${name}/ip`;
    sourcesOfIps.set(name, source);
    return source;
  }

  const nodeClaims = (ips: readonly (string | undefined)[], clusterId: number, rank: number) =>
    ips.flatMap((text) => {
      const ip = canonicalIp(text ?? '');
      return ip === undefined ? [] : [{ key: ip, rank, row: { ip, clusterId } }];
    });

  ipcache.setClaims('world', worldClaims());
  const inner = [own.gatewayIp, ...(own.ipv6 === undefined ? [] : [own.ipv6.gatewayIp])];
  ipcache.setClaims('own', ownNodeClaims({ clusterId: own.clusterId, ips: [...ownUnderlay, ...inner] }));
  nodes.setClaims('own', nodeClaims(ownUnderlay, own.clusterId, RANK.ownNode));

  return {
    service: services.setService,
    slice: services.setSlice,
    node(name, record) {
      if (podNets.set(name, record === undefined ? [] : podCidrsOf(record))) ipcache.rulesChanged();
      ipcache.setClaims(
        `node/${name}`,
        record === undefined ? [] : routed(own.cluster, localNodeClaims(record, own.clusterId, isDirect(own.cluster))),
      );
      nodes.setClaims(
        `node/${name}`,
        nodeClaims([record?.internalIp, record?.ipv6?.internalIp], own.clusterId, RANK.localNode),
      );
    },
    namespace: (name, namespace) => policies.setNamespace(name, namespace?.labels),
    policy: policies.setPolicy,
    nodeEndpoint(node, id, endpoint, record) {
      const claims =
        endpoint === undefined || record === undefined
          ? []
          : routed(own.cluster, localEndpointClaims(endpoint, record.internalIp, own.clusterId));
      ipcache.setClaims(`node/${node}/${id}`, claims);
      identityOf(`node/${node}/${id}`, endpoint);
      namedPortsOf(`node/${node}/${id}`, endpoint?.identity ?? 0, endpoint?.namedPorts);
    },
    peerNode(peer, name, node) {
      const isOther = peerNets.set(`${peer.name}/${name}`, node === undefined ? [] : nodePodCidrs(node));
      // Only ranges that policies name are held against the pod CIDRs of peers.
      if (isOther) ipcache.rulesChanged(ranges);
      ipcache.setClaims(
        `peer/${peer.name}/node/${name}`,
        node === undefined ? [] : routed(peer.name, remoteNodeClaims(node, peer.id, isDirect(peer.name))),
      );
      const underlay = node === undefined ? [] : [nodeInternalIp(node), nodeInternalIp(node, 6)];
      nodes.setClaims(`peer/${peer.name}/${name}`, nodeClaims(underlay, peer.id, RANK.remoteNode));
    },
    peerService: (peer, name, service) => services.setRemote(peer.name, peer.id, name, service),
    peerSlice: (peer, name, slice) => services.setRemoteSlice(peer.name, peer.id, name, slice),
    peerIp(peer, name, entry) {
      const claims = entry === undefined ? [] : routed(peer.name, remoteIpClaims(entry, peer.id, shared));
      const isNaming = entry?.NamedPorts != null && entry.NamedPorts.length > 0;
      if (isNaming) namingPeers.add(peer.name);
      if (namingPeers.has(peer.name))
        namedPortsOf(`peer/${peer.name}/${name}`, entry?.ID ?? 0, isNaming ? namedPortsOfEntry(entry) : undefined);
      // A host's name says its one row; two prefixes may be two texts of one.
      if (name.includes('/')) ipcache.setClaims(`peer/${peer.name}/ip/${name}`, claims);
      else ipcache.setClaim(sourceOfIps(peer), claims[0]?.key ?? hostCidr(canonicalIp(name) ?? name), claims[0]);
    },
    peerIdentity: (peer, name, entry) => policies.setIdentity(`peer/${peer.name}`, Number(name), entry?.labels),
    unknownEndpoint(ip, endpoint) {
      const claims = endpoint === undefined ? [] : ownEndpointClaims({ ...endpoint, ips: [ip] }, own.clusterId);
      ipcache.setClaims(
        `unknown/${ip}`,
        claims.map((claim) => ({ ...claim, rank: RANK.unknownEndpoint })),
      );
      if (endpoint !== undefined) policies.setEndpoint(endpoint.endpointId, { labels: undefined });
    },
    ownEndpoint(id, endpoint) {
      ipcache.setClaims(`own/${id}`, endpoint === undefined ? [] : ownEndpointClaims(endpoint, own.clusterId));
      identityOf(`own/${id}`, endpoint);
      namedPortsOf(`own/${id}`, endpoint?.identity ?? 0, endpoint?.namedPorts);
      const before = endpointIds.get(id);
      if (before !== undefined && before !== endpoint?.endpointId) policies.setEndpoint(before, undefined);
      if (endpoint === undefined) endpointIds.delete(id);
      else {
        endpointIds.set(id, endpoint.endpointId);
        const namedPorts = namedPortTable(endpoint.namedPorts);
        policies.setEndpoint(endpoint.endpointId, {
          labels: endpoint.labels,
          ...(namedPorts === undefined ? {} : { namedPorts }),
        });
      }
    },
    policyOf: policies.info,
    describeIdentity: policies.describe,
    policyRowsFailed: policies.setIncomplete,
    policyRowsRemoved: policies.removed,
    sourcesChanged(clusterId, family) {
      if (family === undefined || family === 'ip' || family === 'nodes') {
        ipcache.sourcesChanged(clusterId);
        nodes.sourcesChanged(clusterId);
      }
      if (family === undefined || family === 'services' || family === 'endpointslices')
        services.sourcesChanged(clusterId);
      // Ranges of policies are nobody's: the rows of cluster 0.
      if (family === undefined || family === 'policies' || family === 'namespaces') ipcache.sourcesChanged(0);
    },
    changed: options.onChanged,
    restore(rows) {
      ipcache.restore(rows.ipcache);
      policies.restore({
        rows: rows.policies,
        states: rows.policyStates,
        cidrs: [...rows.ipcache.values()].map(({ prefix, identity }) => [prefix, identity] as const),
        endpoints: rows.endpointIds,
      });
      services.restore(rows.services);
      nodeIds.restore(rows.nodes.values());
      nodes.restore(new Map([...rows.nodes].map(([key, { ip, clusterId }]) => [key, { ip, clusterId }])));
    },
    flush(into) {
      policies.flush({ rows: into.policies, states: into.policyStates, cidr: setRange });
      ipcache.flush(into.ipcache);
      nodes.flush({
        set: (key, row) => into.nodes.set(key, { ...row, nodeId: nodeIds.idOf(row.ip) }),
        delete(key) {
          into.nodes.delete(key);
          nodeIds.release(key);
        },
      });
      services.flush(into.services);
    },
    problems() {
      const count = ipcache.refusedCount();
      return [
        ...(count === 0
          ? []
          : [`${count} addresses in this cluster's pod CIDRs are claimed by other clusters: ignored`]),
        ...services.problems(),
      ];
    },
    outgrownServices: services.outgrown,
    waiting: () => ipcache.waiting() + nodes.waiting() + services.waiting(),
    restoredCount: () =>
      ipcache.restoredCount() + nodes.restoredCount() + services.restoredCount() + policies.restoredCount(),
  };
}
