/** Backends as their sources name them → groups of addresses that share their ports. Pure. */
import { SocketAddress } from 'node:net';
import {
  type ClusterEndpointSlice,
  DEFAULT_WEIGHT,
  EXTENSION_FIELD,
  type GlobalService,
  type LocalSlice,
  readWeight,
  type SliceConditions,
} from '@clustermesh/contract';

export interface BackendPort {
  /** '' for the one without a name. */
  readonly name: string;
  readonly protocol: string;
  readonly port: number;
}

export interface BackendGroup {
  readonly ports: readonly BackendPort[];
  /** Addresses, IPv4 and IPv6, that may be chosen for a new connection. */
  readonly active: readonly string[];
  /** Addresses on their way out that still serve: chosen when nothing else is left. */
  readonly terminating: readonly string[];
  /** Addresses that are never chosen, but are not gone either: they keep the connections that they have. */
  readonly unready?: readonly string[];
  /** Of each address. Default 1. */
  readonly weight?: number;
}

/** Kubernetes' reading of a slice's conditions. */
function byState(
  endpoints: readonly { readonly addresses: readonly string[]; readonly conditions: Required<Conditions> }[],
): Pick<BackendGroup, 'active' | 'terminating' | 'unready'> {
  const active: string[] = [];
  const terminating: string[] = [];
  const unready: string[] = [];
  for (const { addresses, conditions } of endpoints) {
    const into = conditions.ready ? active : conditions.serving && conditions.terminating ? terminating : unready;
    for (const address of addresses) into.push(canonicalIp(address));
  }
  return { active, terminating, ...(unready.length === 0 ? {} : { unready }) };
}

type Conditions = Pick<SliceConditions, 'ready' | 'serving' | 'terminating'>;

export function groupOfLocalSlice({ ports, endpoints, weight }: LocalSlice): BackendGroup {
  const states = byState(endpoints.map((endpoint) => ({ addresses: endpoint.addresses, conditions: endpoint })));
  return { ports, ...states, ...weighing(weight) };
}

const weighing = (weight = DEFAULT_WEIGHT): { weight?: number } => (weight === DEFAULT_WEIGHT ? {} : { weight });

export function groupOfSlice(slice: ClusterEndpointSlice): BackendGroup {
  const ports = slice.ports.flatMap(({ name = '', protocol = 'TCP', port }) =>
    // Without a number it stands for every port, which no frontend can lead to.
    port === undefined ? [] : [{ name, protocol: protocol.toUpperCase(), port }],
  );
  const endpoints = slice.endpoints.map(({ addresses, conditions }) => ({
    addresses,
    conditions: {
      ready: conditions.ready ?? true,
      serving: conditions.serving ?? true,
      terminating: conditions.terminating ?? false,
    },
  }));
  return { ports, ...byState(endpoints), ...weighing(readWeight(slice.annotations).weight) };
}

/**
 * The legacy form knows no conditions: what it has is ready or serving, and counts as active. Weights are in our own object, which
 * plain Cilium has not. Nearly always this is one group.
 */
export function groupsOfService(service: GlobalService): BackendGroup[] {
  const weights = service[EXTENSION_FIELD]?.weights ?? {};
  const groups = new Map<string, BackendGroup & { readonly active: string[] }>();
  for (const [ip, ports] of Object.entries(service.backends)) {
    const weight = Object.hasOwn(weights, ip) ? weights[ip] : undefined;
    const key = JSON.stringify([ports, weight]);
    const group = groups.get(key);
    if (group !== undefined) {
      group.active.push(canonicalIp(ip));
      continue;
    }
    const named = Object.entries(ports).map(([name, { Protocol, Port }]) => ({
      name,
      protocol: Protocol.toUpperCase(),
      port: Port,
    }));
    groups.set(key, { ports: named, active: [canonicalIp(ip)], terminating: [], ...weighing(weight) });
  }
  return [...groups.values()];
}

/** One text for one address: an IPv6 address has many. */
function canonicalIp(ip: string): string {
  return isIpv6(ip) ? new SocketAddress({ address: ip, family: 'ipv6' }).address : ip;
}

/** Of a text that is known to be an address. */
export const isIpv6 = (ip: string): boolean => ip.includes(':');
