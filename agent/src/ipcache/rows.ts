/**
 * Which addresses the mesh's objects stand for, as claims on ipcache rows. Pure.
 *
 *   own endpoints            host  their identity, no tunnel
 *   own node                 host  host
 *   other nodes' endpoints   host  their identity, tunnel to their node
 *   other nodes              host  remote-node; the addresses inside the pod CIDRs through the tunnel
 *   other nodes' pod CIDRs   /n    unmanaged, tunnel to the node: a pod whose own row is still on its way is reached already
 *   everything else          /0    world
 *
 * Of both families; a tunnel ends at the one address that its node names first, whatever the family of what is inside.
 *
 * Ranks follow Cilium's precedence (wire-contract §5.4): what a peer says never overrides what this cluster knows of itself.
 */
import {
  canonicalCidr,
  canonicalIp,
  type EndpointRecord,
  hostCidr,
  ipEntryName,
  isIpv4,
  type MeshNode,
  type NodeRecord,
  nodeInternalIp,
  nodePodCidrs,
  parseCidr,
  RESERVED_IDENTITY,
} from '@clustermesh/contract';
import type { IpcacheRow } from '../datapath/types.ts';
import type { AddressEntry } from '../mesh/decode.ts';
import type { Claim } from './claims.ts';

export const RANK = {
  // No peer may claim the default.
  world: 0,
  ownEndpoint: 0,
  /** Found in the kernel, but not on disk. */
  unknownEndpoint: 1,
  ownNode: 1,
  localEndpoint: 2,
  localNode: 3,
  remoteIp: 10,
  remoteNode: 11,
  /** A range that a policy names. */
  policyRange: 20,
} as const;

type IpcacheClaim = Claim<IpcacheRow>;

/** All rows have one shape, field by field in this order: half a million of them are read by the same few lines. */
function claim(
  prefix: string,
  rank: number,
  { identity, clusterId, tunnelEndpoint }: Pick<IpcacheRow, 'identity' | 'clusterId' | 'tunnelEndpoint'>,
): IpcacheClaim {
  return { key: prefix, rank, row: { prefix, identity, clusterId, tunnelEndpoint, encryptKey: 0 } };
}

/** Texts of peers may spell one address in several ways; undefined: none at all. */
const hostOf = (text: string): string | undefined => {
  const ip = canonicalIp(text);
  return ip === undefined ? undefined : hostCidr(ip);
};

/** One for each family: a row of IPv6 does not speak for IPv4. */
export function worldClaims(): IpcacheClaim[] {
  const { world, worldIpv6 } = RESERVED_IDENTITY;
  return [
    claim('0.0.0.0/0', RANK.world, { identity: world, clusterId: 0, tunnelEndpoint: null }),
    claim('::/0', RANK.world, { identity: worldIpv6, clusterId: 0, tunnelEndpoint: null }),
  ];
}

export interface OwnNode {
  readonly clusterId: number;
  /** Of the underlay and inside the pod CIDRs, both families. */
  readonly ips: readonly string[];
}

export function ownNodeClaims(node: OwnNode): IpcacheClaim[] {
  return node.ips.map((ip) =>
    claim(hostCidr(ip), RANK.ownNode, {
      identity: RESERVED_IDENTITY.host,
      clusterId: node.clusterId,
      tunnelEndpoint: null,
    }),
  );
}

export function ownEndpointClaims(
  endpoint: { readonly ips: readonly string[]; readonly identity: number },
  clusterId: number,
): IpcacheClaim[] {
  return endpoint.ips.map((ip) =>
    claim(hostCidr(ip), RANK.ownEndpoint, { identity: endpoint.identity, clusterId, tunnelEndpoint: null }),
  );
}

/** An endpoint of another node of this cluster. */
export function localEndpointClaims(endpoint: EndpointRecord, nodeIp: string, clusterId: number): IpcacheClaim[] {
  return [endpoint.ipv4, endpoint.ipv6 ?? ''].flatMap((ip) => {
    const prefix = hostOf(ip);
    if (prefix === undefined) return [];
    return [claim(prefix, RANK.localEndpoint, { identity: endpoint.identity, clusterId, tunnelEndpoint: nodeIp })];
  });
}

