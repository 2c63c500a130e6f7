/**
 * `cilium/state/endpointslices/v1/<cluster>/<ns>/<slice>` (wire-contract §1.10): a protobuf message (contract/proto/endpointslice.proto),
 * compressed with zstd. Compression comes from outside, because Node 20 has no zstd and this room does no IO.
 */
import { accept, type Decoded, reject } from './decoded.ts';
import { isIpAddress, isIpv4 } from './net.ts';
import { decodeMessage, encodeMessage, type MessageType, WireError } from './protobuf.ts';

export interface Compression {
  /** One frame that states its decompressed size. */
  compress(bytes: Uint8Array): Uint8Array;
  /** Refuses, with the reason, what is no frame, is damaged, or would become more than `maxBytes`. Does not throw for any input. */
  decompress(frame: Uint8Array, maxBytes: number): Decoded<Uint8Array>;
}

/** The bound that Cilium's readers put on a decompressed slice; everything that Kubernetes allows stays far below it. */
export const MAX_ENDPOINT_SLICE_BYTES = 16 * 1024 * 1024;

/** The label that names the service that a slice belongs to. */
export const SERVICE_NAME_LABEL = 'kubernetes.io/service-name';

export interface SliceConditions {
  /** Absent means true, as in Kubernetes. */
  readonly ready?: boolean;
  /** Absent means true. */
  readonly serving?: boolean;
  /** Absent means false. */
  readonly terminating?: boolean;
  readonly unknownFields?: Uint8Array;
}

export interface SliceEndpoint {
  readonly addresses: readonly string[];
  readonly conditions: SliceConditions;
  readonly hostname?: string;
  readonly deprecatedTopology?: Readonly<Record<string, string>>;
  readonly nodeName?: string;
  readonly zone?: string;
  readonly hints?: {
    readonly forZones: readonly { readonly name: string; readonly unknownFields?: Uint8Array }[];
    readonly unknownFields?: Uint8Array;
  };
  readonly unknownFields?: Uint8Array;
}

export interface SlicePort {
  readonly name?: string;
  readonly protocol?: string;
  /** Absent: every port. */
  readonly port?: number;
  readonly unknownFields?: Uint8Array;
}

export interface ClusterEndpointSlice {
  readonly cluster: string;
  readonly clusterID: number;
  readonly namespace: string;
  readonly name: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  /** `IPv4` or `IPv6`; every address of the slice is of this family. */
  readonly addressType: string;
  /** Those that are not ready included, with their conditions. */
  readonly endpoints: readonly SliceEndpoint[];
  readonly ports: readonly SlicePort[];
  /** Of a newer writer; kept when the slice is written again. Every part of a slice may have some. */
  readonly unknownFields?: Uint8Array;
}

const conditions: MessageType = new Map([
  [1, { name: 'ready', kind: 'bool' }],
  [2, { name: 'serving', kind: 'bool' }],
  [3, { name: 'terminating', kind: 'bool' }],
]);
const forZone: MessageType = new Map([[1, { name: 'name', kind: 'string', always: true }]]);
const hints: MessageType = new Map([[1, { name: 'forZones', kind: forZone, repeated: true }]]);
const endpoint: MessageType = new Map([
  [1, { name: 'addresses', kind: 'string', repeated: true }],
  [2, { name: 'conditions', kind: conditions, always: true }],
  [3, { name: 'hostname', kind: 'string' }],
  [5, { name: 'deprecatedTopology', kind: 'map' }],
  [6, { name: 'nodeName', kind: 'string' }],
  [7, { name: 'zone', kind: 'string' }],
  [8, { name: 'hints', kind: hints }],
]);
const port: MessageType = new Map([
  [1, { name: 'name', kind: 'string' }],
  [2, { name: 'protocol', kind: 'string' }],
  [3, { name: 'port', kind: 'int32' }],
]);
const slice: MessageType = new Map([
  [1, { name: 'cluster', kind: 'string', always: true }],
  [2, { name: 'clusterID', kind: 'uint32', always: true }],
  [3, { name: 'namespace', kind: 'string', always: true }],
  [4, { name: 'name', kind: 'string', always: true }],
  [5, { name: 'labels', kind: 'map' }],
  [6, { name: 'annotations', kind: 'map' }],
  [7, { name: 'addressType', kind: 'string', always: true }],
  [8, { name: 'endpoints', kind: endpoint, repeated: true }],
  [9, { name: 'ports', kind: port, repeated: true }],
]);

/** The message alone, uncompressed: what is compared to tell whether a slice has changed. Equal slices give equal bytes. */
export function encodeEndpointSliceMessage(value: ClusterEndpointSlice): Uint8Array {
  return encodeMessage({ ...value }, slice);
}

export function decodeEndpointSliceMessage(bytes: Uint8Array): Decoded<ClusterEndpointSlice> {
  try {
    return accept(decodeMessage(bytes, slice) as ClusterEndpointSlice);
  } catch (error) {
    if (error instanceof WireError) return reject(`endpoint slice ${error.message}`);
    throw error;
  }
}

export function encodeEndpointSlice(value: ClusterEndpointSlice, compression: Compression): Buffer {
  const frame = compression.compress(encodeEndpointSliceMessage(value));
  return Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
}

export function decodeEndpointSlice(value: Uint8Array, compression: Compression): Decoded<ClusterEndpointSlice> {
  const bytes = compression.decompress(value, MAX_ENDPOINT_SLICE_BYTES);
  return bytes.ok ? decodeEndpointSliceMessage(bytes.value) : reject(`endpoint slice ${bytes.reason}`);
}

/** Is `address` one of `addressType`, in a form that Cilium's readers take (no zone)? */
function isOfType(address: string, addressType: string): boolean {
  if (!isIpAddress(address) || address.includes('%')) return false;
  return isIpv4(address) === (addressType === 'IPv4');
}

/** A reader's check: cluster, `ns/name` and cluster id as the key and the peer's config say; every address of the slice's type. */
export function validateEndpointSlice(
  value: ClusterEndpointSlice,
  expected: { readonly cluster: string; readonly clusterId: number; readonly name: string },
): Decoded<ClusterEndpointSlice> {
  const own = `${value.namespace}/${value.name}`;
  if (value.namespace === '' || value.name === '')
    return reject(`endpoint slice under the key of ${expected.name} says no namespace or no name`);
  if (value.cluster !== expected.cluster)
    return reject(`endpoint slice ${own} says cluster ${JSON.stringify(value.cluster)}, expected ${expected.cluster}`);
  if (own !== expected.name) return reject(`endpoint slice ${own} lies under the key of ${expected.name}`);
  if (value.clusterID !== expected.clusterId)
    return reject(`endpoint slice ${own} says cluster id ${value.clusterID}, expected ${expected.clusterId}`);
  if (value.addressType !== 'IPv4' && value.addressType !== 'IPv6')
    return reject(`endpoint slice ${own} has the address type ${JSON.stringify(value.addressType)}, not IPv4 or IPv6`);
  for (const { addresses } of value.endpoints) {
    const wrong = addresses.find((address) => !isOfType(address, value.addressType));
    if (wrong !== undefined)
      return reject(
        `endpoint slice ${own} has the address ${JSON.stringify(wrong)}, which is not ${value.addressType}`,
      );
  }
  const wrongPort = value.ports.find(({ port }) => port !== undefined && (port < 0 || port > 65_535));
  if (wrongPort !== undefined)
    return reject(`endpoint slice ${own} has the port ${wrongPort.port}, which is not in 0…65535`);
  return accept(value);
}
