/**
 * One service of this cluster, merged with its namesakes in other clusters, as rows for the kernel (wire-contract §3.2). Pure.
 *
 *   local service ─ frontends (frontends.ts), affinity, "is it global?"
 *   local ───────── backends of this cluster: active, or terminating (not ready, still serving)
 *   remotes ─────── those of each peer, in the form that was chosen of it
 *   restored ────── what the kernel still holds of clusters that have not been heard out since the agent started
 *
 * IPv4 and IPv6 side by side: a frontend leads to backends of its own family.
 */
import { ipv4ToNumber, type LocalService } from '@clustermesh/contract';
import {
  type Backend,
  type Frontend,
  type Protocol,
  SERVICE_FLAG,
  type ServiceRow,
  serviceKey,
} from '../datapath/types.ts';
import { frontendsOf, NO_NODE, type NodeAddresses, type ServiceFrontend } from './frontends.ts';
import { type BackendGroup, type BackendPort, isIpv6 } from './groups.ts';

export interface RemoteBackends {
  readonly clusterId: number;
  readonly groups: readonly BackendGroup[];
}

export interface MergeInput {
  /** This cluster's id: that of the local backends. */
  readonly clusterId: number;
  readonly service: LocalService;
  /** This node. Default: one without addresses and backends. */
  readonly node?: NodeAddresses;
  /** One group per slice of this service. */
  readonly local: readonly BackendGroup[];
  readonly remotes: readonly RemoteBackends[];
  /** Backends that a frontend keeps although no source has named them since the start: those of clusters not yet synced. */
  readonly restored: (frontend: string) => readonly Backend[];
  /** Those of them that only drained. Default: none. */
  readonly restoredDraining?: (frontend: string) => readonly Backend[];
}

/** Backends of one frontend, by what may be chosen for a new connection. */
interface Candidates {
  readonly localActive: readonly Backend[];
  readonly localTerminating: readonly Backend[];
  readonly remoteActive: readonly Backend[];
  readonly remoteTerminating: readonly Backend[];
  /** Never chosen for a new connection, but not gone. */
  readonly unready: readonly Backend[];
}

export function mergeService(input: MergeInput): ServiceRow[] {
  return frontendsOf(input.service, input.node ?? NO_NODE).map((each) => rowOf(input, each));
}

function rowOf(input: MergeInput, { frontend, portName, isOnlyHere }: ServiceFrontend): ServiceRow {
  const { affinity, lbAlgorithm, sessionAffinitySeconds } = input.service;
  const everywhere = candidatesOf(input, frontend, portName);
  const candidates = isOnlyHere ? onlyHere(everywhere, input.node ?? NO_NODE) : everywhere;
  const backends = sortBackends(select(affinity, candidates));
  const draining = without(sortBackends(Object.values(candidates).flat()), backends);
  return {
    frontend,
    backends,
    ...(draining.length === 0 ? {} : { draining }),
    flags: lbAlgorithm === 'maglev' ? SERVICE_FLAG.maglev : 0,
    ...(sessionAffinitySeconds === undefined ? {} : { affinitySeconds: sessionAffinitySeconds }),
  };
}

function onlyHere(candidates: Candidates, { isHere }: NodeAddresses): Candidates {
  const here = (backends: readonly Backend[]) => backends.filter(({ ip }) => isHere(ip));
  return {
    localActive: here(candidates.localActive),
    localTerminating: here(candidates.localTerminating),
    remoteActive: here(candidates.remoteActive),
    remoteTerminating: here(candidates.remoteTerminating),
    unready: here(candidates.unready),
  };
}

/** Backends that some source names but that are not chosen: what is connected to them may go on. Weights mean nothing there. */
function without(all: readonly Backend[], chosen: readonly Backend[]): Backend[] {
  const keys = new Set(chosen.map(backendKey));
  return all
    .filter((backend) => !keys.has(backendKey(backend)))
    .map(({ ip, port, clusterId }) => ({ ip, port, clusterId }));
}

/**
 * The affinity table of wire-contract §3.2. All or nothing: there is no minimum and no split. Beyond the table, what is merely
 * terminating is chosen only when no cluster has an active backend, whichever the affinity: a new connection that could last is
 * worth more than one that stays where it was wanted.
 */
