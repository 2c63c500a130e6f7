/**
 * Which addresses the mesh's objects stand for, as claims on ipcache rows. Pure.
 *
 *   own endpoints            /32  their identity, no tunnel
 *   own node                 /32  host
 *   other nodes' endpoints   /32  their identity, tunnel to their node
 *   other nodes              /32  remote-node; the address inside the pod CIDR through the tunnel
 *   other nodes' pod CIDRs   /n   unmanaged, tunnel to the node: a pod whose own row is still on its way is reached already
 *   everything else          /0   world
 *
 * Ranks follow Cilium's precedence (wire-contract §5.4): what a peer says never overrides what this cluster knows of itself.
 */
import {
  type Cidr,
  type EndpointRecord,
  formatCidr,
  type IpEntry,
  ipEntryName,
  ipv4ToNumber,
  isIpv4,
  type MeshNode,
  type NodeRecord,
  nodeInternalIp,
  nodePodCidrs,
  numberToIpv4,
  parseCidr,
  RESERVED_IDENTITY,
} from '@clustermesh/contract';
import type { IpcacheRow } from '../datapath/types.ts';
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
} as const;

type IpcacheClaim = Claim<IpcacheRow>;

function claim(
  prefix: string,
  rank: number,
  row: Omit<IpcacheRow, 'prefix' | 'encryptKey'> & { encryptKey?: number },
): IpcacheClaim {
  return { key: prefix, rank, row: { prefix, encryptKey: 0, ...row } };
}

/** `10.1.1.7/24` → `10.1.1.0/24`: the kernel's trie knows a prefix by its network only. */
function canonicalPrefix(cidr: Cidr): string {
  if (cidr.length === 32) return formatCidr(cidr);
  const mask = cidr.length === 0 ? 0 : (0xffffffff << (32 - cidr.length)) >>> 0;
  return formatCidr({ ip: numberToIpv4((ipv4ToNumber(cidr.ip) & mask) >>> 0), length: cidr.length });
}

export const hostPrefix = (ip: string): string => `${ip}/32`;

export function worldClaim(): IpcacheClaim {
  return claim('0.0.0.0/0', RANK.world, { identity: RESERVED_IDENTITY.world, clusterId: 0, tunnelEndpoint: null });
}

export interface OwnNode {
  readonly clusterId: number;
  readonly ip: string;
  readonly gatewayIp: string;
}

export function ownNodeClaims(node: OwnNode): IpcacheClaim[] {
  return [node.ip, node.gatewayIp].map((ip) =>
    claim(hostPrefix(ip), RANK.ownNode, {
      identity: RESERVED_IDENTITY.host,
      clusterId: node.clusterId,
      tunnelEndpoint: null,
    }),
  );
}

export function ownEndpointClaim(
  endpoint: { readonly ipv4: string; readonly identity: number },
  clusterId: number,
): IpcacheClaim {
  return claim(hostPrefix(endpoint.ipv4), RANK.ownEndpoint, {
    identity: endpoint.identity,
    clusterId,
    tunnelEndpoint: null,
  });
}

/** An endpoint of another node of this cluster. */
export function localEndpointClaims(endpoint: EndpointRecord, nodeIp: string, clusterId: number): IpcacheClaim[] {
  if (!isIpv4(endpoint.ipv4)) return [];
  return [
    claim(hostPrefix(endpoint.ipv4), RANK.localEndpoint, {
      identity: endpoint.identity,
      clusterId,
      tunnelEndpoint: nodeIp,
    }),
  ];
}

/** Another node of this cluster. */
export function localNodeClaims(node: NodeRecord, clusterId: number): IpcacheClaim[] {
  return nodeClaims({
    internalIp: node.internalIp,
    innerIps: [node.gatewayIp],
    podCidrs: [node.podCidr],
    clusterId,
    rank: RANK.localNode,
  });
}

export function remoteNodeClaims(node: MeshNode, clusterId: number): IpcacheClaim[] {
  const internalIp = nodeInternalIp(node);
  if (internalIp === undefined) return [];
  const innerIps = node.IPAddresses.filter((address) => address.Type === 'CiliumInternalIP').map(
    (address) => address.IP,
  );
  return nodeClaims({ internalIp, innerIps, podCidrs: nodePodCidrs(node), clusterId, rank: RANK.remoteNode });
}

interface NodeFacts {
  readonly internalIp: string;
  /** Addresses of the node that lie in its pod CIDR. */
  readonly innerIps: readonly string[];
  readonly podCidrs: readonly string[];
  readonly clusterId: number;
  readonly rank: number;
}

function nodeClaims({ internalIp, innerIps, podCidrs, clusterId, rank }: NodeFacts): IpcacheClaim[] {
  if (!isIpv4(internalIp)) return [];
  const remoteNode = RESERVED_IDENTITY.remoteNode;
  const claims = [claim(hostPrefix(internalIp), rank, { identity: remoteNode, clusterId, tunnelEndpoint: null })];
  for (const ip of innerIps) {
    if (isIpv4(ip) && ip !== internalIp)
      claims.push(claim(hostPrefix(ip), rank, { identity: remoteNode, clusterId, tunnelEndpoint: internalIp }));
  }
  for (const text of podCidrs) {
    const cidr = parseCidr(text);
    if (cidr === undefined || !isIpv4(cidr.ip)) continue;
    claims.push(
      claim(canonicalPrefix(cidr), rank, {
        identity: RESERVED_IDENTITY.unmanaged,
        clusterId,
        tunnelEndpoint: internalIp,
      }),
    );
  }
  return claims;
}

/**
 * A validated ip entry of a peer. IPv6 has no rows yet. `shared` gives one string for equal ones: a node's address stands in the
 * rows of all its pods.
 */
export function remoteIpClaims(
  entry: IpEntry,
  clusterId: number,
  shared: (text: string) => string = (text) => text,
): IpcacheClaim[] {
  const prefix = remoteIpPrefix(entry);
  if (prefix === undefined) return [];
  const viaTunnel = entry.HostIP !== entry.IP && isIpv4(entry.HostIP);
  const tunnelEndpoint = viaTunnel ? shared(entry.HostIP) : null;
  const row = { prefix, identity: entry.ID, clusterId, tunnelEndpoint, encryptKey: entry.Key };
  return [{ key: prefix, rank: RANK.remoteIp, row }];
}

function remoteIpPrefix(entry: IpEntry): string | undefined {
  if (!isIpv4(entry.IP)) return undefined;
  if (entry.Mask === undefined || entry.Mask === null) return hostPrefix(entry.IP);
  const cidr = parseCidr(ipEntryName(entry) ?? '');
  return cidr === undefined ? undefined : canonicalPrefix(cidr);
}
