/**
 * Where a peer's addresses may lie. Whoever may name any address here could draw the traffic of another cluster, of this one or of
 * its hosts to itself, so a peer is held to the pod CIDR that was agreed at connect and to its own nodes. Pure.
 */
import {
  type Cidr,
  type ClusterEndpointSlice,
  cidrContains,
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

export interface AddressFacts {
  /** The pod CIDR that was agreed; undefined for a peer that was configured by hand (a plain Cilium cluster). */
  readonly agreed: Cidr | undefined;
  /** The addresses of the peer's nodes. */
  readonly nodeIps: { has(ip: string): boolean };
  /** This cluster's pods, and those that were agreed with other peers. */
  readonly taken: readonly TakenCidr[];
}

/** Wider ones would swallow whole networks. */
const SHORTEST = { 4: 8, 6: 16 } as const;

/** None of them can be a pod or a node that is reached through the mesh. */
const SPECIAL: Readonly<Record<4 | 6, readonly (readonly [cidr: Cidr, what: string])[]>> = {
  4: [
    [{ ip: '0.0.0.0', length: 8 }, 'unspecified'],
    [{ ip: '127.0.0.0', length: 8 }, 'loopback'],
    [{ ip: '169.254.0.0', length: 16 }, 'link-local'],
    [{ ip: '224.0.0.0', length: 4 }, 'multicast'],
    [{ ip: '240.0.0.0', length: 4 }, 'reserved'],
  ],
  6: [
    [{ ip: '::', length: 16 }, 'unspecified, loopback or IPv4 in disguise'],
    [{ ip: 'fe80::', length: 10 }, 'link-local'],
    [{ ip: 'ff00::', length: 8 }, 'multicast'],
  ],
};

const host = (ip: string): Cidr => ({ ip, length: isIpv4(ip) ? 32 : 128 });

const contains = (outer: Cidr, inner: Cidr): boolean => inner.length >= outer.length && cidrContains(outer, inner.ip);

/** Of two prefixes that share an address one contains the other. */
const overlap = (a: Cidr, b: Cidr): boolean => contains(a, b) || contains(b, a);

/** Holds for everything of a peer that nothing more precise was agreed about. */
function freeProblem(cidr: Cidr, taken: readonly TakenCidr[]): string | undefined {
  const text = formatCidr(cidr);
  const family = isIpv4(cidr.ip) ? 4 : 6;
  if (cidr.ip.includes('%')) return `${text} has a zone`;
  if (cidr.length < SHORTEST[family]) return `${text} is wider than a /${SHORTEST[family]}`;
  const special = SPECIAL[family].find(([range]) => overlap(range, cidr));
  if (special !== undefined) return `${text} is ${special[1]}`;
  const other = taken.find((range) => overlap(range.cidr, cidr));
  return other === undefined ? undefined : `${text} overlaps ${formatCidr(other.cidr)} of ${other.owner}`;
}

function podProblem(cidr: Cidr, { agreed, taken }: AddressFacts): string | undefined {
  if (agreed === undefined) return freeProblem(cidr, taken);
  if (contains(agreed, cidr)) return undefined;
  return `${formatCidr(cidr)} lies outside ${formatCidr(agreed)}, which was agreed when the cluster was connected`;
}

/** First problem of many, with what it is a problem of. */
function firstProblem<T>(items: Iterable<T>, problemOf: (item: T) => string | undefined): string | undefined {
  for (const item of items) {
    const problem = problemOf(item);
    if (problem !== undefined) return problem;
  }
  return undefined;
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
    agreed !== undefined && contains(agreed, host(ip)) ? undefined : freeProblem(host(ip), taken),
  );
  return own === undefined ? undefined : `node ${node.Name}: its address ${own}`;
}

/** Reserved identities (host, remote-node, health) are for single addresses, which may be those of nodes. */
export function ipAddressProblem(entry: IpEntry, facts: AddressFacts): string | undefined {
  const name = ipEntryName(entry) ?? entry.IP;
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

/** The addresses of a peer's accepted nodes. */
export class NodeIps {
  readonly #byNode = new Map<string, readonly string[]>();
  #all: ReadonlySet<string> | undefined;

  has(ip: string): boolean {
    this.#all ??= new Set([...this.#byNode.values()].flat());
    return this.#all.has(ip);
  }

  /** Undefined: the node is gone. Returns whether anything changed. */
  set(name: string, node: MeshNode | undefined): boolean {
    const ips = node === undefined ? [] : nodeAddresses(node);
    if (ips.join() === (this.#byNode.get(name) ?? []).join()) return false;
    if (ips.length === 0) this.#byNode.delete(name);
    else this.#byNode.set(name, ips);
    this.#all = undefined;
    return true;
  }
}