/** Another node of this cluster. */
export function localNodeClaims(node: NodeRecord, clusterId: number, isDirect = false): IpcacheClaim[] {
  return nodeClaims({
    internalIps: [node.internalIp, node.ipv6?.internalIp ?? ''],
    innerIps: [node.gatewayIp, node.ipv6?.gatewayIp ?? ''],
    podCidrs: [node.podCidr, node.ipv6?.podCidr ?? ''],
    clusterId,
    rank: RANK.localNode,
    isDirect,
  });
}

export function remoteNodeClaims(node: MeshNode, clusterId: number, isDirect = false): IpcacheClaim[] {
  const internalIps = [nodeInternalIp(node) ?? '', nodeInternalIp(node, 6) ?? ''];
  const innerIps = node.IPAddresses.filter((address) => address.Type === 'CiliumInternalIP').map(
    (address) => address.IP,
  );
  return nodeClaims({
    internalIps,
    innerIps,
    podCidrs: nodePodCidrs(node),
    clusterId,
    rank: RANK.remoteNode,
    isDirect,
  });
}

interface NodeFacts {
  /** Tunnels end at the first that is one. */
  readonly internalIps: readonly string[];
  /** Addresses of the node that lie in its pod CIDRs. */
  readonly innerIps: readonly string[];
  readonly podCidrs: readonly string[];
  readonly clusterId: number;
  readonly rank: number;
  /** Without the tunnel, the next hop is of the family of what is sent there. */
  readonly isDirect: boolean;
}

function nodeClaims({ internalIps, innerIps, podCidrs, clusterId, rank, isDirect }: NodeFacts): IpcacheClaim[] {
  const underlay = internalIps.flatMap((ip) => canonicalIp(ip) ?? []);
  const [first] = underlay;
  if (first === undefined) return [];
  const behind = (ip: string): string =>
    (isDirect ? underlay.find((node) => isIpv4(node) === isIpv4(ip)) : undefined) ?? first;
  const identity = RESERVED_IDENTITY.remoteNode;
  const inner = innerIps.flatMap((ip) => canonicalIp(ip) ?? []).filter((ip) => !underlay.includes(ip));
  const nets = podCidrs.flatMap((text) => canonicalCidr(parseCidr(text) ?? { ip: '', length: 0 }) ?? []);
  return [
    ...underlay.map((ip) => claim(hostCidr(ip), rank, { identity, clusterId, tunnelEndpoint: null })),
    ...inner.map((ip) => claim(hostCidr(ip), rank, { identity, clusterId, tunnelEndpoint: behind(ip) })),
    ...nets.map((net) =>
      claim(net, rank, {
        identity: RESERVED_IDENTITY.unmanaged,
        clusterId,
        tunnelEndpoint: behind(net.slice(0, net.indexOf('/'))),
      }),
    ),
  ];
}

/**
 * A validated ip entry of a peer. `shared` gives one string for equal ones: a node's address stands in the
 * rows of all its pods.
 */
export function remoteIpClaims(
  entry: AddressEntry,
  clusterId: number,
  shared: (text: string) => string = (text) => text,
): IpcacheClaim[] {
  const prefix = remoteIpPrefix(entry);
  if (prefix === undefined) return [];
  const host = entry.HostIP === entry.IP ? undefined : canonicalIp(entry.HostIP);
  const tunnelEndpoint = host === undefined ? null : shared(host);
  const row = { prefix, identity: entry.ID, clusterId, tunnelEndpoint, encryptKey: entry.Key };
  return [{ key: prefix, rank: RANK.remoteIp, row }];
}

function remoteIpPrefix(entry: AddressEntry): string | undefined {
  if (entry.Mask === undefined || entry.Mask === null) return hostOf(entry.IP);
  const cidr = parseCidr(ipEntryName(entry) ?? '');
  return cidr === undefined ? undefined : canonicalCidr(cidr);
}
