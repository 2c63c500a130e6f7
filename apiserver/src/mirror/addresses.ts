/**
 * Where a peer's addresses may lie. Whoever may name any address here could draw the traffic of another cluster, of this one or of
 * its hosts to itself, so a peer is held to the pod CIDRs that were agreed at connect and to its own nodes. Pure.
 */
import {
  type Cidr,
  type ClusterEndpointSlice,
  cidrContains,
  cidrsOverlap,
  formatCidr,
  type GlobalService,
  type IpEntry,
  ipEntryName,
  isIpv4,
  isReservedIdentity,
  type MeshNode,
  nodeAddresses,
  nodePodCidrs,
  parseCidr,
} from '@clustermesh/contract';
import { type Family, familyOf, type PodRanges, rangeProblem } from '../pod-ranges.ts';
import type { AgreedPeer } from '../ports.ts';

/** Parsed once: every object of a peer is held against all of them. */
export interface TakenCidr {
  readonly cidr: Cidr;
  /** As it reads in "overlaps 10.1.0.0/16 of …". */
  readonly owner: string;
}

/** None for a text that is no CIDR, as that of a peer with which nothing was agreed. */
export function takenCidr(text: string, owner: string): TakenCidr[] {
  const cidr = parseCidr(text);
  return cidr === undefined ? [] : [{ cidr, owner }];
}

export const describeTaken = ({ cidr, owner }: TakenCidr): string => `${formatCidr(cidr)} of ${owner}`;

export interface AddressFacts {
  /** The pod CIDRs that were agreed; undefined for a peer that was configured by hand (a plain Cilium cluster). */
  readonly agreed: PodRanges | undefined;
  /** The addresses of the peer's nodes. */
  readonly nodeIps: { has(ip: string): boolean };
  /** This cluster's pods and services, and the pods that were agreed with other peers. */
  readonly taken: readonly TakenCidr[];
}

/** Wider ones would swallow whole networks. */
const SHORTEST = { 4: 8, 6: 16 } as const;

const host = (ip: string): Cidr => ({ ip, length: isIpv4(ip) ? 32 : 128 });

const contains = (outer: Cidr, inner: Cidr): boolean => inner.length >= outer.length && cidrContains(outer, inner.ip);

/** Holds for everything of a peer that nothing more precise was agreed about. */
function freeProblem(cidr: Cidr, taken: readonly TakenCidr[]): string | undefined {
  const problem = rangeProblem(cidr, SHORTEST[familyOf(cidr.ip)]);
  if (problem !== undefined) return problem;
  const other = taken.find((range) => cidrsOverlap(range.cidr, cidr));
  return other === undefined ? undefined : `${formatCidr(cidr)} overlaps ${describeTaken(other)}`;
}

function podProblem(cidr: Cidr, { agreed, taken }: AddressFacts): string | undefined {
  if (agreed === undefined) return freeProblem(cidr, taken);
  const range = agreed[familyOf(cidr.ip)];
  if (range === undefined) return `${formatCidr(cidr)} ${notAgreed(familyOf(cidr.ip))}`;
  if (contains(range, cidr)) return undefined;
  return `${formatCidr(cidr)} lies outside ${formatCidr(range)}, which was agreed when the cluster was connected`;
}

const notAgreed = (family: Family) =>
  `is of IPv${family}, for which no pod CIDR apart from this cluster's pods and services was agreed when it was connected: set cluster.podCIDR${family === 4 ? '' : 'v6'} of its apiserver and connect it again`;

/**
 * The ranges of a peer's pods by what was agreed at connect: undefined when nothing was. A range that overlaps this cluster's own
 * pods or services, which may have been given to it later, does not count.
 */
export function agreedRanges(agreed: AgreedPeer | undefined, own: readonly TakenCidr[]): PodRanges | undefined {
  const all = [agreed?.podCidr ?? '', agreed?.podCidrV6 ?? ''].flatMap((text) => parseCidr(text) ?? []);
  if (all.length === 0) return undefined;
  const good = all.filter((range) => !own.some(({ cidr }) => cidrsOverlap(cidr, range)));
  return Object.fromEntries(good.map((range) => [familyOf(range.ip), range]));
}

/** First problem of many, with what it is a problem of. */
function firstProblem<T>(items: Iterable<T>, problemOf: (item: T) => string | undefined): string | undefined {
  for (const item of items) {
    const problem = problemOf(item);
    if (problem !== undefined) return problem;
  }
  return undefined;
}

function isAgreed(ip: string, agreed: PodRanges | undefined): boolean {
  const range = agreed?.[familyOf(ip)];
  return range !== undefined && cidrContains(range, ip);
}

/** A node's pods are where pods may be; its own addresses are anywhere but at somebody else's. */
export function nodeAddressProblem(node: MeshNode, facts: AddressFacts): string | undefined {
  const { agreed, taken } = facts;
  const pods = firstProblem(nodePodCidrs(node), (text) => {
    const cidr = parseCidr(text);
    return cidr === undefined ? `${text} is no CIDR` : podProblem(cidr, facts);
  });
  if (pods !== undefined) return `node ${node.Name}: its pod CIDR ${pods}`;
  const own = firstProblem(nodeAddresses(node), (ip) =>
    isAgreed(ip, agreed) ? undefined : freeProblem(host(ip), taken),
  );
  return own === undefined ? undefined : `node ${node.Name}: its address ${own}`;
}

/**
 * Reserved identities (host, remote-node, health) are for single addresses, which may be those of nodes. Packets to the address are
 * sent through the tunnel to its `HostIP`: to anything but a node of the peer, they would be a flood that a stranger aims.
 */
