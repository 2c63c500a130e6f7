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
import type { Cidr, GlobalService, LocalService, LocalSlice } from '@clustermesh/contract';
import { type Backend, type ServiceRow, serviceKey } from '../datapath/types.ts';
import type { RowSink } from '../reconcile/table.ts';
import { mergeService } from './merge.ts';
import { withoutRefusedBackends } from './refused.ts';

/** What is known of the sources of services. Cluster ids as in backends. */
export interface ServiceSources {
  /** Everything that this cluster has to say about services has been heard since the start. */
  isSettled(clusterId: number): boolean;
  /** The cluster left the mesh: not even a restored row may keep its backends. */
  isGone(clusterId: number): boolean;
}

export interface ServicesProjection {
  setService(name: string, service: LocalService | undefined): void;
  setSlice(name: string, slice: LocalSlice | undefined): void;
  setRemote(cluster: string, clusterId: number, name: string, service: GlobalService | undefined): void;
  restore(rows: ReadonlyMap<string, ServiceRow>): void;
  /** What `sources` answers may have changed: look at restored rows again. */
  sourcesChanged(): void;
  flush(into: RowSink<ServiceRow>): void;
  /** Backends of other clusters that are ignored, one text per cluster. */
  problems(): string[];
  /** Restored rows that some source may still confirm. */
  restoredCount(): number;
}

export function createServicesProjection(options: {
  readonly clusterId: number;
  /** Pod addresses of this node: none of them is a backend of another cluster. */
  readonly podCidr?: Cidr | undefined;
  readonly sources: ServiceSources;
}): ServicesProjection {
  const { clusterId, sources } = options;
  const services = new Map<string, LocalService>();
  const slices = new Map<string, LocalSlice>();
  const slicesOf = new Map<string, Set<string>>();
  const remotesOf = new Map<string, Map<string, { clusterId: number; service: GlobalService }>>();
  /** Addresses left out: cluster → service → addresses. Status asks for them often, and there are hardly ever any. */
  const refusedOf = new Map<string, Map<string, readonly string[]>>();
  let restored = new Map<string, ServiceRow>();

  /** Rows per service as last computed; `claims` is its inverse: frontend → services that have it. */
  const produced = new Map<string, Map<string, ServiceRow>>();
  const claims = new Map<string, Set<string>>();

  /** What `sources` answers may have changed since the last flush. */
  let areSourcesChanged = true;
  let dirtyServices = new Set<string>();
  let dirtyFrontends = new Set<string>();

  const restoredBackends = (frontend: string): readonly Backend[] =>
    restored
      .get(frontend)
      ?.backends.filter((backend) => !sources.isSettled(backend.clusterId) && !sources.isGone(backend.clusterId)) ?? [];

  function recompute(name: string): void {
    const service = services.get(name);
    const rows = new Map<string, ServiceRow>();
    if (service !== undefined) {
      const own = [...(slicesOf.get(name) ?? [])].flatMap((slice) => slices.get(slice) ?? []);
      const merged = mergeService({
        clusterId,
        service,
        slices: own,
        remotes: [...(remotesOf.get(name)?.values() ?? [])],
        restored: restoredBackends,
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

  function setRefused(cluster: string, name: string, ips: readonly string[]): void {
    const names = refusedOf.get(cluster) ?? new Map<string, readonly string[]>();
    if (ips.length === 0) names.delete(name);
    else names.set(name, ips);
    if (names.size === 0) refusedOf.delete(cluster);
    else refusedOf.set(cluster, names);
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
      const before = slices.get(key);
      if (before !== undefined) {
        const name = `${before.namespace}/${before.service}`;
        removeFrom(slicesOf, name, key);
        dirtyServices.add(name);
      }
      if (slice === undefined) {
        slices.delete(key);
        return;
      }
      slices.set(key, slice);
      const name = `${slice.namespace}/${slice.service}`;
      addTo(slicesOf, name, key);
      dirtyServices.add(name);
    },
    setRemote(cluster, remoteId, name, service) {
      const remotes = remotesOf.get(name) ?? new Map();
      const accepted = service === undefined ? undefined : withoutRefusedBackends(service, options.podCidr);
      if (accepted === undefined) remotes.delete(cluster);
      else remotes.set(cluster, { clusterId: remoteId, service: accepted.service });
      setRefused(cluster, name, accepted?.refused ?? []);
      if (remotes.size > 0) remotesOf.set(name, remotes);
      else remotesOf.delete(name);
      dirtyServices.add(name);
    },
    restore(rows) {
      restored = new Map(rows);
      touchRestored();
    },
    sourcesChanged: touchRestored,
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
        if (sources.isSettled(clusterId) && row.backends.every((backend) => isDecided(backend.clusterId)))
          restored.delete(frontend);
      }
    },
    problems() {
      return [...refusedOf].map(([cluster, names]) => {
        const ips = [...names].flatMap(([name, refused]) => refused.map((ip) => `${ip} of ${name}`));
        return `${ips.length} service backends of ${cluster} cannot be another cluster's: ignored; e.g. ${ips[0]}`;
      });
    },
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
