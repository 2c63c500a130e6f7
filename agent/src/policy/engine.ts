/**
 * Policies × identities × this node's endpoints → rows of the kernel's policy maps, incrementally: a new identity touches the endpoints
 * whose rules name it, a new policy the endpoints that it selects (or selected). No IO, no clock.
 *
 *   policies ─┬─► clauses per endpoint ─┐
 *             └─► CIDR numbers ─► ipcache ├─► rows per (endpoint, direction, peer) ─► flush
 *   identities, namespaces ─► peer sets ─┘
 *
 * Until the policies have been heard, nothing is decided: what the kernel holds stays, and a pod that is new meanwhile is locked.
 */
import {
  formatLabels,
  type Label,
  type LabelSet,
  type LocalPolicy,
  type PolicyDirection,
  type PolicyPeer,
  parseLabels,
  parsePrefix,
} from '@clustermesh/contract';
import type { RowSink } from '../reconcile/table.ts';
import { createCidrNumbers, isLocalIdentity } from './cidrs.ts';
import { cidrIdentity, createIdentityTexts, reservedIdentities, withNamespaceLabels } from './identities.ts';
import { createPeers, type PeerSet } from './peers.ts';
import { ANYBODY, clausesFor, DIRECTIONS, isSelected, peersOf, rowsFor, type SubjectPolicy } from './subject.ts';
import { type PolicyRow, type PolicyStateRow, policyRowKey } from './types.ts';

export interface PolicyEndpoint {
  /** The identity's label string; undefined: lost, what the kernel holds of it stays. */
  readonly labels: string | undefined;
  /** `TCP/http` → port, of its containers. */
  readonly namedPorts?: ReadonlyMap<string, number>;
}

export interface PolicySinks {
  readonly rows: RowSink<PolicyRow>;
  readonly states: RowSink<PolicyStateRow>;
  /** A range that needs a row in the ipcache; undefined: no longer. */
  readonly cidr: (prefix: string, identity: number | undefined) => void;
}

/** What is enforced at an endpoint. */
export interface EndpointPolicyInfo {
  readonly ingress: boolean;
  readonly egress: boolean;
  readonly revision: number;
  /** Names of the policies that select it: `cnp/shop/allow-web`. */
  readonly policies: readonly string[];
  /** Why nothing passes, or undefined. */
  readonly locked: string | undefined;
}

export interface PolicyEngine {
  setPolicy(name: string, policy: LocalPolicy | undefined): void;
  setNamespace(name: string, labels: Readonly<Record<string, string>> | undefined): void;
  setIdentity(source: string, id: number, labels: string | undefined): void;
  setEndpoint(endpointId: number, endpoint: PolicyEndpoint | undefined): void;
  /** Named ports of the pods that have an identity, as far as `source` knows them. */
  setNamedPorts(source: string, identity: number, ports: ReadonlyMap<string, number> | undefined): void;
  /** What the kernel held when the agent started. */
  restore(rows: {
    readonly rows: ReadonlyMap<string, PolicyRow>;
    readonly states: ReadonlyMap<string, PolicyStateRow>;
    readonly cidrs: Iterable<readonly [prefix: string, identity: number]>;
    /** Endpoints that it had: what it holds of them counts until the policies have been heard. */
    readonly endpoints: Iterable<number>;
  }): void;
  flush(into: PolicySinks): void;
  /** Rows that were to go are gone: flows that lived by them are to be judged again. */
  removed(states: RowSink<PolicyStateRow>): void;
  /** Endpoints of which the kernel lacks a denial: they are locked. */
  setIncomplete(endpointIds: ReadonlySet<number>, states: RowSink<PolicyStateRow>): void;
  info(endpointId: number): EndpointPolicyInfo;
  /** For people: its labels, or `cidr:PREFIX`; undefined: unknown. */
  describe(identity: number): string | undefined;
  restoredCount(): number;
}

export interface PolicyEngineOptions {
  readonly ownCluster: string;
  /** Whether the node itself may reach its pods unless a rule denies it (as Cilium does by default). */
  readonly allowHost: boolean;
  /** Whether this cluster's policies and namespaces have been heard. */
  readonly isReady: () => boolean;
  /** Whether everybody who could name this identity has been heard. */
  readonly isSettled: (identity: number) => boolean;
}

