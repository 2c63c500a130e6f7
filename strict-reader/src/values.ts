/** What Cilium's readers make of a value under a key, family by family (wire-contract §1.5–1.10); each rule is stricter than or equal to theirs. */
import { isIP } from 'node:net';
import { fileURLToPath } from 'node:url';
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader';
import { canonicalIp, maskLength } from './addresses.ts';
import {
  always,
  type Context,
  filled,
  ip,
  ipOrEmpty,
  isObject,
  list,
  map,
  nullable,
  oneOf,
  readJson,
  type Shape,
  struct,
  text,
  time,
  unsigned,
} from './shapes.ts';
import { decompress } from './zstd.ts';

export interface Peer {
  readonly cluster: string;
  readonly id: number;
  readonly maxConnectedClusters: 255 | 511;
  readonly allowUnknownFields: boolean;
}

const anything: Shape = (value, path, context) => {
  if (!isObject(value)) context.problems.push(`${path} is no object`);
};
/** This project's own object; Cilium's readers ignore it. */
const EXTENSION = { 'x-clustermesh': anything };
const strings = map(text);
const PROTOCOLS = oneOf('TCP', 'UDP', 'SCTP');

// ---- nodes

const cidr: Shape = (value, path, context) => {
  struct({ IP: ip, Mask: text })(value, path, context);
  if (!isObject(value) || typeof value['IP'] !== 'string' || typeof value['Mask'] !== 'string') return;
  if (maskLength(value['Mask'], value['IP']) === undefined) context.problems.push(`${path} has a mask that is none`);
};
const ADDRESS_TYPES = ['Hostname', 'InternalIP', 'ExternalIP', 'InternalDNS', 'ExternalDNS', 'CiliumInternalIP'];
const node = struct(
  {
    Name: filled,
    Cluster: filled,
    // Whatever the type: in Go it is a net.IP, so a host name makes the whole node unreadable.
    IPAddresses: nullable(list(struct({ Type: oneOf(...ADDRESS_TYPES), IP: ip }))),
    IPv4AllocCIDR: nullable(cidr),
    IPv4SecondaryAllocCIDRs: nullable(list(cidr)),
    IPv6AllocCIDR: nullable(cidr),
    IPv6SecondaryAllocCIDRs: nullable(list(cidr)),
    IPv4HealthIP: ipOrEmpty,
    IPv6HealthIP: ipOrEmpty,
    IPv4IngressIP: ipOrEmpty,
    IPv6IngressIP: ipOrEmpty,
    ClusterID: unsigned(32, 1),
    Source: filled,
    EncryptionKey: unsigned(8),
    Labels: nullable(strings),
    Annotations: nullable(strings),
    WireguardPubKey: text,
    BootID: text,
  },
  EXTENSION,
);

function checkNode(name: string, value: Buffer, peer: Peer, context: Context): void {
  const found = readJson(value, node, context);
  if (found === undefined) return;
  expectEqual(context, 'Name', found['Name'], name);
  expectEqual(context, 'Cluster', found['Cluster'], peer.cluster);
  expectEqual(context, 'ClusterID', found['ClusterID'], peer.id);
}

// ---- ip

const ipEntry = struct(
  { IP: ip, HostIP: ipOrEmpty, ID: unsigned(32), Key: unsigned(8), Metadata: text },
  {
    Mask: nullable(text),
    K8sNamespace: filled,
    K8sPodName: filled,
    K8sServiceAccount: filled,
    K8sPodUID: filled,
    NamedPorts: list(struct({ Name: text, Port: unsigned(16), Protocol: text })),
    ...EXTENSION,
  },
);

const FIRST_OF_CLUSTERS = 256;

function identityRange(peer: Peer): { first: number; last: number } {
  const size = peer.maxConnectedClusters === 255 ? 65_536 : 32_768;
  return { first: peer.id * size, last: (peer.id + 1) * size - 1 };
}

function checkRange(context: Context, what: string, id: unknown, peer: Peer): void {
  const { first, last } = identityRange(peer);
  if (typeof id === 'number' && (id < first || id > last))
    context.problems.push(`${what} ${id} is outside ${first}…${last}, the range of cluster ${peer.id}`);
}

function checkIp(name: string, value: Buffer, peer: Peer, context: Context): void {
  const found = readJson(value, ipEntry, context);
  if (found === undefined || typeof found['IP'] !== 'string' || isIP(found['IP']) === 0) return;
  const mask = found['Mask'];
  const length = typeof mask === 'string' ? maskLength(mask, found['IP']) : undefined;
  if (typeof mask === 'string' && length === undefined) context.problems.push('Mask is none of that address');
  const own = canonicalIp(found['IP']) + (length === undefined ? '' : `/${length}`);
  if (own !== name) context.problems.push(`entry of ${own} under the key of ${name}`);
  if (typeof found['ID'] === 'number' && found['ID'] >= FIRST_OF_CLUSTERS) checkRange(context, 'ID', found['ID'], peer);
}

