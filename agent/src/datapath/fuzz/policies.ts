/**
 * The policies under which half of the random packets run, as clauses: compiled into rows of the kernel by the agent's own compiler,
 * and read as they stand by the oracle.
 */
import { type Layer4, type PolicyDirection, RESERVED_IDENTITY } from '@clustermesh/contract';
import { PROTOCOL_NUMBERS } from '../../policy/ports.ts';
import { ANYBODY, type Clause, DIRECTIONS, rowsFor } from '../../policy/subject.ts';
import type { PolicyRow } from '../../policy/types.ts';
import { policyStateTable, policyTable } from '../policy.ts';
import { A, B, C, D, type LabPod, type PacketLab, W } from '../testing/packet-lab.ts';

interface PodPolicy {
  readonly pod: LabPod;
  /** As the packet lab has numbered it. */
  readonly endpointId: number;
  /** Undefined: open. */
  readonly clauses: Readonly<Record<PolicyDirection, readonly Clause[] | undefined>>;
}

const ports = (protocol: keyof typeof PROTOCOL_NUMBERS, first = 0, last = first === 0 ? 65_535 : first): Layer4 => ({
  kind: 'ports',
  protocol,
  first,
  last,
});
const ECHO: readonly Layer4[] = [
  { kind: 'icmp', family: 4, type: 8 },
  { kind: 'icmp', family: 6, type: 128 },
];
/** Identity undefined: whoever it is; no ports: whatever it is. */
const clause = (deny: boolean, identity: number | undefined, layer4: readonly Layer4[] | null): Clause => ({
  deny,
  peers: identity === undefined ? undefined : { members: new Set([identity]) },
  layer4,
});
const allow = (identity: number | undefined, ...layer4: Layer4[]) =>
  clause(false, identity, layer4.length === 0 ? null : layer4);
const deny = (identity: number | undefined, ...layer4: Layer4[]) =>
  clause(true, identity, layer4.length === 0 ? null : layer4);

export const POLICIES: readonly PodPolicy[] = [
  {
    pod: A,
    endpointId: 0,
    clauses: {
      ingress: [
        allow(C.identity, ports('TCP', 80), ports('TCP', 8080, 8087)),
        allow(D.identity, ports('TCP')),
        allow(B.identity),
        allow(RESERVED_IDENTITY.world, ports('UDP'), ports('SCTP', 4000)),
        allow(RESERVED_IDENTITY.worldIpv6, ports('TCP', 80), ports('UDP', 4000)),
        allow(undefined, ...ECHO),
        deny(undefined, ports('UDP', 53)),
      ],
      egress: [
        allow(undefined, ports('TCP'), ports('UDP', 53), ports('UDP', 5353), ...ECHO),
        allow(C.identity),
        deny(W.identity),
      ],
    },
  },
  {
    pod: B,
    endpointId: 1,
    clauses: {
      ingress: undefined,
      egress: [allow(A.identity), allow(C.identity, ports('TCP', 8080)), deny(undefined, ports('SCTP'))],
    },
  },
];

/** Into the kernel, or out of it: then every pod is open. */
export async function enforcePolicies({ loaded: { maps } }: PacketLab, isOn: boolean): Promise<void> {
  const rows: PolicyRow[] = [];
  for (const { endpointId, clauses } of POLICIES) {
    for (const direction of DIRECTIONS) {
      const of = clauses[direction] ?? [];
      const named = new Set([ANYBODY, ...of.flatMap(({ peers }) => [...(peers?.members ?? [])])]);
      for (const identity of named) rows.push(...rowsFor(endpointId, direction, of, identity, () => []));
    }
  }
  const [policies, states] = [policyTable(maps.cm_policy), policyStateTable(maps.cm_policy_state)];
  const results = [
    ...(await policies.update(rows)),
    ...(await states.update(
      POLICIES.map(({ endpointId, clauses }) => ({
        endpointId,
        ingress: isOn && clauses.ingress !== undefined,
        egress: isOn && clauses.egress !== undefined,
        locked: false,
        revision: isOn ? 2 : 1,
      })),
    )),
  ];
  for (const { error } of results) if (error !== undefined) throw error;
}

/** What a packet is asked about. Port: the receiver's; ICMP: the type. */
export interface Asked {
  readonly protocol: number;
  readonly port: number;
}

const ICMP_PROTOCOLS = { 4: 1, 6: 58 } as const;

function isMeant(layer4: readonly Layer4[] | null, { protocol, port }: Asked): boolean {
  if (layer4 === null) return true;
  return layer4.some((entry) => {
    if (entry.kind === 'icmp') return protocol === ICMP_PROTOCOLS[entry.family] && port === entry.type;
    return (
      entry.kind === 'ports' &&
      protocol === PROTOCOL_NUMBERS[entry.protocol] &&
      entry.first <= port &&
      port <= entry.last
    );
  });
}

/** May the pod begin a flow with this peer, or the peer one with it? */
export function isDenied(pod: LabPod, direction: PolicyDirection, peer: number, asked: Asked): boolean {
  const clauses = POLICIES.find((policy) => policy.pod === pod)?.clauses[direction];
  if (clauses === undefined) return false;
  const about = clauses.filter(
    ({ peers, layer4 }) => (peers === undefined || peers.members.has(peer)) && isMeant(layer4, asked),
  );
  return about.length === 0 || about.some((one) => one.deny);
}
