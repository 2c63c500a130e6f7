/**
 * What peers say of their services' backends, in both forms, by service and cluster. A change costs as much as the service it is
 * about, however many services and clusters there are. Pure but for its own state.
 */
import {
  type Cidr,
  type ClusterEndpointSlice,
  EXTENSION_FIELD,
  type GlobalService,
  SERVICE_NAME_LABEL,
} from '@clustermesh/contract';
import { chooseForm, type LegacyForm, type ServiceV2 } from './choice.ts';
import { type BackendGroup, groupOfSlice, groupsOfService } from './groups.ts';
import type { RemoteBackends } from './merge.ts';
import { withoutRefused } from './refused.ts';

export interface RemoteServices {
  setService(cluster: string, clusterId: number, name: string, service: GlobalService | undefined): void;
  /** Returns the services whose backends it changes: the one it belonged to, and the one it belongs to. */
  setSlice(cluster: string, clusterId: number, name: string, slice: ClusterEndpointSlice | undefined): string[];
  /** The backends of one service, one entry per cluster that has it. */
  of(name: string): RemoteBackends[];
  /** Services that some slice of the cluster belongs to. */
  servicesWithSlices(clusterId: number): Iterable<string>;
  /** Services whose present backends nobody has told here, by cluster. */
  outgrown(): ReadonlyMap<string, readonly string[]>;
  problems(): string[];
}

interface Forms {
  readonly clusterId: number;
  legacy: LegacyForm | undefined;
  readonly slices: Map<string, BackendGroup>;
}

export function createRemoteServices(options: {
  readonly serviceV2: ServiceV2;
  /** Pod addresses of this node: none of them is a backend of another cluster. */
  readonly podCidr: Cidr | undefined;
  readonly areSlicesHeard: (clusterId: number) => boolean;
}): RemoteServices {
  /** Service → cluster → what it says. */
  const forms = new Map<string, Map<string, Forms>>();
  /** Cluster → slice → the service it belongs to. */
  const serviceOfSlice = new Map<string, { readonly clusterId: number; readonly services: Map<string, string> }>();
  /** Addresses left out: cluster → value → addresses. Status asks for them often, and there are hardly ever any. */
  const refusedOf = new Map<string, Map<string, readonly string[]>>();
  /** Cluster → service → since when its legacy value is an old one. As rare. */
  const outgrownOf = new Map<string, Map<string, string>>();

  function edit(name: string, cluster: string, clusterId: number, change: (forms: Forms) => void): void {
    const ofClusters = forms.get(name) ?? new Map<string, Forms>();
    const known = ofClusters.get(cluster);
    // Under another id it is another cluster, whatever it is called.
    const entry = known?.clusterId === clusterId ? known : { clusterId, legacy: undefined, slices: new Map() };
    change(entry);
    if (entry.legacy === undefined && entry.slices.size === 0) ofClusters.delete(cluster);
    else ofClusters.set(cluster, entry);
    if (ofClusters.size === 0) forms.delete(name);
    else forms.set(name, ofClusters);
  }

  /** The groups without addresses that cannot be. `value` names where they are from, for people. */
  function accepted(cluster: string, value: string, groups: readonly BackendGroup[]): BackendGroup[] {
    const judged = groups.map((group) => withoutRefused(group, options.podCidr));
    setIn(
      refusedOf,
      cluster,
      value,
      judged.flatMap(({ refused }) => refused),
    );
    return judged.map(({ group }) => group);
  }

  const formOf = ({ clusterId, legacy, slices }: Forms) =>
    chooseForm(options.serviceV2, {
      legacy,
      slices: [...slices.values()],
      areSlicesHeard: options.areSlicesHeard(clusterId),
    });

  function outgrown(): Map<string, readonly string[]> {
    const found = new Map<string, readonly string[]>();
    for (const [cluster, names] of outgrownOf) {
      const behind = [...names.keys()].filter((name) => {
        const entry = forms.get(name)?.get(cluster);
        return entry !== undefined && formOf(entry) === 'legacy';
      });
      if (behind.length > 0) found.set(cluster, behind);
    }
    return found;
  }

  return {
    setService(cluster, clusterId, name, service) {
      const groups = accepted(cluster, name, service === undefined ? [] : groupsOfService(service));
      const outgrownAt = service?.[EXTENSION_FIELD]?.outgrownAt;
      setIn(outgrownOf, cluster, name, outgrownAt ?? '');
      edit(name, cluster, clusterId, (entry) => {
        entry.legacy = service === undefined ? undefined : { groups, outgrownAt };
      });
    },
    setSlice(cluster, clusterId, name, slice) {
      const { services } = serviceOfSlice.get(cluster) ?? { services: new Map<string, string>() };
      const before = services.get(name);
      const label = slice?.labels?.[SERVICE_NAME_LABEL];
      const after = slice === undefined || label === undefined ? undefined : `${slice.namespace}/${label}`;
      if (before !== undefined && before !== after) {
        edit(before, cluster, clusterId, (entry) => entry.slices.delete(name));
        services.delete(name);
      }
      const [group] = accepted(
        cluster,
        `slice ${name}`,
        slice === undefined || after === undefined ? [] : [groupOfSlice(slice)],
      );
      if (after !== undefined && group !== undefined) {
        edit(after, cluster, clusterId, (entry) => entry.slices.set(name, group));
        services.set(name, after);
      }
      if (services.size === 0) serviceOfSlice.delete(cluster);
      else serviceOfSlice.set(cluster, { clusterId, services });
      return [before, after].filter((touched) => touched !== undefined);
    },
    of: (name) =>
      [...(forms.get(name)?.values() ?? [])].map((entry) => ({
        clusterId: entry.clusterId,
        groups: formOf(entry) === 'legacy' ? (entry.legacy?.groups ?? []) : [...entry.slices.values()],
      })),
    *servicesWithSlices(clusterId) {
      for (const held of serviceOfSlice.values())
        if (held.clusterId === clusterId) yield* new Set(held.services.values());
    },
    outgrown,
    problems() {
      const refused = [...refusedOf].map(([cluster, values]) => {
        const ips = [...values].flatMap(([value, list]) => list.map((ip) => `${ip} of ${value}`));
        return `${ips.length} service backends of ${cluster} cannot be another cluster's: ignored; e.g. ${ips[0]}`;
      });
      const behind = [...outgrown()].map(([cluster, names]) => {
        const since = outgrownOf.get(cluster)?.get(names[0] ?? '');
        return (
          `${names.length} services of ${cluster} have more backends than one value in etcd holds; the last ones that fitted are in force. ` +
          `Let ${cluster} publish endpoint slices (export.endpointSlices: services-and-endpointslices); e.g. ${names[0]}, since ${since}`
        );
      });
      return [...refused, ...behind];
    },
  };
}

/** Sets, or with an empty value removes, an entry of a map of maps. */
function setIn<V extends { readonly length: number }>(
  map: Map<string, Map<string, V>>,
  outer: string,
  inner: string,
  value: V,
): void {
  const values = map.get(outer) ?? new Map<string, V>();
  if (value.length === 0) values.delete(inner);
  else values.set(inner, value);
  if (values.size === 0) map.delete(outer);
  else map.set(outer, values);
}
