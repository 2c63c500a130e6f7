/** Own services and slices → what peers may know of them (wire-contract §1.8). Pure. */
import {
  EXTENSION_FIELD,
  encodeGlobalService,
  type GlobalService,
  type LocalService,
  type LocalSlice,
  rfc3339Ms,
  type ServicePortMap,
  serviceKey,
} from '@clustermesh/contract';
import { MAX_VALUE_BYTES, mib } from '../limits.ts';

export interface ExportingCluster {
  readonly name: string;
  readonly id: number;
}

/** Slices by the `namespace/service` that they belong to, in the order of their names. */
export function slicesByService(slices: Iterable<LocalSlice>): Map<string, LocalSlice[]> {
  const byService = new Map<string, LocalSlice[]>();
  for (const slice of [...slices].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const key = `${slice.namespace}/${slice.service}`;
    const list = byService.get(key);
    if (list === undefined) byService.set(key, [slice]);
    else list.push(slice);
  }
  return byService;
}

function portMap(ports: LocalService['ports']): ServicePortMap {
  return Object.fromEntries(ports.map((port) => [port.name, { Protocol: port.protocol, Port: port.port }]));
}

function sortedRecord<T>(map: ReadonlyMap<string, T>): Record<string, T> {
  return Object.fromEntries([...map].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** One service as peers see it. Backends that are ready or still serving; a headless service has no frontends. */
export function toGlobalService(
  cluster: ExportingCluster,
  service: LocalService,
  slices: readonly LocalSlice[],
): GlobalService {
  const backends = new Map<string, ServicePortMap>();
  const zones = new Map<string, { zone: string; forZones: null }>();
  const hostnames = new Map<string, string>();
  const weights = new Map<string, number>();
  for (const slice of slices) {
    for (const endpoint of slice.endpoints) {
      if (!endpoint.ready && !endpoint.serving) continue;
      for (const ip of endpoint.addresses) {
        backends.set(ip, { ...backends.get(ip), ...portMap(slice.ports) });
        if (endpoint.zone !== undefined) zones.set(ip, { zone: endpoint.zone, forZones: null });
        if (endpoint.hostname !== undefined) hostnames.set(ip, endpoint.hostname);
        if (slice.weight !== undefined) weights.set(ip, slice.weight);
      }
    }
  }
  return {
    cluster: cluster.name,
    namespace: service.namespace,
    name: service.name,
    frontends: Object.fromEntries(service.clusterIPs.map((ip) => [ip, portMap(service.ports)])),
    backends: sortedRecord(backends),
    ...(hostnames.size === 0 ? {} : { hostnames: sortedRecord(hostnames) }),
    ...(zones.size === 0 ? {} : { zones: sortedRecord(zones) }),
    labels: service.labels,
    selector: service.selector,
    includeExternal: true,
    shared: true,
    clusterID: cluster.id,
    ...(weights.size === 0 ? {} : { [EXTENSION_FIELD]: { weights: sortedRecord(weights) } }),
  };
}

/** Global AND shared; `global` of a LocalService already includes its namespace. Losing either deletes the key. */
export function exportServices(
  cluster: ExportingCluster,
  services: Iterable<LocalService>,
  slices: Iterable<LocalSlice>,
): Map<string, string> {
  const byService = slicesByService(slices);
  const rows = new Map<string, string>();
  for (const service of services) {
    if (!service.global || !service.shared) continue;
    const own = byService.get(`${service.namespace}/${service.name}`) ?? [];
    rows.set(
      serviceKey(cluster.name, service.namespace, service.name),
      encodeGlobalService(toGlobalService(cluster, service, own)),
    );
  }
  return rows;
}

export interface FittingServices {
  readonly values: Map<string, string>;
  /** One sentence per service whose value etcd would not take. */
  readonly problems: readonly string[];
}

/** What the mark of an outgrown service adds to a value. */
const MARK_BYTES = 96;

/**
 * A service with too many backends for one value is not published as one, and never as a part of it, which would pass for the whole.
 * Its last version that fitted stays, marked with the time since which it is an old one (`outgrownAt`); withdrawing it would take the
 * service away from readers that know no slices. Who then sees what:
 *
 *   our agents                   the slices; without any, the marked value, and they say so
 *   Cilium, reading slices       the slices
 *   Cilium, reading legacy ones  the marked value (as from Cilium's own apiserver, whose last put that etcd took stays), or nothing
 *                                if the service was too large from its first day
 */
export function fitServices(
  values: ReadonlyMap<string, string>,
  before: ReadonlyMap<string, string>,
  options: { readonly hasSlices: boolean; readonly wallMs: number },
): FittingServices {
  const fitting = new Map<string, string>();
  const problems: string[] = [];
  for (const [key, value] of values) {
    // A character has at most three bytes in UTF-8: most values need not be counted.
    const bytes = value.length * 3 <= MAX_VALUE_BYTES - MARK_BYTES ? 0 : Buffer.byteLength(value);
    if (bytes <= MAX_VALUE_BYTES - MARK_BYTES) {
      fitting.set(key, withoutMark(value));
      continue;
    }
    const { namespace, name, backends } = JSON.parse(value) as GlobalService;
    const last = before.get(key);
    if (last !== undefined) fitting.set(key, withMark(last, options.wallMs));
    problems.push(
      `Service ${namespace}/${name}: with ${Object.keys(backends).length} backends its value for peers has ${mib(bytes)}, more than etcd takes (${mib(MAX_VALUE_BYTES)}): ` +
        `${last === undefined ? 'readers of services alone get nothing of it' : 'readers of services alone keep its last version that fitted'}; ` +
        (options.hasSlices
          ? 'its endpoint slices carry all backends'
          : 'publish endpoint slices (export.endpointSlices: services-and-endpointslices), or split the service'),
    );
  }
  return { values: fitting, problems };
}

const MARK = '"outgrownAt":';

/** That it is an old version from now on is a change of its meaning, so it is stamped as one. */
function withMark(value: string, wallMs: number): string {
  if (value.includes(MARK)) return value;
  const now = rfc3339Ms(wallMs);
  const service = JSON.parse(value) as GlobalService;
  return encodeGlobalService({
    ...service,
    [EXTENSION_FIELD]: { ...service[EXTENSION_FIELD], changedAt: now, outgrownAt: now },
  });
}

/** A service that shrank to exactly what was published last is the same value but for the mark. */
function withoutMark(value: string): string {
  if (!value.includes(MARK)) return value;
  const service = JSON.parse(value) as GlobalService;
  const { outgrownAt: _, ...extension } = service[EXTENSION_FIELD] ?? {};
  return encodeGlobalService({ ...service, [EXTENSION_FIELD]: extension });
}