// ---- identities

const CLUSTER_LABEL = 'io.cilium.k8s.policy.cluster';

function checkIdentity(name: string, value: Buffer, peer: Peer, context: Context): void {
  if (!/^[1-9]\d*$/.test(name))
    context.problems.push(`the key ends in ${JSON.stringify(name)}, not in a decimal number`);
  else checkRange(context, 'identity', Number(name), peer);
  const labels = value.toString('utf8');
  if (!labels.endsWith(';')) context.problems.push('labels do not end in a semicolon');
  let before = '';
  let cluster: string | undefined;
  for (const label of labels.split(';').slice(0, -1)) {
    const parts = /^([^:]+):([^=]+)=(.*)$/s.exec(label);
    if (parts === null) {
      context.problems.push(`label ${JSON.stringify(label)} is not source:key=value`);
      continue;
    }
    const [, source = '', key = '', text = ''] = parts;
    if (before !== '' && Buffer.compare(Buffer.from(before), Buffer.from(key)) >= 0)
      context.problems.push(`label ${key} comes after ${before}: not sorted`);
    before = key;
    if (key !== CLUSTER_LABEL) continue;
    if (source !== 'k8s') context.problems.push(`the cluster label has the source ${source}, not k8s`);
    cluster = text;
  }
  if (cluster === undefined) context.problems.push('has no cluster label');
  else expectEqual(context, 'cluster label', cluster, peer.cluster);
}

// ---- services

const portsByName = map(struct({ Protocol: PROTOCOLS, Port: unsigned(16) }));
/** Not necessarily in Go's own form: the reader parses these names, and keys are not made of them. */
const addressName: Shape = (value, path, context) => {
  if (typeof value !== 'string' || isIP(value) === 0 || value.includes('%'))
    context.problems.push(`${path} ${JSON.stringify(value)} is no address`);
};
const service = struct(
  {
    cluster: filled,
    namespace: filled,
    name: filled,
    frontends: map(portsByName, addressName),
    backends: map(portsByName, addressName),
    labels: nullable(strings),
    selector: nullable(strings),
    includeExternal: always(true),
    shared: always(true),
    clusterID: unsigned(32, 1),
  },
  {
    hostnames: map(filled, addressName),
    zones: map(struct({ zone: text, forZones: nullable(list(struct({ name: text }))) }), addressName),
    ...EXTENSION,
  },
);

function checkService(name: string, value: Buffer, peer: Peer, context: Context): void {
  const found = readJson(value, service, context);
  if (found === undefined) return;
  expectEqual(context, 'namespace/name', `${found['namespace']}/${found['name']}`, name);
  expectEqual(context, 'cluster', found['cluster'], peer.cluster);
  expectEqual(context, 'clusterID', found['clusterID'], peer.id);
}

// ---- service exports

const serviceExport = struct(
  {
    cluster: filled,
    name: filled,
    namespace: filled,
    exportCreationTimestamp: time,
    ports: nullable(list(struct({ port: unsigned(16) }, { name: filled, protocol: PROTOCOLS, appProtocol: filled }))),
    type: oneOf('ClusterSetIP', 'Headless'),
    sessionAffinity: oneOf('ClientIP', 'None'),
  },
  {
    annotations: strings,
    labels: strings,
    sessionAffinityConfig: struct({}, { clientIP: struct({}, { timeoutSeconds: unsigned(32) }) }),
    ipFamilies: list(oneOf('IPv4', 'IPv6')),
    internalTrafficPolicy: oneOf('Cluster', 'Local'),
    trafficDistribution: oneOf('PreferClose', 'PreferSameZone', 'PreferSameNode'),
  },
);

function checkServiceExport(name: string, value: Buffer, peer: Peer, context: Context): void {
  const found = readJson(value, serviceExport, context);
  if (found === undefined) return;
  expectEqual(context, 'namespace/name', `${found['namespace']}/${found['name']}`, name);
  expectEqual(context, 'cluster', found['cluster'], peer.cluster);
}

// ---- endpoint slices

interface Slice {
  readonly cluster?: string;
  readonly clusterID?: number;
  readonly namespace?: string;
  readonly name?: string;
  readonly addressType?: string;
  readonly endpoints?: readonly { readonly addresses?: readonly string[]; readonly conditions?: object }[];
  readonly ports?: readonly { readonly port?: number; readonly protocol?: string }[];
}

