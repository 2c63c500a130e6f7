/**
 * All services, kept incrementally: sources say what changed, `flush` recomputes the services that it touches and writes their
 * rows. Pure but for its own state; no IO, no clock.
 *
 * Rows that were in the kernel when the agent started are *restored*. Which service a restored frontend belongs to is not in
 * the kernel, so
 *   - a restored frontend that no service claims stays whole until the local services and slices have synced;
 *   - once claimed, the restored backends of cluster R stay contributions of R until R has synced.
 * So no source that has not spoken can shrink a service.
 */
import type { Cidr, ClusterEndpointSlice, GlobalService, LocalService, LocalSlice } from '@clustermesh/contract';
import { type Backend, type ServiceRow, serviceKey } from '../datapath/types.ts';
import type { RowSink } from '../reconcile/table.ts';
import type { ServiceV2 } from './choice.ts';
import { NO_NODE, type NodeAddresses } from './frontends.ts';
import { type BackendGroup, groupOfLocalSlice } from './groups.ts';
import { mergeService } from './merge.ts';
import { createRemoteServices } from './remote-services.ts';

/** What is known of the sources of services. Cluster ids as in backends. */
export interface ServiceSources {
  /** Everything that this cluster has to say about services has been heard since the start. */
  isSettled(clusterId: number): boolean;
  /** The cluster publishes endpoint slices, and all of them are known. */
  areSlicesHeard(clusterId: number): boolean;
  /** The cluster left the mesh: not even a restored row may keep its backends. */
  isGone(clusterId: number): boolean;
}

export interface ServicesProjection {
  setService(name: string, service: LocalService | undefined): void;
  setSlice(name: string, slice: LocalSlice | undefined): void;
  setRemote(cluster: string, clusterId: number, name: string, service: GlobalService | undefined): void;
  setRemoteSlice(cluster: string, clusterId: number, name: string, slice: ClusterEndpointSlice | undefined): void;
  restore(rows: ReadonlyMap<string, ServiceRow>): void;
  /** What `sources` answers may have changed, about this cluster or (undefined) any: look at what hangs on it again. */
  sourcesChanged(clusterId?: number): void;
  flush(into: RowSink<ServiceRow>): void;
  /** What peers say that cannot be, and what they cannot say. */
  problems(): string[];
  /** Services of peers whose present backends nobody has told here, by cluster. */
  outgrown(): ReadonlyMap<string, readonly string[]>;
  /** Services and frontends that the next flush will look at. */
  waiting(): number;
  /** Restored rows that some source may still confirm. */
  restoredCount(): number;
}

