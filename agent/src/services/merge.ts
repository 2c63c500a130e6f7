/**
 * One service of this cluster, merged with its namesakes in other clusters, as rows for the kernel (wire-contract §3.2). Pure.
 *
 *   local service ─ frontends, affinity, "is it global?"
 *   local slices ── backends of this cluster: active (ready) or terminating (not ready, still serving)
 *   remote ──────── backends of each peer (published = ready or serving there: active here)
 *   restored ────── what the kernel still holds of clusters that have not been heard out since the agent started
 */
import { type GlobalService, ipv4ToNumber, isIpv4, type LocalService, type LocalSlice } from '@clustermesh/contract';
import { type Backend, type Frontend, type Protocol, type ServiceRow, serviceKey } from '../datapath/types.ts';

export interface RemoteService {
  readonly clusterId: number;
  readonly service: GlobalService;
}

export interface MergeInput {
  /** This cluster's id: that of the backends from local slices. */
  readonly clusterId: number;
  readonly service: LocalService;
  /** The slices of this service. */
  readonly slices: readonly LocalSlice[];
  readonly remotes: readonly RemoteService[];
  /** Backends that a frontend keeps although no source has named them since the start: those of clusters not yet synced. */
  readonly restored: (frontend: string) => readonly Backend[];
}

/** Backends of one frontend, by what may be chosen for a new connection. */
interface Candidates {
  readonly localActive: readonly Backend[];
  readonly localTerminating: readonly Backend[];
  readonly remote: readonly Backend[];
}

export function isSupportedProtocol(protocol: string): protocol is Protocol {
  return protocol === 'TCP' || protocol === 'UDP';
}

export function mergeService(input: MergeInput): ServiceRow[] {
  const rows: ServiceRow[] = [];
  for (const ip of input.service.clusterIPs) {
    if (!isIpv4(ip)) continue;
    for (const port of input.service.ports) {
      // SCTP ports cannot be translated without its CRC32c; such a port gets no row.
      if (!isSupportedProtocol(port.protocol)) continue;
      const frontend: Frontend = { ip, port: port.port, protocol: port.protocol };
      const candidates = candidatesOf(input, frontend, port.name);
      rows.push({ frontend, backends: sortBackends(select(input.service.affinity, candidates)), flags: 0 });
    }
  }
  return rows;
}

/** The affinity table of wire-contract §3.2. All or nothing: there is no minimum and no split. */
function select(
  affinity: LocalService['affinity'],
  { localActive, localTerminating, remote }: Candidates,
): readonly Backend[] {
  const home = localActive.length > 0 ? localActive : localTerminating;
  switch (affinity) {
    case 'none': {
      const active = [...localActive, ...remote];
      return active.length > 0 ? active : localTerminating;
    }
    case 'local':
      // Backends that are merely terminating do not hold up the fallback.
      return localActive.length === 0 && remote.length > 0 ? remote : home;
    case 'remote':
      return remote.length > 0 ? remote : home;
  }
}

function candidatesOf(input: MergeInput, frontend: Frontend, portName: string): Candidates {
  const restored = input.restored(serviceKey(frontend));
  const local = localBackends(input, frontend.protocol, portName);
  const restoredHere = restored.filter((backend) => backend.clusterId === input.clusterId);
  const remote = input.service.global
    ? [
        ...input.remotes.flatMap((from) => remoteBackends(from, frontend.protocol, portName)),
        ...restored.filter((backend) => backend.clusterId !== input.clusterId),
      ]
    : [];
  // What is restored counts as active, also where a slice that came already says "terminating": perhaps the kernel had fallen
  // back to terminating backends, and the slices that would tell are still to come.
  return {
    localActive: [...local.active, ...restoredHere],
    localTerminating: local.terminating,
    remote,
  };
}

function localBackends(
  input: MergeInput,
  protocol: Protocol,
  portName: string,
): { active: Backend[]; terminating: Backend[] } {
  const active: Backend[] = [];
  const terminating: Backend[] = [];
  for (const slice of input.slices) {
    const port = slice.ports.find((candidate) => candidate.name === portName && candidate.protocol === protocol)?.port;
    if (port === undefined) continue;
    for (const endpoint of slice.endpoints) {
      const into = endpoint.ready ? active : endpoint.serving && endpoint.terminating ? terminating : undefined;
      if (into === undefined) continue;
      for (const ip of endpoint.addresses) if (isIpv4(ip)) into.push({ ip, port, clusterId: input.clusterId });
    }
  }
  return { active, terminating };
}

function remoteBackends({ clusterId, service }: RemoteService, protocol: Protocol, portName: string): Backend[] {
  const backends: Backend[] = [];
  for (const [ip, ports] of Object.entries(service.backends)) {
    if (!isIpv4(ip)) continue;
    const port = portNamed(ports, protocol, portName);
    if (port !== undefined) backends.push({ ip, port, clusterId });
  }
  return backends;
}

/** By name; a frontend without a name (legal only for a single port) also takes the only port a peer has of that protocol. */
function portNamed(ports: GlobalService['backends'][string], protocol: Protocol, name: string): number | undefined {
  const named = ports[name];
  if (named !== undefined && named.Protocol.toUpperCase() === protocol) return named.Port;
  if (name !== '') return undefined;
  const sameProtocol = Object.values(ports).filter((port) => port.Protocol.toUpperCase() === protocol);
  return sameProtocol.length === 1 ? sameProtocol[0]?.Port : undefined;
}

const backendKey = (backend: Backend): string => `${backend.ip}:${backend.port}`;

/**
 * By cluster id, address and port, each address and port once: every node of every cluster fills its slots in the same order.
 */
export function sortBackends(backends: Iterable<Backend>): Backend[] {
  const sorted = [...backends].sort(
    (a, b) => a.clusterId - b.clusterId || ipv4ToNumber(a.ip) - ipv4ToNumber(b.ip) || a.port - b.port,
  );
  const seen = new Set<string>();
  return sorted.filter((backend) => {
    const key = backendKey(backend);
    return seen.has(key) ? false : seen.add(key);
  });
}
