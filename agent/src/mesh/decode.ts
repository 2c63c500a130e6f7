/**
 * Values of peers, decoded and validated as contract/ says. A mesh has hundreds of thousands of addresses and nodes, nearly all of
 * one plain form: those two families have a fast path that takes this form only, and leaves everything else (other fields missing
 * or malformed, IPv6, prefixes, strangers' keys) to the contract's codec. That both say the same is tested as a property.
 */
import {
  accept,
  type Cidr,
  type ClusterEndpointSlice,
  type Compression,
  type Decoded,
  decodeEndpointSlice,
  decodeGlobalService,
  decodeIpEntry,
  decodeNode,
  EXTENSION_FIELD,
  type GlobalService,
  type IpEntry,
  identityRange,
  isIpv4,
  type MaxConnectedClusters,
  type MeshNode,
  maskToBase64,
  reject,
  SERVICE_NAME_LABEL,
  validateEndpointSlice,
  validateGlobalService,
  validateIpEntry,
  validateNode,
} from '@clustermesh/contract';
import { type AddressEntry, writtenAddress } from './written-address.ts';

export type { AddressEntry } from './written-address.ts';

export interface Expected {
  readonly cluster: string;
  readonly clusterId: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
}

type Fields = Readonly<Record<string, unknown>>;

export function readIpEntry(name: string, value: Buffer, expected: Expected): Decoded<AddressEntry> {
  const written = writtenAddress(name, value, expected);
  if (written !== undefined) return accept(written);
  const text = value.toString();
  const plain = plainIpEntry(name, text, expected);
  if (plain !== undefined) return accept(plain);
  const decoded = decodeIpEntry(text);
  return decoded.ok ? validateIpEntry(decoded.value, { ...expected, name }) : decoded;
}

export function readNode(name: string, text: string, expected: Expected): Decoded<MeshNode> {
  const plain = plainNode(name, text, expected);
  if (plain !== undefined) return accept(plain);
  const decoded = decodeNode(text);
  return decoded.ok ? validateNode(decoded.value, { ...expected, name }) : decoded;
}

export function readService(name: string, text: string, expected: Expected): Decoded<GlobalService> {
  const decoded = decodeGlobalService(text);
  return decoded.ok ? validateGlobalService(decoded.value, { ...expected, name }) : decoded;
}

export function readEndpointSlice(
  name: string,
  value: Buffer,
  expected: Expected,
  zstd: Compression,
): Decoded<ClusterEndpointSlice> {
  const decoded = decodeEndpointSlice(value, zstd);
  const valid = decoded.ok ? validateEndpointSlice(decoded.value, { ...expected, name }) : decoded;
  if (!valid.ok || valid.value.labels?.[SERVICE_NAME_LABEL]) return valid;
  return reject(`endpoint slice ${name} has no label ${SERVICE_NAME_LABEL}: nobody knows whose backends these are`);
}

function plainIpEntry(name: string, text: string, expected: Expected): IpEntry | undefined {
  const entry = parseObject(text);
  if (entry === undefined || entry.IP !== name || !isIpv4(name)) return undefined;
  const { first, last } = identityRange(expected.clusterId, expected.maxConnectedClusters);
  const isPlain =
    isNothing(entry.Mask) &&
    typeof entry.HostIP === 'string' &&
    isIpv4(entry.HostIP) &&
    isWhole(entry.ID, first, last) &&
    isWhole(entry.Key, 0, 255) &&
    typeof entry.Metadata === 'string' &&
    isOptionalText(entry.K8sNamespace) &&
    isOptionalText(entry.K8sPodName) &&
    isOptionalText(entry.K8sServiceAccount) &&
    isNothing(entry.NamedPorts) &&
    isPlainExtension(entry[EXTENSION_FIELD]);
  return isPlain ? (entry as unknown as IpEntry) : undefined;
}

const NODE_TEXTS = [
  'IPv4HealthIP',
  'IPv6HealthIP',
  'IPv4IngressIP',
  'IPv6IngressIP',
  'Source',
  'WireguardPubKey',
  'BootID',
] as const;
const NODE_NULLS = ['IPv4SecondaryAllocCIDRs', 'IPv6AllocCIDR', 'IPv6SecondaryAllocCIDRs'] as const;

function plainNode(name: string, text: string, expected: Expected): MeshNode | undefined {
  const node = parseObject(text);
  if (node === undefined || name === '' || node.Name !== name || node.Cluster !== expected.cluster) return undefined;
  const cidr = plainCidr(node.IPv4AllocCIDR);
  const isPlain =
    cidr !== undefined &&
    node.ClusterID === expected.clusterId &&
    isWhole(node.EncryptionKey, 0, 255) &&
    arePlainAddresses(node.IPAddresses) &&
    NODE_TEXTS.every((field) => typeof node[field] === 'string') &&
    NODE_NULLS.every((field) => node[field] === null) &&
    isTextMap(node.Labels) &&
    isTextMap(node.Annotations) &&
    isPlainExtension(node[EXTENSION_FIELD]);
  return isPlain ? ({ ...node, IPv4AllocCIDR: cidr } as unknown as MeshNode) : undefined;
}

function arePlainAddresses(addresses: unknown): boolean {
  if (!Array.isArray(addresses)) return false;
  return addresses.every(
    (address: unknown) =>
      isObject(address) &&
      (address.Type === 'InternalIP' || address.Type === 'CiliumInternalIP') &&
      typeof address.IP === 'string' &&
      isIpv4(address.IP),
  );
}

const LENGTH_OF_MASK = new Map(Array.from({ length: 33 }, (_, length) => [maskToBase64(length, 4), length]));

function plainCidr(value: unknown): Cidr | undefined {
  if (!isObject(value) || typeof value.IP !== 'string' || typeof value.Mask !== 'string') return undefined;
  const length = LENGTH_OF_MASK.get(value.Mask);
  return length === undefined || !isIpv4(value.IP) ? undefined : { ip: value.IP, length };
}

function parseObject(text: string): Fields | undefined {
  // The one key that assigning and parsing treat differently.
  if (text.includes('__proto__')) return undefined;
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const isNothing = (value: unknown): boolean => value === undefined || value === null;

const isOptionalText = (value: unknown): boolean => value === undefined || typeof value === 'string';

function isWhole(value: unknown, least: number, most: number): boolean {
  return typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most;
}

function isTextMap(value: unknown): boolean {
  return value === null || (isObject(value) && Object.values(value).every((text) => typeof text === 'string'));
}

function isPlainExtension(value: unknown): boolean {
  if (value === undefined) return true;
  return (
    isObject(value) && isOptionalText(value.changedAt) && isOptionalText(value.region) && isOptionalText(value.zone)
  );
}