function select(
  affinity: LocalService['affinity'],
  { localActive, localTerminating, remoteActive, remoteTerminating }: Candidates,
): readonly Backend[] {
  const first = (...sets: (readonly Backend[])[]) => sets.find((set) => set.length > 0) ?? [];
  switch (affinity) {
    case 'none':
      return first([...localActive, ...remoteActive], [...localTerminating, ...remoteTerminating]);
    case 'local':
      return first(localActive, remoteActive, localTerminating, remoteTerminating);
    case 'remote':
      return first(remoteActive, localActive, remoteTerminating, localTerminating);
  }
}

function candidatesOf(input: MergeInput, frontend: Frontend, portName: string): Candidates {
  const localActive: Backend[] = [];
  const localTerminating: Backend[] = [];
  const remoteActive: Backend[] = [];
  const remoteTerminating: Backend[] = [];
  const unready: Backend[] = [];
  const ofFamily = isIpv6(frontend.ip);

  function add(
    into: Backend[],
    ips: readonly string[],
    port: number,
    clusterId: number,
    { weight }: BackendGroup,
  ): void {
    const weighing = weight === undefined ? {} : { weight };
    for (const ip of ips) if (isIpv6(ip) === ofFamily) into.push({ ip, port, clusterId, ...weighing });
  }
  for (const group of input.local) {
    const { ports, active, terminating } = group;
    const port = portNamed(ports, frontend.protocol, portName);
    if (port === undefined) continue;
    add(localActive, active, port, input.clusterId, group);
    add(localTerminating, terminating, port, input.clusterId, group);
    add(unready, group.unready ?? [], port, input.clusterId, group);
  }
  if (input.service.global) {
    for (const { clusterId, groups } of input.remotes) {
      for (const group of groups) {
        const { ports, active, terminating } = group;
        const port = portNamed(ports, frontend.protocol, portName) ?? onlyPort(ports, frontend.protocol, portName);
        if (port === undefined) continue;
        add(remoteActive, active, port, clusterId, group);
        add(remoteTerminating, terminating, port, clusterId, group);
        add(unready, group.unready ?? [], port, clusterId, group);
      }
    }
  }
  // What is restored counts as active, also where a slice that came already says "terminating": perhaps the kernel had fallen
  // back to terminating backends, and the slices that would tell are still to come.
  for (const backend of input.restored(serviceKey(frontend))) {
    if (backend.clusterId === input.clusterId) localActive.push(backend);
    else if (input.service.global) remoteActive.push(backend);
  }
  for (const backend of input.restoredDraining?.(serviceKey(frontend)) ?? [])
    if (input.service.global || backend.clusterId === input.clusterId) unready.push(backend);
  return { localActive, localTerminating, remoteActive, remoteTerminating, unready };
}

function portNamed(ports: readonly BackendPort[], protocol: Protocol, name: string): number | undefined {
  return ports.find((port) => port.name === name && port.protocol === protocol)?.port;
}

/** A frontend without a name (legal only for a single port) also takes the only port a peer has of that protocol. */
function onlyPort(ports: readonly BackendPort[], protocol: Protocol, name: string): number | undefined {
  if (name !== '') return undefined;
  const sameProtocol = ports.filter((port) => port.protocol === protocol);
  return sameProtocol.length === 1 ? sameProtocol[0]?.port : undefined;
}

const backendKey = (backend: Backend): string => `${backend.ip}:${backend.port}`;

/**
 * By cluster id, address and port, each address and port once: every node of every cluster fills its slots in the same order.
 */
export function sortBackends(backends: Iterable<Backend>): Backend[] {
  const ordered = Array.from(backends, (backend) => ({ backend, order: orderOf(backend.ip) })).sort(
    (a, b) =>
      a.backend.clusterId - b.backend.clusterId || compareOrder(a.order, b.order) || a.backend.port - b.backend.port,
  );
  const seen = new Set<string>();
  const unique: Backend[] = [];
  for (const { backend } of ordered) {
    const key = backendKey(backend);
    if (seen.has(key)) continue;
    seen.add(key);
    unique.push(backend);
  }
  return unique;
}

/** An IPv4 address as its number, before all IPv6 ones as their texts: any order will do that is the same everywhere. */
const orderOf = (ip: string): number | string => (isIpv6(ip) ? ip : ipv4ToNumber(ip));

function compareOrder(a: number | string, b: number | string): number {
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  if (typeof a === 'string' && typeof b === 'string') return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === 'number' ? -1 : 1;
}
