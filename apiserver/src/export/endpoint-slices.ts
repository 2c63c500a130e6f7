/** Slices of global and shared services → `endpointslices` (wire-contract §1.10). */
import {
  type ClusterEndpointSlice,
  type Compression,
  encodeEndpointSliceMessage,
  endpointSliceKey,
  type LocalService,
  type LocalSlice,
  MAX_ENDPOINT_SLICE_BYTES,
  SERVICE_NAME_LABEL,
} from '@clustermesh/contract';
import type { SliceMeta } from '../sources/manifests/snapshot.ts';
import type { ExportingCluster } from './services.ts';

/** Other annotations may be of any size and are nobody's business. */
const EXPORTED_ANNOTATIONS = 'service.cilium.io/';

function toClusterSlice(
  cluster: ExportingCluster,
  slice: LocalSlice,
  meta: SliceMeta | undefined,
): ClusterEndpointSlice {
  const annotations = Object.entries(meta?.annotations ?? {}).filter(([key]) => key.startsWith(EXPORTED_ANNOTATIONS));
  return {
    cluster: cluster.name,
    clusterID: cluster.id,
    namespace: slice.namespace,
    name: slice.name,
    labels: { ...meta?.labels, [SERVICE_NAME_LABEL]: slice.service },
    ...(annotations.length === 0 ? {} : { annotations: Object.fromEntries(annotations) }),
    addressType: meta?.addressType ?? 'IPv4',
    endpoints: slice.endpoints.map(({ addresses, ready, serving, terminating, hostname, nodeName, zone }) => ({
      addresses,
      conditions: { ready, serving, terminating },
      ...(hostname === undefined ? {} : { hostname }),
      ...(nodeName === undefined ? {} : { nodeName }),
      ...(zone === undefined ? {} : { zone }),
    })),
    ports: slice.ports,
  };
}

/** Key → message, uncompressed. Endpoints that are not ready are among them, with their conditions. Pure. */
export function exportEndpointSlices(
  cluster: ExportingCluster,
  services: ReadonlyMap<string, LocalService>,
  slices: ReadonlyMap<string, LocalSlice>,
  meta: ReadonlyMap<string, SliceMeta>,
): Map<string, Uint8Array> {
  const rows = new Map<string, Uint8Array>();
  for (const [name, slice] of slices) {
    const service = services.get(`${slice.namespace}/${slice.service}`);
    if (service === undefined || !service.global || !service.shared) continue;
    rows.set(
      endpointSliceKey(cluster.name, slice.namespace, slice.name),
      encodeEndpointSliceMessage(toClusterSlice(cluster, slice, meta.get(name))),
    );
  }
  return rows;
}

interface Frame {
  readonly message: Uint8Array;
  readonly value: Buffer;
}

/** Compresses what has changed. Whether it has is told by the message: another release of zstd packs it otherwise. */
export class SliceFrames {
  readonly #zstd: Compression;
  #frames = new Map<string, Frame>();

  constructor(zstd: Compression) {
    this.#zstd = zstd;
  }

  /** What a process before this one wrote: the same message is not written again. */
  adopt(key: string, value: Buffer): void {
    const message = this.#zstd.decompress(value, MAX_ENDPOINT_SLICE_BYTES);
    if (message.ok) this.#frames.set(key, { message: message.value, value });
  }

  values(messages: ReadonlyMap<string, Uint8Array>): Map<string, Buffer> {
    const frames = new Map<string, Frame>();
    for (const [key, message] of messages) {
      const before = this.#frames.get(key);
      const isSame = before !== undefined && Buffer.compare(before.message, message) === 0;
      frames.set(key, isSame ? before : { message, value: Buffer.from(this.#zstd.compress(message)) });
    }
    this.#frames = frames;
    return new Map([...frames].map(([key, frame]) => [key, frame.value]));
  }
}
