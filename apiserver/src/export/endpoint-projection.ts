/**
 * Nodes and endpoints of this cluster → `nodes`, `ip` and `identities` (wire-contract §1.5–1.7), kept up to date at a cost of what
 * changes: thousands of pods that start on one node are thousands of small steps, not as many passes over all of them. Pure state.
 */
import { identityKey, ipKey, type NodeRecord, nodeKey } from '@clustermesh/contract';
import type { LocatedEndpoint, NodesDelta } from '../sources/nodes/node-table.ts';
import {
  addressesOf,
  byAge,
  chooseOwner,
  type ExportingCluster,
  ipRow,
  nodeRow,
  refOf,
  refusalOf,
} from './endpoints.ts';

export type EndpointFamily = 'nodes' | 'identities' | 'ip';
/** In the order of writing: identities before the addresses that point at them. */
export const ENDPOINT_FAMILIES: readonly EndpointFamily[] = ['nodes', 'identities', 'ip'];

/** Key → value now; undefined: gone. */
export type RowChanges = ReadonlyMap<string, string | undefined>;

/** Ref → endpoint. */
type Claimants = Map<string, LocatedEndpoint>;

export class EndpointProjection {
  readonly rows: Readonly<Record<EndpointFamily, ReadonlyMap<string, string>>>;
  readonly #cluster: ExportingCluster;
  readonly #rows = {
    nodes: new Map<string, string>(),
    identities: new Map<string, string>(),
    ip: new Map<string, string>(),
  };
  #changed = { nodes: new Set<string>(), identities: new Set<string>(), ip: new Set<string>() };
  readonly #nodes = new Map<string, NodeRecord>();
  /** All endpoints, by node and id; those of closed namespaces and those that peers would refuse are in no other table. */
  readonly #endpoints = new Map<string, Map<string, LocatedEndpoint>>();
  #size = 0;
  #isGlobal: (namespace: string) => boolean = () => false;
  /** What `#isGlobal` has said. */
  readonly #openness = new Map<string, boolean>();
  /** Address → who claims it. */
  readonly #claims = new Map<string, Claimants>();
  /** Address → ref of its owner, which stays while it claims it. */
  readonly #owners = new Map<string, string>();
  /** Identity → labels → who carries them. More than one set of labels is a conflict. */
  readonly #carriers = new Map<number, Map<string, Claimants>>();
  readonly #staleAddresses = new Set<string>();
  readonly #staleIdentities = new Set<number>();
  /** By what they are about. */
  readonly #problems = new Map<string, readonly string[]>();

  constructor(cluster: ExportingCluster) {
    this.#cluster = cluster;
    this.rows = this.#rows;
  }

  /** Endpoints, exported or not. */
  get size(): number {
    return this.#size;
  }

  problems(): readonly string[] {
    return [...this.#problems.values()].flat().sort();
  }

  apply(delta: Pick<NodesDelta, 'nodes' | 'endpoints'>, isGlobalNamespace: (namespace: string) => boolean): void {
    this.#isGlobal = isGlobalNamespace;
    this.#judgeNamespaces();
    for (const [name, record] of delta.nodes) this.#putNode(name, record);
    for (const { node, id, endpoint } of delta.endpoints) this.#putEndpoint(node, id, endpoint);
    for (const address of this.#staleAddresses) this.#settleAddress(address);
    for (const identity of this.#staleIdentities) this.#settleIdentity(identity);
    this.#staleAddresses.clear();
    this.#staleIdentities.clear();
  }

  /** Rows that are otherwise since they were taken last. */
  takeChanges(family: EndpointFamily): RowChanges {
    const keys = this.#changed[family];
    this.#changed[family] = new Set();
    return new Map([...keys].map((key) => [key, this.#rows[family].get(key)]));
  }

  // ------------------------------------------------------------ what comes in

  #putNode(name: string, record: NodeRecord | undefined): void {
    const before = this.#nodes.get(name);
    if (record === undefined) this.#nodes.delete(name);
    else this.#nodes.set(name, record);
    this.#set('nodes', nodeKey(this.#cluster.name, name), record && nodeRow(this.#cluster, record));
    if (before?.internalIp === record?.internalIp) return;
    for (const endpoint of this.#endpoints.get(name)?.values() ?? [])
      for (const address of addressesOf(endpoint)) this.#staleAddresses.add(address);
  }

  #putEndpoint(node: string, id: string, endpoint: LocatedEndpoint | undefined): void {
    const ofNode = this.#endpoints.get(node) ?? new Map<string, LocatedEndpoint>();
    const before = ofNode.get(id);
    if (before !== undefined) this.#withdraw(before);
    this.#size += (endpoint === undefined ? 0 : 1) - (before === undefined ? 0 : 1);
    if (endpoint === undefined) ofNode.delete(id);
    else ofNode.set(id, endpoint);
    if (ofNode.size === 0) this.#endpoints.delete(node);
    else this.#endpoints.set(node, ofNode);
    if (endpoint !== undefined) this.#admit(endpoint);
  }

  /** A namespace that was opened or closed concerns all of its endpoints. */
  #judgeNamespaces(): void {
    const turned = [...this.#openness].filter(([name, was]) => this.#isGlobal(name) !== was).map(([name]) => name);
    if (turned.length === 0) return;
    for (const name of turned) this.#openness.delete(name);
    for (const ofNode of this.#endpoints.values())
      for (const endpoint of ofNode.values()) {
        if (!turned.includes(endpoint.record.namespace)) continue;
        this.#withdraw(endpoint);
        this.#admit(endpoint);
      }
  }

  #isOpen(namespace: string): boolean {
    const known = this.#openness.get(namespace);
    if (known !== undefined) return known;
    const isOpen = this.#isGlobal(namespace);
    this.#openness.set(namespace, isOpen);
    return isOpen;
  }

  #admit(endpoint: LocatedEndpoint): void {
    if (!this.#isOpen(endpoint.record.namespace)) return;
    const ref = refOf(endpoint);
    const refusal = refusalOf(this.#cluster, endpoint);
    if (refusal !== undefined) {
      this.#report(`endpoint ${ref}`, [`endpoint ${ref}: peers would refuse it: ${refusal}`]);
      return;
    }
    const { identity, labels } = endpoint.record;
    for (const address of addressesOf(endpoint)) {
      entryOf(this.#claims, address).set(ref, endpoint);
      this.#staleAddresses.add(address);
    }
    entryOf(entryOf(this.#carriers, identity), labels).set(ref, endpoint);
    this.#staleIdentities.add(identity);
  }

  #withdraw(endpoint: LocatedEndpoint): void {
    const ref = refOf(endpoint);
    const { identity, labels } = endpoint.record;
    this.#report(`endpoint ${ref}`, []);
    for (const address of addressesOf(endpoint)) {
      const claimants = this.#claims.get(address);
      if (claimants?.delete(ref) !== true) continue;
      if (claimants.size === 0) this.#claims.delete(address);
      this.#staleAddresses.add(address);
    }
    const byLabels = this.#carriers.get(identity);
    const carriers = byLabels?.get(labels);
    if (byLabels === undefined || carriers?.delete(ref) !== true) return;
    if (carriers.size === 0) byLabels.delete(labels);
    if (byLabels.size === 0) this.#carriers.delete(identity);
    this.#staleIdentities.add(identity);
  }

  // ------------------------------------------------------------ what comes out

  #settleAddress(address: string): void {
    const subject = `address ${address}`;
    const key = ipKey(this.#cluster.name, address);
    const claimants = [...(this.#claims.get(address)?.values() ?? [])];
    if (claimants.length === 0) {
      this.#owners.delete(address);
      this.#report(subject, []);
      this.#set('ip', key, undefined);
      return;
    }
    const owner = chooseOwner(claimants, this.#owners.get(address));
    this.#owners.set(address, refOf(owner));
    const host = this.#nodes.get(owner.node)?.internalIp;
    this.#report(subject, [
      ...claimants
        .filter((other) => other !== owner)
        .map(
          (other) => `${subject} of endpoint ${refOf(other)} already belongs to ${refOf(owner)}, which stays its owner`,
        ),
      ...(host === undefined ? [`endpoint ${refOf(owner)}: its node has published no address, not exported`] : []),
    ]);
    this.#set('ip', key, host === undefined ? undefined : ipRow(address, owner, host));
  }

  #settleIdentity(identity: number): void {
    const byLabels = this.#carriers.get(identity) ?? new Map<string, Claimants>();
    // One set of labels is the rule, however many carry it; who was first matters only where there are several.
    const [first] =
      byLabels.size < 2
        ? byLabels.keys()
        : [...byLabels.values()]
            .flatMap((carriers) => [...carriers.values()])
            .sort(byAge)
            .map((endpoint) => endpoint.record.labels);
    this.#set('identities', identityKey(this.#cluster.name, identity), first);
    const others = [...byLabels]
      .filter(([labels]) => labels !== first)
      .flatMap(([, carriers]) => [...carriers.values()]);
    this.#report(
      `identity ${identity}`,
      others.map(
        (other) =>
          `endpoint ${refOf(other)}: identity ${identity} already stands for ${first}, not for ${other.record.labels}`,
      ),
    );
  }

  #set(family: EndpointFamily, key: string, value: string | undefined): void {
    if (this.#rows[family].get(key) === value) return;
    if (value === undefined) this.#rows[family].delete(key);
    else this.#rows[family].set(key, value);
    this.#changed[family].add(key);
  }

  #report(subject: string, problems: readonly string[]): void {
    if (problems.length === 0) this.#problems.delete(subject);
    else this.#problems.set(subject, problems);
  }
}

/** The map under a key, made if there is none. */
function entryOf<K, K2, V>(of: Map<K, Map<K2, V>>, key: K): Map<K2, V> {
  const entry = of.get(key) ?? new Map<K2, V>();
  of.set(key, entry);
  return entry;
}
