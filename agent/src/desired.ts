/**
 * From what is known to what the kernel should hold. Takes rows of the mesh and of the own endpoints, keeps the projections, and
 * on `flush` writes desired rows into the tables. No IO, no clock.
 */
import { type Cidr, ipv4Contains, ipv4ToNumber, isIpv4, nodeInternalIp, parseCidr } from '@clustermesh/contract';
import type { IpcacheRow, NodeRow, ServiceRow } from './datapath/types.ts';
import { type ClaimsProjection, createClaims } from './ipcache/claims.ts';
import { createNodeIds } from './ipcache/node-ids.ts';
import {
  hostPrefix,
  localEndpointClaims,
  localNodeClaims,
  ownEndpointClaim,
  ownNodeClaims,
  RANK,
  remoteIpClaims,
  remoteNodeClaims,
  worldClaim,
} from './ipcache/rows.ts';
import type { MeshSink, MeshView } from './mesh/types.ts';
import type { RowSink } from './reconcile/table.ts';
import type { ServiceV2 } from './services/choice.ts';
import { createServicesProjection } from './services/projection.ts';

export interface DesiredOptions {
  readonly own: {
    readonly clusterId: number;
    readonly nodeIp: string;
    readonly gatewayIp: string;
    readonly podCidr: string;
  };
  readonly view: MeshView;
  /** Which of the two forms in which peers publish backends is taken, where there are both. */
  readonly serviceV2: ServiceV2;
  /** Asked for after changes: a pass is wanted. */
  readonly onChanged: () => void;
}

/** A node as the kernel knows it, before it has a number. */
type KnownNode = Omit<NodeRow, 'nodeId'>;

export interface Desired extends MeshSink {
  ownEndpoint(id: string, endpoint: { readonly ipv4: string; readonly identity: number } | undefined): void;
  /** An endpoint that only the kernel knows: it stays until somebody adds one with its address. */
  unknownEndpoint(ipv4: string, identity: number | undefined): void;
  /** What the kernel held when the agent started. */
  restore(rows: {
    readonly ipcache: ReadonlyMap<string, IpcacheRow>;
    readonly services: ReadonlyMap<string, ServiceRow>;
    readonly nodes: ReadonlyMap<string, NodeRow>;
  }): void;
  flush(into: {
    readonly ipcache: RowSink<IpcacheRow>;
    readonly services: RowSink<ServiceRow>;
    readonly nodes: RowSink<NodeRow>;
  }): void;
  problems(): string[];
  /** Services of peers whose present backends nobody has told here, by cluster. */
  outgrownServices(): ReadonlyMap<string, readonly string[]>;
  /** Rows kept only because their source has not spoken since the start. */
  restoredCount(): number;
}

const MOST_SHARED = 100_000;

interface PodNet {
  readonly network: number;
  readonly mask: number;
  readonly length: number;
}

function podNet({ ip, length }: Cidr): PodNet {
  const mask = length === 0 ? 0 : (0xffffffff << (32 - length)) >>> 0;
  return { network: (ipv4ToNumber(ip) & mask) >>> 0, mask, length };
}