interface Subject {
  readonly id: number;
  endpoint: PolicyEndpoint;
  labels: LabelSet | undefined;
  policy: SubjectPolicy | undefined;
  /** By direction and peer: `slotOf`. */
  readonly rows: Map<number, readonly PolicyRow[]>;
  readonly dirty: Set<number>;
  /** Of peers, on the way out. */
  namesPorts: boolean;
  /** Selected by other policies, or by them in another way. */
  isStale: boolean;
}

const slotOf = (direction: PolicyDirection, identity: number): number =>
  identity * 2 + (direction === 'ingress' ? 0 : 1);
const directionOf = (slot: number): PolicyDirection => (slot % 2 === 0 ? 'ingress' : 'egress');
const identityOf = (slot: number): number => Math.floor(slot / 2);

const NOT_HEARD = 'the policies of this cluster have not been heard since the agent started';
const INCOMPLETE = 'the policy map lacks a rule that denies';

export function createPolicyEngine(options: PolicyEngineOptions): PolicyEngine {
  const policies = new Map<string, LocalPolicy>();
  const namespaces = new Map<string, Readonly<Record<string, string>>>();
  const texts = createIdentityTexts();
  const peers = createPeers();
  const cidrs = createCidrNumbers();
  const cidrChanges = new Map<string, number | undefined>();
  const subjects = new Map<number, Subject>();
  const users = new Map<PeerSet, Set<Subject>>();
  /** By source and identity. */
  const namedPorts = new Map<number, Map<string, ReadonlyMap<string, number>>>();
  const states = new Map<number, PolicyStateRow>();
  const changed = new Set<Subject>();
  /** Their rows go in this pass. */
  const losing = new Set<number>();
  const gone = new Set<number>();
  let incomplete: ReadonlySet<number> = new Set();
  let restored = new Map<string, PolicyRow>();
  const survivors = new Set<number>();

  const reserved = new Map<number, readonly Label[]>();
  for (const identity of reservedIdentities()) {
    peers.setIdentity(identity.id, identity);
    reserved.set(identity.id, [...identity.labels.values()].flat());
  }

  function labelsOf(text: string): LabelSet | undefined {
    const labels = parseLabels(text);
    return labels === undefined
      ? undefined
      : withNamespaceLabels(labels, options.ownCluster, (name) => namespaces.get(name));
  }

  function touch(sets: Iterable<PeerSet>, identity: number): void {
    for (const set of sets) {
      for (const subject of users.get(set) ?? []) {
        for (const direction of DIRECTIONS) subject.dirty.add(slotOf(direction, identity));
        changed.add(subject);
      }
    }
  }

  function refreshIdentity(id: number): void {
    const labels = texts.get(id);
    const set =
      labels === undefined
        ? undefined
        : withNamespaceLabels(labels, options.ownCluster, (name) => namespaces.get(name));
    touch(peers.setIdentity(id, set && { id, labels: set, prefix: undefined }), id);
  }

  function stale(subject: Subject): void {
    subject.isStale = true;
    changed.add(subject);
  }

  function* rangesOf(policy: LocalPolicy): Generator<string> {
    const named = (peer: PolicyPeer) => (peer.kind === 'cidr' ? [peer.cidr, ...peer.except] : []);
    for (const spec of policy.specs) for (const rule of spec.rules) for (const peer of rule.peers) yield* named(peer);
  }

  function acquireRanges(policy: LocalPolicy): void {
    for (const text of rangesOf(policy)) {
      const number = cidrs.acquire(text);
      if (number === undefined || !number.isNew) continue;
      const prefix = parsePrefix(text)!;
      cidrChanges.set(text, number.id);
      touch(peers.setIdentity(number.id, cidrIdentity(number.id, prefix)), number.id);
    }
  }

  function releaseRanges(policy: LocalPolicy): void {
    for (const text of rangesOf(policy)) {
      const id = cidrs.release(text);
      if (id === undefined) continue;
      cidrChanges.set(text, undefined);
      touch(peers.setIdentity(id, undefined), id);
    }
  }

  function* namedPortsOf(subject: Subject, direction: PolicyDirection, identity: number, key: string) {
    if (direction === 'ingress') {
      const port = subject.endpoint.namedPorts?.get(key);
      if (port !== undefined) yield port;
      return;
    }
    for (const ports of namedPorts.get(identity)?.values() ?? []) {
      const port = ports.get(key);
      if (port !== undefined) yield port;
    }
  }

  /** Looks again at which policies select the endpoint, and marks what may differ. */
  function recompile(subject: Subject): void {
    subject.isStale = false;
    const before = subject.policy;
    subject.policy =
      subject.labels === undefined ? undefined : clausesFor(policies, subject.labels, peers, options.allowHost);
    subject.namesPorts = (subject.policy?.clauses.egress ?? []).some(({ layer4 }) =>
      (layer4 ?? []).some(({ kind }) => kind === 'named'),
    );
    for (const set of new Set(before === undefined ? [] : peersOf(before))) {
      const using = users.get(set);
      using?.delete(subject);
      if (using?.size === 0) users.delete(set);
    }
    for (const slot of subject.rows.keys()) subject.dirty.add(slot);
    if (subject.policy !== undefined) {
      for (const set of new Set(peersOf(subject.policy))) {
        const using = users.get(set);
        if (using === undefined) users.set(set, new Set([subject]));
        else using.add(subject);
        for (const id of set.members) for (const direction of DIRECTIONS) subject.dirty.add(slotOf(direction, id));
      }
      for (const direction of DIRECTIONS) subject.dirty.add(slotOf(direction, ANYBODY));
    }
    if (before !== undefined) for (const set of peersOf(before)) peers.release(set);
  }

  /** True if a row differs. */
  function refresh(subject: Subject, slot: number, sink: RowSink<PolicyRow>): boolean {
    const direction = directionOf(slot);
    const identity = identityOf(slot);
    const clauses = subject.policy?.clauses[direction];
    const rows =
      clauses === undefined
        ? []
        : rowsFor(subject.id, direction, clauses, identity, (protocol, name) =>
            namedPortsOf(subject, direction, identity, `${protocol}/${name}`),
          );
    const before = new Map((subject.rows.get(slot) ?? []).map((row) => [policyRowKey(row), row]));
    let differs = false;
    for (const row of rows) {
      const key = policyRowKey(row);
      if (before.get(key)?.deny !== row.deny) differs = true;
      before.delete(key);
      restored.delete(key);
      sink.set(key, row);
    }
    for (const key of before.keys()) {
      sink.delete(key);
      losing.add(subject.id);
      differs = true;
    }
    if (rows.length > 0) subject.rows.set(slot, rows);
    else subject.rows.delete(slot);
    return differs;
  }

  function setState(endpointId: number, wanted: Omit<PolicyStateRow, 'endpointId' | 'revision'>, bump: boolean) {
    const before = states.get(endpointId);
    const isSame =
      before !== undefined &&
      before.ingress === wanted.ingress &&
      before.egress === wanted.egress &&
      before.locked === wanted.locked;
    if (isSame && !bump) return undefined;
    const state = { endpointId, ...wanted, revision: ((before?.revision ?? 0) + 1) >>> 0 || 1 };
    states.set(endpointId, state);
    return state;
  }

  /** Restored rows of identities that may yet be heard of stay; the others are leftovers. */
  function settleRestored(into: PolicySinks): void {
    for (const [key, row] of restored) {
      const subject = subjects.get(row.endpointId);
      if (subject !== undefined && subject.labels === undefined) continue;
      const clauses = subject?.policy?.clauses[row.direction];
      const isKnown = row.identity === ANYBODY || texts.get(row.identity) !== undefined;
      if (clauses !== undefined && !isKnown && !options.isSettled(row.identity)) continue;
      restored.delete(key);
      into.rows.delete(key);
      losing.add(row.endpointId);
    }
  }

  function stateOf(subject: Subject) {
    return {
      ingress: subject.policy?.clauses.ingress !== undefined,
      egress: subject.policy?.clauses.egress !== undefined,
      locked: incomplete.has(subject.id),
    };
  }

  return {
    setPolicy(name, policy) {
      const before = policies.get(name);
      if (policy === undefined) policies.delete(name);
      else policies.set(name, policy);
      if (policy !== undefined) acquireRanges(policy);
      if (before !== undefined) releaseRanges(before);
      for (const subject of subjects.values()) {
        const { labels } = subject;
        if (labels !== undefined && [before, policy].some((one) => isSelected(one, labels))) stale(subject);
      }
    },
    setNamespace(name, labels) {
      if (labels === undefined) namespaces.delete(name);
      else namespaces.set(name, labels);
      for (const id of texts.inNamespace(name)) refreshIdentity(id);
      for (const subject of subjects.values()) {
        if (subject.endpoint.labels === undefined) continue;
        subject.labels = labelsOf(subject.endpoint.labels);
        stale(subject);
      }
    },
    setIdentity(source, id, labels) {
      if (texts.set(source, id, labels)) refreshIdentity(id);
    },
    setEndpoint(endpointId, endpoint) {
      const known = subjects.get(endpointId);
      if (endpoint === undefined) {
        if (known === undefined) return;
        known.labels = undefined;
        recompile(known);
        known.policy = undefined;
        subjects.delete(endpointId);
        survivors.delete(endpointId);
        gone.add(endpointId);
        changed.add(known);
        return;
      }
      gone.delete(endpointId);
      const subject: Subject = known ?? {
        id: endpointId,
        endpoint,
        labels: undefined,
        policy: undefined,
        rows: new Map(),
        dirty: new Set(),
        namesPorts: false,
        isStale: true,
      };
      subjects.set(endpointId, subject);
      subject.endpoint = endpoint;
      subject.labels = endpoint.labels === undefined ? undefined : labelsOf(endpoint.labels);
      stale(subject);
    },
    setNamedPorts(source, identity, ports) {
      const bySource = namedPorts.get(identity) ?? new Map<string, ReadonlyMap<string, number>>();
      if (ports === undefined) bySource.delete(source);
      else bySource.set(source, ports);
      if (bySource.size > 0) namedPorts.set(identity, bySource);
      else namedPorts.delete(identity);
      for (const subject of subjects.values()) {
        if (!subject.namesPorts) continue;
        subject.dirty.add(slotOf('egress', identity));
        changed.add(subject);
      }
    },
    restore(held) {
      restored = new Map(held.rows);
      for (const id of held.endpoints) survivors.add(id);
      for (const state of held.states.values()) states.set(state.endpointId, state);
      for (const [prefix, id] of held.cidrs) if (isLocalIdentity(id)) cidrs.restore(prefix, id);
    },
    flush(into) {
      if (!options.isReady()) {
        for (const subject of subjects.values()) {
          if (survivors.has(subject.id)) continue;
          const state = setState(subject.id, { ingress: false, egress: false, locked: true }, false);
          if (state !== undefined) into.states.set(String(subject.id), state);
        }
        return;
      }
      for (const [prefix, id] of cidrChanges) into.cidr(prefix, id);
      cidrChanges.clear();
      for (const subject of changed) {
        if (subject.isStale) recompile(subject);
        // Another of the same number may have come since: what this one had goes nevertheless.
        const isCurrent = subjects.get(subject.id) === subject;
        if (subject.labels === undefined && isCurrent) continue;
        let differs = false;
        for (const slot of subject.dirty) differs = refresh(subject, slot, into.rows) || differs;
        subject.dirty.clear();
        const state = isCurrent ? setState(subject.id, stateOf(subject), differs) : undefined;
        if (state !== undefined) into.states.set(String(subject.id), state);
      }
      changed.clear();
      if (restored.size > 0) settleRestored(into);
      for (const id of gone) {
        // Kept with its revision: a later pod of the same number must not be taken for this one.
        const state = setState(id, { ingress: false, egress: false, locked: false }, true);
        if (state !== undefined) into.states.set(String(id), state);
      }
      gone.clear();
    },
    removed(sink) {
      for (const id of losing) {
        const before = states.get(id);
        if (before === undefined) continue;
        const state = setState(id, before, true);
        if (state !== undefined) sink.set(String(id), state);
      }
      losing.clear();
    },
    setIncomplete(endpointIds, sink) {
      const before = incomplete;
      incomplete = endpointIds;
      for (const id of new Set([...before, ...endpointIds])) {
        const subject = subjects.get(id);
        if (subject === undefined) continue;
        const state = setState(id, stateOf(subject), false);
        if (state !== undefined) sink.set(String(id), state);
      }
    },
    info(endpointId) {
      const state = states.get(endpointId);
      const locked = incomplete.has(endpointId) ? INCOMPLETE : state?.locked === true ? NOT_HEARD : undefined;
      return {
        ingress: state?.ingress ?? false,
        egress: state?.egress ?? false,
        revision: state?.revision ?? 0,
        policies: subjects.get(endpointId)?.policy?.policies ?? [],
        locked,
      };
    },
    describe(identity) {
      const labels = texts.get(identity) ?? reserved.get(identity);
      if (labels !== undefined) return formatLabels(labels);
      for (const [prefix, id] of cidrs.inUse()) if (id === identity) return `cidr:${prefix}`;
      return undefined;
    },
    restoredCount: () => restored.size,
  };
}
