/**
 * One pod of this node and what all policies together say to it: clauses (an effect, a set of peers, ports), and from them the rows of
 * one peer at a time, so that an identity that comes or goes costs what concerns it.
 */
import {
  type LabelSet,
  type Layer4,
  type LocalPolicy,
  type PolicyDirection,
  type PolicyPeer,
  type PolicySpec,
  reserved,
  selects,
} from '@clustermesh/contract';
import type { PeerSet, Peers } from './peers.ts';
import { blocksOfLayer4, type NamedPorts, resolve } from './ports.ts';
import type { PolicyRow } from './types.ts';

export const DIRECTIONS = ['ingress', 'egress'] as const satisfies readonly PolicyDirection[];

/** Stands for whoever it is, in rows. */
export const ANYBODY = 0;

export interface Clause {
  readonly deny: boolean;
  /** Undefined: whoever it is. */
  readonly peers: PeerSet | undefined;
  readonly layer4: readonly Layer4[] | null;
}

export interface SubjectPolicy {
  /** Names of the policies that select the pod. */
  readonly policies: readonly string[];
  /** Undefined: no policy speaks of this direction, everything is allowed. */
  readonly clauses: Readonly<Record<PolicyDirection, readonly Clause[] | undefined>>;
}

const EVERYBODY: PolicyPeer = { kind: 'labels', selector: [] };
const HOST: PolicyPeer = { kind: 'labels', selector: [reserved('host')] };
const OPEN: Clause = { deny: false, peers: undefined, layer4: null };

export function isSelected(policy: LocalPolicy | undefined, labels: LabelSet): boolean {
  return policy?.specs.some((spec) => selects(spec.subject, labels)) ?? false;
}

function specsFor(policies: ReadonlyMap<string, LocalPolicy>, labels: LabelSet) {
  const names: string[] = [];
  const specs: PolicySpec[] = [];
  for (const [name, policy] of policies) {
    const selecting = policy.specs.filter((spec) => selects(spec.subject, labels));
    if (selecting.length === 0) continue;
    names.push(name);
    specs.push(...selecting);
  }
  return { names: names.sort(), specs };
}

/** Acquires the peers that it names: `peersOf` lists them for release. `allowHost`: the node itself may reach the pod unless denied. */
export function clausesFor(
  policies: ReadonlyMap<string, LocalPolicy>,
  labels: LabelSet,
  peers: Peers,
  allowHost: boolean,
): SubjectPolicy {
  const { names, specs } = specsFor(policies, labels);

  function toClauses(direction: PolicyDirection): Clause[] | undefined {
    const rules = specs.flatMap((spec) => spec.rules).filter((rule) => rule.direction === direction);
    const isClosed = specs.some((spec) => spec.defaultDeny[direction]);
    if (rules.length === 0 && !isClosed) return undefined;
    const clauses = rules.flatMap(({ effect, peers: who, layer4 }) =>
      who.map((peer): Clause => {
        // What a name stands for is the receiver's to say: on the way out, another port for each.
        const isPerPeer = direction === 'egress' && (layer4 ?? []).some(({ kind }) => kind === 'named');
        const isAnybody = peer.kind === 'all' && !isPerPeer;
        const set = isAnybody ? undefined : peers.acquire(peer.kind === 'all' ? EVERYBODY : peer);
        return { deny: effect === 'deny', peers: set, layer4 };
      }),
    );
    if (direction === 'ingress' && allowHost) clauses.push({ deny: false, peers: peers.acquire(HOST), layer4: null });
    if (!isClosed) clauses.push(OPEN);
    return clauses;
  }

  return { policies: names, clauses: { ingress: toClauses('ingress'), egress: toClauses('egress') } };
}

export function* peersOf(policy: SubjectPolicy): Generator<PeerSet> {
  for (const direction of DIRECTIONS)
    for (const { peers } of policy.clauses[direction] ?? []) if (peers !== undefined) yield peers;
}

/** The rows for one peer, denials first. */
export function rowsFor(
  endpointId: number,
  direction: PolicyDirection,
  clauses: readonly Clause[],
  identity: number,
  named: NamedPorts,
): PolicyRow[] {
  const about = clauses.filter(({ peers }) =>
    identity === ANYBODY ? peers === undefined : (peers?.members.has(identity) ?? false),
  );
  if (about.length === 0) return [];
  const blocks = (deny: boolean) =>
    about.filter((clause) => clause.deny === deny).flatMap(({ layer4 }) => blocksOfLayer4(layer4, named));
  return resolve(blocks(false), blocks(true)).map(({ protocol, port, bits, deny }) => ({
    endpointId,
    direction,
    identity,
    protocol,
    port,
    portBits: bits,
    deny,
  }));
}
