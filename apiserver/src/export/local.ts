/** The manifests snapshot → `clustermesh/local/…`: all that this cluster's agents need to know of their own cluster. Pure. */
import { LOCAL_FAMILIES, type LocalFamily, localKey } from '@clustermesh/contract';
import type { ManifestSnapshot } from '../sources/manifests/snapshot.ts';

export function exportLocal(snapshot: ManifestSnapshot): ReadonlyMap<LocalFamily, ReadonlyMap<string, string>> {
  const sources: Readonly<Record<LocalFamily, ReadonlyMap<string, object>>> = {
    services: snapshot.services,
    endpointslices: snapshot.slices,
    namespaces: snapshot.namespaces,
    policies: snapshot.policies,
  };
  return new Map(
    LOCAL_FAMILIES.map((family) => [
      family,
      new Map([...sources[family]].map(([name, object]) => [localKey(family, name), JSON.stringify(object)])),
    ]),
  );
}