const slice = loadSync(fileURLToPath(new URL('../proto/slice.proto', import.meta.url)), { keepCase: true })[
  'strictreader.Slice'
] as MessageTypeDefinition<object, object>;

function readSlice(value: Buffer, context: Context): Slice | undefined {
  try {
    return slice.deserialize(decompress(value)) as Slice;
  } catch (error) {
    context.problems.push(`is no compressed slice: ${error instanceof Error ? error.message : String(error)}`);
    return undefined;
  }
}

function checkEndpointSlice(name: string, value: Buffer, peer: Peer, context: Context): void {
  const found = readSlice(value, context);
  if (found === undefined) return;
  expectEqual(context, 'namespace/name', `${found.namespace}/${found.name}`, name);
  expectEqual(context, 'cluster', found.cluster, peer.cluster);
  expectEqual(context, 'clusterID', found.clusterID, peer.id);
  const family = found.addressType === 'IPv4' ? 4 : found.addressType === 'IPv6' ? 6 : 0;
  if (family === 0) context.problems.push(`addressType is ${JSON.stringify(found.addressType)}, not IPv4 or IPv6`);
  for (const [index, endpoint] of (found.endpoints ?? []).entries()) {
    if (endpoint.conditions === undefined) context.problems.push(`endpoints[${index}].conditions is missing`);
    if ((endpoint.addresses ?? []).length === 0) context.problems.push(`endpoints[${index}] has no address`);
    for (const address of endpoint.addresses ?? []) {
      if (isIP(address) !== family || address.includes('%'))
        context.problems.push(`endpoints[${index}] has ${JSON.stringify(address)}, which is no ${found.addressType}`);
    }
  }
  for (const [index, { port, protocol }] of (found.ports ?? []).entries()) {
    if (port !== undefined) unsigned(16)(port, `ports[${index}].port`, context);
    if (protocol !== undefined) PROTOCOLS(protocol, `ports[${index}].protocol`, context);
  }
}

// ---- all of them

function expectEqual(context: Context, what: string, found: unknown, expected: unknown): void {
  if (found !== expected)
    context.problems.push(`${what} is ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
}

const NAME = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/;
const plainName = (name: string) => NAME.test(name);
const namespacedName = (name: string) => name.split('/').length === 2 && name.split('/').every(plainName);

interface Family {
  /** Where the rows of a cluster lie. */
  readonly prefix: Readonly<Record<'state' | 'cache', (cluster: string) => string>>;
  readonly isName: (name: string) => boolean;
  readonly check: (name: string, value: Buffer, peer: Peer, context: Context) => void;
}

const scoped = (family: string) => ({
  state: (cluster: string) => `cilium/state/${family}/v1/${cluster}/`,
  cache: (cluster: string) => `cilium/cache/${family}/v1/${cluster}/`,
});

export const FAMILIES: Readonly<Record<string, Family>> = {
  nodes: { prefix: scoped('nodes'), isName: plainName, check: checkNode },
  services: { prefix: scoped('services'), isName: namespacedName, check: checkService },
  identities: {
    prefix: {
      state: () => 'cilium/state/identities/v1/id/',
      cache: (cluster) => `cilium/cache/identities/v1/${cluster}/id/`,
    },
    isName: (name) => /^\d+$/.test(name),
    check: checkIdentity,
  },
  ip: {
    prefix: { state: () => 'cilium/state/ip/v1/default/', cache: (cluster) => `cilium/cache/ip/v1/${cluster}/` },
    isName: (name) => isIP(name.split('/')[0] ?? '') !== 0 && /^[^/]+(\/\d{1,3})?$/.test(name),
    check: checkIp,
  },
  serviceexports: { prefix: scoped('serviceexports'), isName: namespacedName, check: checkServiceExport },
  endpointslices: { prefix: scoped('endpointslices'), isName: namespacedName, check: checkEndpointSlice },
};

/** Everything that is wrong with a value under a name of a family. */
export function valueProblems(family: string, name: string, value: Buffer, peer: Peer): string[] {
  const { isName, check } = FAMILIES[family] as Family;
  const context: Context = { problems: [], allowUnknown: peer.allowUnknownFields };
  if (!isName(name)) context.problems.push(`${JSON.stringify(name)} is no name of this family`);
  check(name, value, peer, context);
  return context.problems;
}

/** Heartbeat and canaries. Readers do not parse it, so a wrong one goes unnoticed by them and not by people. */
export function timeProblems(value: Buffer): string[] {
  const context: Context = { problems: [], allowUnknown: false };
  time(value.toString('utf8'), '', context);
  return context.problems;
}
