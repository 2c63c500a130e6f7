/** What the kernel enforces at the pods of this node, with numbers said in words: `clustermesh-agent policy get`. Pure. */
import type { EndpointInfo, PolicyDirection } from '@clustermesh/contract';
import { ANYBODY } from './subject.ts';
import type { PolicyRow, PolicyStateRow } from './types.ts';

export interface PolicyView {
  readonly endpointId: number;
  /** `namespace/name`; undefined: only the kernel knows the endpoint. */
  readonly pod: string | undefined;
  readonly addresses: readonly string[];
  readonly ingress: boolean;
  readonly egress: boolean;
  /** Nothing passes. */
  readonly locked: boolean;
  readonly revision: number;
  readonly policies: readonly string[];
  readonly rows: readonly PolicyViewRow[];
}

export interface PolicyViewRow {
  readonly direction: PolicyDirection;
  readonly verdict: 'allow' | 'deny';
  /** 0: whoever it is. */
  readonly identity: number;
  /** Its labels, `reserved:NAME`, `cidr:PREFIX`, `anyone`, or `unknown`: nobody names it any more, or yet. */
  readonly peer: string;
  readonly protocol: string;
  /** `80`, `8080-8087`, `any`; for ICMP the type. */
  readonly ports: string;
}

const PROTOCOLS: Readonly<Record<number, string>> = {
  0: 'any',
  1: 'ICMP',
  6: 'TCP',
  17: 'UDP',
  58: 'ICMPv6',
  132: 'SCTP',
};
const ICMP: ReadonlySet<number> = new Set([1, 58]);

function portsOf({ protocol, port, portBits }: PolicyRow): string {
  if (portBits === 0) return 'any';
  if (ICMP.has(protocol)) return `type ${port >> 8}`;
  const last = port + 2 ** (16 - portBits) - 1;
  return last === port ? String(port) : `${port}-${last}`;
}

/** By an endpoint's number, its id, its pod (`namespace/name`) or one of its addresses. */
const isNamed = (text: string, endpointId: number, info: EndpointInfo | undefined): boolean =>
  text === String(endpointId) ||
  (info !== undefined && [info.id, `${info.namespace}/${info.pod}`, info.ipv4, info.ipv6].includes(text));

const inOrder = (a: PolicyRow, b: PolicyRow): number =>
  (a.direction === b.direction ? 0 : a.direction === 'ingress' ? -1 : 1) ||
  a.identity - b.identity ||
  a.protocol - b.protocol ||
  a.port - b.port ||
  a.portBits - b.portBits;

export interface PolicySources {
  readonly rows: Iterable<PolicyRow>;
  readonly states: Iterable<PolicyStateRow>;
  readonly endpoints: readonly EndpointInfo[];
  /** What an identity is called; undefined: unknown. */
  readonly describe: (identity: number) => string | undefined;
}

/** In the order of the endpoints' numbers. `wanted` empty: all that have a pod, or policies in the kernel. */
export function viewPolicies({ rows, states, endpoints, describe }: PolicySources, wanted = ''): PolicyView[] {
  const infos = new Map(endpoints.map((info) => [info.endpointId, info]));
  const held = new Map([...states].map((state) => [state.endpointId, state]));
  const byEndpoint = new Map<number, PolicyRow[]>();
  for (const row of rows) {
    const of = byEndpoint.get(row.endpointId);
    if (of === undefined) byEndpoint.set(row.endpointId, [row]);
    else of.push(row);
  }
  // The state of a number outlives its pod: with nothing enforced it says nothing.
  const enforcing = [...held.values()].filter(({ ingress, egress, locked }) => ingress || egress || locked);
  const ids = new Set([...infos.keys(), ...byEndpoint.keys(), ...enforcing.map(({ endpointId }) => endpointId)]);

  const names = new Map<number, string>([[ANYBODY, 'anyone']]);
  function nameOf(identity: number): string {
    const name = names.get(identity) ?? describe(identity) ?? 'unknown';
    names.set(identity, name);
    return name;
  }

  return [...ids]
    .sort((a, b) => a - b)
    .filter((id) => wanted === '' || isNamed(wanted, id, infos.get(id)))
    .map((endpointId): PolicyView => {
      const info = infos.get(endpointId);
      const state = held.get(endpointId);
      return {
        endpointId,
        pod: info && `${info.namespace}/${info.pod}`,
        addresses: info === undefined ? [] : [info.ipv4, info.ipv6].filter((ip) => ip !== ''),
        ingress: state?.ingress ?? false,
        egress: state?.egress ?? false,
        locked: state?.locked ?? false,
        revision: state?.revision ?? 0,
        policies: info?.policies ?? [],
        rows: (byEndpoint.get(endpointId) ?? []).sort(inOrder).map((row) => ({
          direction: row.direction,
          verdict: row.deny ? 'deny' : 'allow',
          identity: row.identity,
          peer: nameOf(row.identity),
          protocol: PROTOCOLS[row.protocol] ?? String(row.protocol),
          ports: portsOf(row),
        })),
      };
    });
}
