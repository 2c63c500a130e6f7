/**
 * What policies mean, said as plainly as possible: no maps, no caches, every rule looked at for every question. Tests hold what the
 * compiler and the kernel make of policies against it; nothing else uses it.
 */
import {
  type LabelSet,
  type Layer4,
  type LocalPolicy,
  type PolicyDirection,
  type PolicyPeer,
  parsePrefix,
  prefixContains,
  selects,
} from '@clustermesh/contract';

export interface Party {
  readonly labels: LabelSet;
  /** Of somebody outside the mesh; undefined: a pod or a node, which no CIDR matches. */
  readonly address?: string | undefined;
  /** `TCP/http` → port, of its containers. */
  readonly namedPorts?: ReadonlyMap<string, number> | undefined;
}

export interface Question {
  /** Who begins the flow. */
  readonly source: Party;
  readonly destination: Party;
  readonly protocol: 'TCP' | 'UDP' | 'SCTP' | 'ICMP' | 'ICMPv6';
  /** Of the destination; for ICMP the type. */
  readonly port: number;
  /** Whose policies are asked: those of the source (egress) or of the destination (ingress). */
  readonly direction: PolicyDirection;
}

export type Answer = 'allowed' | 'denied by a rule' | 'denied by default';

function isPeer(peer: PolicyPeer, party: Party): boolean {
  if (peer.kind === 'all') return true;
  if (peer.kind === 'labels') return selects(peer.selector, party.labels);
  const address = party.address === undefined ? undefined : parsePrefix(party.address);
  const lies = (text: string) => address !== undefined && prefixContains(parsePrefix(text)!, address);
  return lies(peer.cidr) && !peer.except.some(lies);
}

function covers(entry: Layer4, question: Question): boolean {
  const { protocol, port } = question;
  switch (entry.kind) {
    case 'ports':
      return entry.protocol === protocol && entry.first <= port && port <= entry.last;
    case 'named':
      return (
        entry.protocol === protocol && question.destination.namedPorts?.get(`${entry.protocol}/${entry.name}`) === port
      );
    case 'icmp':
      return protocol === (entry.family === 4 ? 'ICMP' : 'ICMPv6') && entry.type === port;
  }
}

/** `allowHost`: whether the node itself may reach its pods without a rule. */
export function evaluate(
  policies: Iterable<LocalPolicy>,
  question: Question,
  { allowHost }: { readonly allowHost: boolean },
): Answer {
  const { direction } = question;
  const [subject, peer] =
    direction === 'ingress' ? [question.destination, question.source] : [question.source, question.destination];
  let isClosed = false;
  let isAllowed = allowHost && direction === 'ingress' && peer.labels.has('host');
  for (const policy of policies) {
    for (const spec of policy.specs) {
      if (!selects(spec.subject, subject.labels)) continue;
      if (spec.defaultDeny[direction]) isClosed = true;
      for (const rule of spec.rules) {
        if (rule.direction !== direction) continue;
        if (!rule.peers.some((candidate) => isPeer(candidate, peer))) continue;
        if (rule.layer4 !== null && !rule.layer4.some((entry) => covers(entry, question))) continue;
        if (rule.effect === 'deny') return 'denied by a rule';
        isAllowed = true;
      }
    }
  }
  return isAllowed || !isClosed ? 'allowed' : 'denied by default';
}