export function ipAddressProblem(entry: IpEntry, facts: AddressFacts): string | undefined {
  const name = ipEntryName(entry) ?? entry.IP;
  if (entry.HostIP !== '' && !facts.nodeIps.has(entry.HostIP))
    return `ip entry ${name} is at host ${entry.HostIP}, which is no address of a node that the cluster has published`;
  const cidr = parseCidr(name) ?? host(entry.IP);
  if (isReservedIdentity(entry.ID)) {
    if (cidr.length !== host(cidr.ip).length)
      return `ip entry ${name} has the reserved identity ${entry.ID} for more than one address`;
    if (facts.nodeIps.has(cidr.ip)) return undefined;
  }
  const problem = podProblem(cidr, facts);
  return problem === undefined ? undefined : `ip entry ${problem}`;
}

/** Backends are pods, or on the network of their node. */
function backendProblem(ip: string, facts: AddressFacts): string | undefined {
  return facts.nodeIps.has(ip) ? undefined : podProblem(host(ip), facts);
}

export function serviceAddressProblem(service: GlobalService, facts: AddressFacts): string | undefined {
  const problem = firstProblem(Object.keys(service.backends), (ip) => backendProblem(ip, facts));
  return problem === undefined ? undefined : `service ${service.namespace}/${service.name}: its backend ${problem}`;
}

/** Slices carry the same backends as services, so they are held to the same. `name` is theirs in the key. */
export function sliceAddressProblem(
  name: string,
  slice: ClusterEndpointSlice,
  facts: AddressFacts,
): string | undefined {
  const problem = firstProblem(
    slice.endpoints.flatMap((endpoint) => endpoint.addresses),
    (ip) => backendProblem(ip, facts),
  );
  return problem === undefined ? undefined : `endpoint slice ${name}: its backend ${problem}`;
}

/** What remains of an object without the families that were not agreed. */
export interface Rest<T> {
  readonly object: T;
  /** What was left out, and why. */
  readonly reason: string;
}

/** A node of two families of which one was agreed is a node of that one. Its addresses on the underlay hold no pods, and stay. */
export function nodeRest(node: MeshNode, { agreed }: AddressFacts): Rest<MeshNode> | undefined {
  if (agreed === undefined) return undefined;
  const isAgreedFamily = (text: string) => agreed[familyOf(text.replace(/\/.*/, ''))] !== undefined;
  const foreign = nodePodCidrs(node).find((cidr) => !isAgreedFamily(cidr));
  if (foreign === undefined || nodePodCidrs(node).every((cidr) => !isAgreedFamily(cidr))) return undefined;
  const family = familyOf(foreign.replace(/\/.*/, ''));
  const none =
    family === 4
      ? { IPv4AllocCIDR: null, IPv4SecondaryAllocCIDRs: null, IPv4HealthIP: '', IPv4IngressIP: '' }
      : { IPv6AllocCIDR: null, IPv6SecondaryAllocCIDRs: null, IPv6HealthIP: '', IPv6IngressIP: '' };
  const isLeft = ({ Type, IP }: { Type: string; IP: string }) => Type !== 'CiliumInternalIP' || isAgreedFamily(IP);
  return {
    object: { ...node, ...none, IPAddresses: node.IPAddresses.filter(isLeft) },
    reason: `node ${node.Name}, taken over without IPv${family}: its pod CIDR ${foreign} ${notAgreed(family)}`,
  };
}

/** A service with backends of two families of which one was agreed has those of that one. */
export function serviceRest(
  service: GlobalService,
  { agreed, nodeIps }: AddressFacts,
): Rest<GlobalService> | undefined {
  if (agreed === undefined) return undefined;
  const isLeft = (ip: string) => agreed[familyOf(ip)] !== undefined || nodeIps.has(ip);
  const foreign = Object.keys(service.backends).find((ip) => !isLeft(ip));
  if (foreign === undefined) return undefined;
  const left = <T>(byIp: Readonly<Record<string, T>>) =>
    Object.fromEntries(Object.entries(byIp).filter(([ip]) => isLeft(ip)));
  const { hostnames, zones } = service;
  const family = familyOf(foreign);
  return {
    object: {
      ...service,
      backends: left(service.backends),
      ...(hostnames === undefined ? {} : { hostnames: left(hostnames) }),
      ...(zones === undefined ? {} : { zones: left(zones) }),
    },
    reason: `service ${service.namespace}/${service.name}, taken over without IPv${family}: its backend ${foreign} ${notAgreed(family)}`,
  };
}

/** The addresses of a peer's accepted nodes. */
export class NodeIps {
  readonly #byNode = new Map<string, readonly string[]>();
  /** How many nodes have the address. */
  readonly #nodes = new Map<string, number>();

  has(ip: string): boolean {
    return this.#nodes.has(ip);
  }

  /** Undefined: the node is gone. Returns whether anything changed. */
  set(name: string, node: MeshNode | undefined): boolean {
    const ips = node === undefined ? [] : nodeAddresses(node);
    const before = this.#byNode.get(name) ?? [];
    if (ips.join() === before.join()) return false;
    for (const ip of ips) this.#count(ip, 1);
    for (const ip of before) this.#count(ip, -1);
    if (ips.length === 0) this.#byNode.delete(name);
    else this.#byNode.set(name, ips);
    return true;
  }

  #count(ip: string, change: 1 | -1): void {
    const nodes = (this.#nodes.get(ip) ?? 0) + change;
    if (nodes === 0) this.#nodes.delete(ip);
    else this.#nodes.set(ip, nodes);
  }
}
