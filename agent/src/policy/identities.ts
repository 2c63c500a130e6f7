/**
 * Every identity that a peer may have, with what policies can ask of it: labels, and for addresses outside the mesh the prefix. Several
 * sources may name one identity (every pod that has it, every cluster that publishes it); it is known as long as one does.
 */
import {
  CLUSTER_LABEL,
  type Label,
  type LabelSet,
  labelSet,
  NAMESPACE_LABEL,
  NAMESPACE_LABELS_PREFIX,
  type Prefix,
  parseLabels,
  parsePrefix,
  RESERVED_IDENTITY,
} from '@clustermesh/contract';

export interface Identity {
  readonly id: number;
  readonly labels: LabelSet;
  /** Of an identity that stands for addresses outside the mesh. */
  readonly prefix: Prefix | undefined;
}

/** What the identities of the reserved numbers are called. */
const RESERVED_NAMES: Readonly<Record<number, readonly string[]>> = {
  [RESERVED_IDENTITY.host]: ['host'],
  [RESERVED_IDENTITY.world]: ['world', 'world-ipv4'],
  [RESERVED_IDENTITY.unmanaged]: ['unmanaged'],
  [RESERVED_IDENTITY.health]: ['health'],
  [RESERVED_IDENTITY.init]: ['init'],
  [RESERVED_IDENTITY.remoteNode]: ['remote-node'],
  [RESERVED_IDENTITY.kubeApiserver]: ['kube-apiserver'],
  [RESERVED_IDENTITY.ingress]: ['ingress'],
  [RESERVED_IDENTITY.worldIpv4]: ['world', 'world-ipv4'],
  [RESERVED_IDENTITY.worldIpv6]: ['world', 'world-ipv6'],
};

/** The world of an address family that nothing more specific covers. */
const WORLD_PREFIX: Readonly<Record<number, string>> = {
  [RESERVED_IDENTITY.world]: '0.0.0.0/0',
  [RESERVED_IDENTITY.worldIpv4]: '0.0.0.0/0',
  [RESERVED_IDENTITY.worldIpv6]: '::/0',
};

const reservedLabels = (names: readonly string[]): Label[] =>
  names.map((key) => ({ source: 'reserved', key, value: '' }));

export function reservedIdentities(): Identity[] {
  return Object.entries(RESERVED_NAMES).map(([number, names]) => {
    const id = Number(number);
    const world = WORLD_PREFIX[id];
    return {
      id,
      labels: labelSet(reservedLabels(names)),
      prefix: world === undefined ? undefined : parsePrefix(world),
    };
  });
}

/** An address range outside the mesh: part of the world. */
export function cidrIdentity(id: number, prefix: Prefix): Identity {
  return { id, labels: labelSet(reservedLabels(['world', `world-ipv${prefix.family}`])), prefix };
}

/**
 * The labels that policies see. Those of this cluster's namespaces come from the namespaces themselves, so that a relabelled
 * namespace counts at once; peers' come as published.
 */
export function withNamespaceLabels(
  labels: readonly Label[],
  ownCluster: string,
  labelsOfNamespace: (name: string) => Readonly<Record<string, string>> | undefined,
): LabelSet {
  const value = (key: string) => labels.find((label) => label.key === key)?.value;
  const namespace = value(NAMESPACE_LABEL);
  const own = value(CLUSTER_LABEL) === ownCluster && namespace !== undefined ? labelsOfNamespace(namespace) : undefined;
  if (own === undefined) return labelSet(labels);
  const added = Object.entries(own)
    .map(([key, text]) => ({ source: 'k8s', key: `${NAMESPACE_LABELS_PREFIX}${key}`, value: text }))
    .filter(({ key }) => value(key) === undefined);
  return labelSet([...labels, ...added]);
}

export interface IdentityTexts {
  /** Undefined withdraws what `source` said about `id`. True: what is known of the identity has changed. */
  set(source: string, id: number, labels: string | undefined): boolean;
  get(id: number): readonly Label[] | undefined;
  /** Identities of pods in a namespace. */
  inNamespace(namespace: string): Iterable<number>;
}

interface Known {
  readonly sources: Set<string>;
  readonly text: string;
  readonly labels: readonly Label[];
}

export function createIdentityTexts(): IdentityTexts {
  const known = new Map<number, Known>();
  const byNamespace = new Map<string, Set<number>>();

  const namespaceOf = (labels: readonly Label[]) => labels.find((label) => label.key === NAMESPACE_LABEL)?.value;

  function index(id: number, labels: readonly Label[], isThere: boolean): void {
    const namespace = namespaceOf(labels);
    if (namespace === undefined) return;
    const ids = byNamespace.get(namespace) ?? new Set<number>();
    if (isThere) ids.add(id);
    else ids.delete(id);
    if (ids.size > 0) byNamespace.set(namespace, ids);
    else byNamespace.delete(namespace);
  }

  return {
    set(source, id, text) {
      const before = known.get(id);
      if (text === undefined) {
        if (before === undefined || !before.sources.delete(source) || before.sources.size > 0) return false;
        known.delete(id);
        index(id, before.labels, false);
        return true;
      }
      before?.sources.add(source);
      if (before?.text === text) return false;
      const labels = parseLabels(text);
      if (labels === undefined) return false;
      if (before !== undefined) index(id, before.labels, false);
      // Sources that disagree speak of different times: a number is given again once nobody uses it. The latest is right.
      known.set(id, { sources: before?.sources ?? new Set([source]), text, labels });
      index(id, labels, true);
      return true;
    },
    get: (id) => known.get(id)?.labels,
    inNamespace: (namespace) => byNamespace.get(namespace) ?? [],
  };
}