export function createServicesProjection(options: {
  readonly clusterId: number;
  /** Pod addresses of this node: none of them is a backend of another cluster. */
  readonly podCidr?: Cidr | undefined;
  /** This node, as external clients find it. Default: no addresses. */
  readonly node?: NodeAddresses;
  readonly serviceV2: ServiceV2;
  readonly sources: ServiceSources;
}): ServicesProjection {
  const { clusterId, sources } = options;
  const services = new Map<string, LocalService>();
  /** This cluster's slices: slice → the service it belongs to, and service → its slices. */
  const serviceOfSlice = new Map<string, string>();
  const slicesOf = new Map<string, Map<string, BackendGroup>>();
  const remotes = createRemoteServices({
    serviceV2: options.serviceV2,
    podCidr: options.podCidr,
    areSlicesHeard: sources.areSlicesHeard,
  });
  let restored = new Map<string, ServiceRow>();

  /** Rows per service as last computed; `claims` is its inverse: frontend → services that have it. */
  const produced = new Map<string, Map<string, ServiceRow>>();
  const claims = new Map<string, Set<string>>();

  /** What `sources` answers may have changed since the last flush. */
  let areSourcesChanged = true;
  let dirtyServices = new Set<string>();
  let dirtyFrontends = new Set<string>();

  const isUnheard = ({ clusterId: id }: Backend): boolean => !sources.isSettled(id) && !sources.isGone(id);
  // Weights read back are numbers of slots: beside those of a source that has spoken they would mean something else.
  const restoredBackends = (frontend: string): readonly Backend[] =>
    restored
      .get(frontend)
      ?.backends.filter(isUnheard)
      .map(({ ip, port, clusterId: id }) => ({ ip, port, clusterId: id })) ?? [];
  const restoredDraining = (frontend: string): readonly Backend[] =>
    restored.get(frontend)?.draining?.filter(isUnheard) ?? [];

  function recompute(name: string): void {
    const service = services.get(name);
    const rows = new Map<string, ServiceRow>();
    if (service !== undefined) {
      const merged = mergeService({
        clusterId,
        service,
        node: options.node ?? NO_NODE,
        local: [...(slicesOf.get(name)?.values() ?? [])],
        remotes: remotes.of(name),
        restored: restoredBackends,
        restoredDraining,
      });
      for (const row of merged) rows.set(serviceKey(row.frontend), row);
    }
    for (const frontend of produced.get(name)?.keys() ?? []) {
      dirtyFrontends.add(frontend);
      removeFrom(claims, frontend, name);
    }
    if (rows.size > 0) produced.set(name, rows);
    else produced.delete(name);
    for (const frontend of rows.keys()) {
      dirtyFrontends.add(frontend);
      addTo(claims, frontend, name);
    }
  }

  function desiredRow(frontend: string): ServiceRow | undefined {
    // Two services with one address and port are a fault of their source; the choice is at least the same on every node.
    const owner = [...(claims.get(frontend) ?? [])].sort()[0];
    if (owner !== undefined) return produced.get(owner)?.get(frontend);
    const row = restored.get(frontend);
    if (row === undefined || sources.isSettled(clusterId)) return undefined;
    const backends = row.backends.filter((backend) => !sources.isGone(backend.clusterId));
    return backends.length === row.backends.length ? row : { ...row, backends };
  }

  function touchRestored(): void {
    areSourcesChanged = true;
    for (const frontend of restored.keys()) {
      dirtyFrontends.add(frontend);
      for (const name of claims.get(frontend) ?? []) dirtyServices.add(name);
    }
  }

  return {
    setService(name, service) {
      if (service === undefined) services.delete(name);
      else services.set(name, service);
      dirtyServices.add(name);
    },
    setSlice(key, slice) {
      const before = serviceOfSlice.get(key);
      if (before !== undefined) {
        const groups = slicesOf.get(before);
        groups?.delete(key);
        if (groups?.size === 0) slicesOf.delete(before);
        serviceOfSlice.delete(key);
        dirtyServices.add(before);
      }
      if (slice === undefined) return;
      const name = `${slice.namespace}/${slice.service}`;
      const groups = slicesOf.get(name) ?? new Map<string, BackendGroup>();
      slicesOf.set(name, groups.set(key, groupOfLocalSlice(slice)));
      serviceOfSlice.set(key, name);
      dirtyServices.add(name);
    },
    setRemote(cluster, remoteId, name, service) {
      remotes.setService(cluster, remoteId, name, service);
      dirtyServices.add(name);
    },
    setRemoteSlice(cluster, remoteId, name, slice) {
      for (const touched of remotes.setSlice(cluster, remoteId, name, slice)) dirtyServices.add(touched);
    },
    restore(rows) {
      restored = new Map(rows);
      touchRestored();
    },
    sourcesChanged(of) {
      touchRestored();
      // From here on their slices may be set against the other form.
      if (of !== undefined) for (const name of remotes.servicesWithSlices(of)) dirtyServices.add(name);
    },
    flush(into) {
      const names = dirtyServices;
      dirtyServices = new Set();
      for (const name of names) recompute(name);
      const frontends = dirtyFrontends;
      dirtyFrontends = new Set();
      for (const frontend of frontends) {
        const row = desiredRow(frontend);
        if (row === undefined) into.delete(frontend);
        else into.set(frontend, row);
      }
      if (!areSourcesChanged) return;
      areSourcesChanged = false;
      for (const [frontend, row] of restored) {
        const isDecided = (id: number) => sources.isSettled(id) || sources.isGone(id);
        const known = [...row.backends, ...(row.draining ?? [])];
        if (sources.isSettled(clusterId) && known.every((backend) => isDecided(backend.clusterId)))
          restored.delete(frontend);
      }
    },
    problems: remotes.problems,
    outgrown: remotes.outgrown,
    waiting: () => dirtyServices.size + dirtyFrontends.size,
    restoredCount: () => restored.size,
  };
}

function addTo(index: Map<string, Set<string>>, key: string, member: string): void {
  const set = index.get(key);
  if (set === undefined) index.set(key, new Set([member]));
  else set.add(member);
}

function removeFrom(index: Map<string, Set<string>>, key: string, member: string): void {
  const set = index.get(key);
  set?.delete(member);
  if (set?.size === 0) index.delete(key);
}
