/**
 * Who each peer of a rule is, kept up to date: one entry per distinct peer, however many rules name it. A new identity is held only
 * against the peers that ask for one of its labels.
 */
import {
  type PolicyPeer,
  parsePrefix,
  prefixContains,
  type Requirement,
  selectorText,
  selects,
} from '@clustermesh/contract';
import type { Identity } from './identities.ts';

export interface PeerSet {
  readonly members: ReadonlySet<number>;
}

export interface Peers {
  /** The set of a peer, for as long as it is not released. */
  acquire(peer: PolicyPeer): PeerSet;
  release(set: PeerSet): void;
  /** Undefined: the identity is gone. Returns the sets that it joined or left. */
  setIdentity(id: number, identity: Identity | undefined): PeerSet[];
}

interface Held extends PeerSet {
  readonly members: Set<number>;
  readonly text: string;
  readonly matches: (identity: Identity) => boolean;
  /** `key=value` of one of which it needs; undefined: nothing that could be looked up. */
  readonly needs: readonly string[] | undefined;
  uses: number;
}

function textOf(peer: PolicyPeer): string {
  switch (peer.kind) {
    case 'all':
      return 'all';
    case 'labels':
      return `labels ${selectorText(peer.selector)}`;
    case 'cidr':
      return `cidr ${peer.cidr} ${[...peer.except].sort().join()}`;
  }
}

function matcherOf(peer: PolicyPeer): (identity: Identity) => boolean {
  switch (peer.kind) {
    case 'all':
      return () => true;
    case 'labels':
      return ({ labels }) => selects(peer.selector, labels);
    case 'cidr': {
      const inside = parsePrefix(peer.cidr);
      const outside = peer.except.map(parsePrefix).filter((prefix) => prefix !== undefined);
      return ({ prefix }) =>
        prefix !== undefined &&
        inside !== undefined &&
        prefixContains(inside, prefix) &&
        !outside.some((except) => prefixContains(except, prefix));
    }
  }
}

/** Of several, the one that fewest identities are likely to have: not the cluster, not the namespace. */
function needsOf(peer: PolicyPeer): readonly string[] | undefined {
  if (peer.kind !== 'labels') return undefined;
  const listed = peer.selector.filter(({ operator }: Requirement) => operator === 'In');
  const best = listed.find(({ key }) => !key.startsWith('io.')) ?? listed[0];
  return best?.values.map((value) => `${best.key}=${value}`);
}

export function createPeers(): Peers {
  const byText = new Map<string, Held>();
  const byNeed = new Map<string, Set<Held>>();
  const general = new Set<Held>();
  const identities = new Map<number, Identity>();
  /** The sets that each identity is in. */
  const memberships = new Map<number, Set<Held>>();

  function join(held: Held, id: number): void {
    held.members.add(id);
    const of = memberships.get(id);
    if (of === undefined) memberships.set(id, new Set([held]));
    else of.add(held);
  }

  function* candidates(identity: Identity): Generator<Held> {
    yield* general;
    for (const [key, labels] of identity.labels)
      for (const { value } of labels) yield* byNeed.get(`${key}=${value}`) ?? [];
  }

  return {
    acquire(peer) {
      const text = textOf(peer);
      const known = byText.get(text);
      if (known !== undefined) {
        known.uses++;
        return known;
      }
      const held: Held = { members: new Set(), text, matches: matcherOf(peer), needs: needsOf(peer), uses: 1 };
      byText.set(text, held);
      if (held.needs === undefined) general.add(held);
      for (const need of held.needs ?? []) {
        const sharing = byNeed.get(need);
        if (sharing === undefined) byNeed.set(need, new Set([held]));
        else sharing.add(held);
      }
      for (const identity of identities.values()) if (held.matches(identity)) join(held, identity.id);
      return held;
    },
    release(set) {
      const held = set as Held;
      if (--held.uses > 0) return;
      byText.delete(held.text);
      general.delete(held);
      for (const need of held.needs ?? []) {
        const sharing = byNeed.get(need);
        sharing?.delete(held);
        if (sharing?.size === 0) byNeed.delete(need);
      }
      for (const id of held.members) memberships.get(id)?.delete(held);
    },
    setIdentity(id, identity) {
      const before = memberships.get(id) ?? new Set<Held>();
      const after = new Set<Held>();
      if (identity !== undefined) for (const held of candidates(identity)) if (held.matches(identity)) after.add(held);
      if (identity === undefined) identities.delete(id);
      else identities.set(id, identity);
      for (const held of before) if (!after.has(held)) held.members.delete(id);
      for (const held of after) held.members.add(id);
      if (after.size > 0) memberships.set(id, after);
      else memberships.delete(id);
      return [...before, ...after].filter((held) => before.has(held) !== after.has(held));
    },
  };
}