export function createDesired(options: DesiredOptions): Desired {
  const { own, view } = options;
  const podCidr = parseCidr(own.podCidr);
  const isOwnPodAddress = (ip: string): boolean => podCidr !== undefined && ipv4Contains(podCidr, ip);
  const nodeIds = createNodeIds();

  function isNodeAddressSettled(ip: string): boolean {
    // The own node and its endpoints are known from config and disk: nobody else has a say.
    return ip === own.nodeIp || isOwnPodAddress(ip) || view.isNodeSettled(ip);
  }

  function isIpcacheRowSettled(row: IpcacheRow): boolean {
    if (row.clusterId === 0) return true;
    if (row.clusterId === own.clusterId)
      return isNodeAddressSettled(row.tunnelEndpoint ?? row.prefix.slice(0, row.prefix.indexOf('/')));
    // The row does not say which of the two families it came from.
    return (
      view.isGone(row.clusterId) || (view.isSettled(row.clusterId, 'ip') && view.isSettled(row.clusterId, 'nodes'))
    );
  }

  /** Pod CIDRs of this cluster, by node: what lies in them is not a peer's to claim. */
  const podNets = new Map<string, PodNet>();
  if (podCidr !== undefined) podNets.set('own', podNet(podCidr));

  function isRefused(row: IpcacheRow): boolean {
    if (row.clusterId === own.clusterId || row.clusterId === 0) return false;
    const claimed = parseCidr(row.prefix);
    if (claimed === undefined) return true;
    const { ip, length } = claimed;
    const address = ipv4ToNumber(ip);
    for (const net of podNets.values())
      if (length >= net.length && (address & net.mask) >>> 0 === net.network) return true;
    return false;
  }

  const ipcache: ClaimsProjection<IpcacheRow> = createClaims({ isSettled: isIpcacheRowSettled, isRefused });
  const nodes: ClaimsProjection<KnownNode> = createClaims({
    isSettled: (row) =>
      row.clusterId === own.clusterId
        ? isNodeAddressSettled(row.ip)
        : view.isGone(row.clusterId) || view.isSettled(row.clusterId, 'nodes'),
  });
  const services = createServicesProjection({
    clusterId: own.clusterId,
    podCidr,
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
    nodeAddresses.set(ip, ip);
    return ip;
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

  ipcache.setClaims('world', [worldClaim()]);
  ipcache.setClaims('own', ownNodeClaims({ clusterId: own.clusterId, ip: own.nodeIp, gatewayIp: own.gatewayIp }));
  nodes.setClaims('own', [{ key: own.nodeIp, rank: RANK.ownNode, row: { ip: own.nodeIp, clusterId: own.clusterId } }]);

  const nodeClaim = (ip: string | undefined, clusterId: number, rank: number) =>
    ip === undefined || !isIpv4(ip) ? [] : [{ key: ip, rank, row: { ip, clusterId } }];

  return {
    service: services.setService,
    slice: services.setSlice,
    node(name, record) {
      const cidr = record === undefined ? undefined : parseCidr(record.podCidr);
      const net = cidr === undefined ? undefined : podNet(cidr);
      const before = podNets.get(name);
      if (net?.network !== before?.network || net?.length !== before?.length) {
        if (net === undefined) podNets.delete(name);
        else podNets.set(name, net);
        ipcache.rulesChanged();
      }
      ipcache.setClaims(`node/${name}`, record === undefined ? [] : localNodeClaims(record, own.clusterId));
      nodes.setClaims(`node/${name}`, nodeClaim(record?.internalIp, own.clusterId, RANK.localNode));
    },
    nodeEndpoint(node, id, endpoint, record) {
      const claims =
        endpoint === undefined || record === undefined
          ? []
          : localEndpointClaims(endpoint, record.internalIp, own.clusterId);
      ipcache.setClaims(`node/${node}/${id}`, claims);
    },
    peerNode(peer, name, node) {
      ipcache.setClaims(`peer/${peer.name}/node/${name}`, node === undefined ? [] : remoteNodeClaims(node, peer.id));
      nodes.setClaims(`peer/${peer.name}/${name}`, nodeClaim(node && nodeInternalIp(node), peer.id, RANK.remoteNode));
    },
    peerService: (peer, name, service) => services.setRemote(peer.name, peer.id, name, service),
    peerSlice: (peer, name, slice) => services.setRemoteSlice(peer.name, peer.id, name, slice),
    peerIp(peer, name, entry) {
      const claims = entry === undefined ? [] : remoteIpClaims(entry, peer.id, shared);
      // A host's name says its one row; two prefixes may be two texts of one.
      if (name.includes('/')) ipcache.setClaims(`peer/${peer.name}/ip/${name}`, claims);
      else ipcache.setClaim(sourceOfIps(peer), hostPrefix(name), claims[0]);
    },
    unknownEndpoint(ipv4, identity) {
      const claims = identity === undefined ? [] : [ownEndpointClaim({ ipv4, identity }, own.clusterId)];
      ipcache.setClaims(
        `unknown/${ipv4}`,
        claims.map((claim) => ({ ...claim, rank: RANK.unknownEndpoint })),
      );
    },
    ownEndpoint(id, endpoint) {
      ipcache.setClaims(`own/${id}`, endpoint === undefined ? [] : [ownEndpointClaim(endpoint, own.clusterId)]);
    },
    sourcesChanged(clusterId, family) {
      if (family === undefined || family === 'ip' || family === 'nodes') {
        ipcache.sourcesChanged(clusterId);
        nodes.sourcesChanged(clusterId);
      }
      if (family === undefined || family === 'services' || family === 'endpointslices')
        services.sourcesChanged(clusterId);
    },
    changed: options.onChanged,
    restore(rows) {
      ipcache.restore(rows.ipcache);
      services.restore(rows.services);
      nodeIds.restore(rows.nodes.values());
      nodes.restore(new Map([...rows.nodes].map(([key, { ip, clusterId }]) => [key, { ip, clusterId }])));
    },
    flush(into) {
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
    restoredCount: () => ipcache.restoredCount() + nodes.restoredCount() + services.restoredCount(),
  };
}
