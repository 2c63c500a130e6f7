/** A cluster's manifests directory: one file per object, each replaced whole, so that its reader never sees half a Service. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { atomicWrite } from '@clustermesh/runtime';
import { stringify } from 'yaml';
import type { LabObject } from './objects.ts';
import { type SlicePod, slicesOf } from './slices.ts';

export interface Manifests {
  /** Makes the directory hold exactly what follows from the objects and pods. */
  sync(objects: Iterable<LabObject>, pods: readonly SlicePod[]): void;
}

export function createManifests(dir: string): Manifests {
  /** What each file holds, so that only changes are written. */
  const written = new Map<string, string>();
  return {
    sync(objects, pods) {
      const wanted = renderManifests(objects, pods);
      for (const [file, text] of wanted) {
        if (written.get(file) === text) continue;
        atomicWrite(join(dir, file), text);
        written.set(file, text);
      }
      for (const file of written.keys()) {
        if (wanted.has(file)) continue;
        rmSync(join(dir, file), { force: true });
        written.delete(file);
      }
    },
  };
}

/** File name → content. Namespaces, Services, policies and hand-written slices as they came; the controller's slices beside them. */
export function renderManifests(objects: Iterable<LabObject>, pods: readonly SlicePod[]): Map<string, string> {
  const files = new Map<string, string>();
  const all = [...objects];
  for (const object of all) {
    if (object.kind.endsWith('Policy'))
      files.set(`${object.kind.toLowerCase()}-${object.namespace}.${object.name}.yaml`, stringify(object.raw));
    if (object.kind === 'Namespace') files.set(`namespace-${object.name}.yaml`, stringify(object.raw));
    if (object.kind === 'Service') files.set(`service-${object.namespace}.${object.name}.yaml`, stringify(object.raw));
    if (object.kind === 'EndpointSlice')
      files.set(`endpointslice-${object.namespace}.${object.name}.yaml`, stringify(object.raw));
  }
  for (const service of all.filter((object) => object.kind === 'Service')) {
    for (const slice of slicesOf(service, pods)) {
      files.set(`endpointslice-${slice.metadata.namespace}.${slice.metadata.name}.yaml`, stringify(slice));
    }
  }
  return files;
}
