/**
 * A peer's data is data from a stranger. Every object is held against its key and against what the peer's config says; what passes
 * is mirrored byte for byte, so that fields we do not know survive. Only an address family that was not agreed is taken out. Pure.
 */
import {
  accept,
  type ClusterConfig,
  type Compression,
  type Decoded,
  decodeClusterConfig,
  decodeEndpointSlice,
  decodeGlobalService,
  decodeIdentityEntry,
  decodeIpEntry,
  decodeNode,
  decodeServiceExport,
  encodeClusterConfig,
  encodeGlobalService,
  encodeNode,
  type GlobalService,
  isDnsSubdomain,
  type MaxConnectedClusters,
  publishedFamilies,
  reject,
  validateEndpointSlice,
  validateGlobalService,
  validateIpEntry,
  validateNode,
  validatePeerConfig,
  validateServiceExport,
  type WireFamily,
} from '@clustermesh/contract';
import { MAX_VALUE_BYTES, mib } from '../limits.ts';
import {
  type AddressFacts,
  ipAddressProblem,
  nodeAddressProblem,
  nodeRest,
  type Rest,
  serviceAddressProblem,
  serviceRest,
  sliceAddressProblem,
} from './addresses.ts';

export interface PeerFacts {
  readonly cluster: string;
  readonly clusterId: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

function decodeText(value: Buffer): string | undefined {
  try {
    return utf8.decode(value);
  } catch {
    return undefined;
  }
}

/** Names become parts of our own keys: nothing but names may pass. */
function isNamespacedName(name: string): boolean {
  const parts = name.split('/');
  return parts.length === 2 && parts.every(isDnsSubdomain);
}

/** What a stranger wrote, for people: of bounded length, and without control characters. */
export function quote(text: string): string {
  return JSON.stringify(text.length <= QUOTED ? text : `${text.slice(0, QUOTED)}…`);
}
const QUOTED = 100;
const LONGEST_REASON = 400;

export interface Judgement {
  /** What is mirrored: the peer's own bytes, or what is left of the object; undefined: nothing. */
  readonly value: Buffer | undefined;
  /** Why it, or a part of it, must not be taken over; undefined when it is fine. */
  readonly problem: string | undefined;
}

/** Judges the object under `name` (its key behind the family's prefix). */
export function judgeObject(
  family: WireFamily,
  name: string,
  value: Buffer,
  peer: PeerFacts,
  addresses: AddressFacts,
  zstd: Compression,
): Judgement {
  const refuse = (problem: string): Judgement => ({ value: undefined, problem: problem.slice(0, LONGEST_REASON) });
  if (value.length > MAX_VALUE_BYTES)
    return refuse(
      `${family} ${quote(name)} has ${mib(value.length)}; this cluster's etcd takes ${mib(MAX_VALUE_BYTES)}`,
    );
  const result =
    family === 'endpointslices'
      ? checkSlice(name, value, peer, addresses, zstd)
      : checkText(family, name, value, peer, addresses);
  if (!result.ok) return refuse(result.reason);
  if (result.value === undefined) return { value, problem: undefined };
  return { value: Buffer.from(result.value.object), problem: result.value.reason.slice(0, LONGEST_REASON) };
}

/** Undefined: the object is fine as it is. Else what is left of it, as it is written. */
type Taken = Decoded<Rest<string> | undefined>;
const WHOLE: Taken = accept(undefined);
const whole = (decoded: Decoded<unknown>): Taken => (decoded.ok ? WHOLE : decoded);

function checkSlice(name: string, value: Buffer, peer: PeerFacts, addresses: AddressFacts, zstd: Compression): Taken {
  if (!isNamespacedName(name)) return reject(`${quote(name)} is no namespace/name`);
  const decoded = decodeEndpointSlice(value, zstd);
  return checked(
    decoded,
    (slice) => validateEndpointSlice(slice, { ...peer, name }),
    addresses,
    (slice, facts) => sliceAddressProblem(name, slice, facts),
  );
}

type TextFamily = Exclude<WireFamily, 'endpointslices'>;

function checkText(family: TextFamily, name: string, value: Buffer, peer: PeerFacts, addresses: AddressFacts): Taken {
  const text = decodeText(value);
  return text === undefined
    ? reject(`${family} ${quote(name)} is not UTF-8`)
    : checkObject(family, name, text, peer, addresses);
}

function checkObject(family: TextFamily, name: string, text: string, peer: PeerFacts, addresses: AddressFacts): Taken {
  const expected = { ...peer, name };
  switch (family) {
    case 'nodes': {
      if (!isDnsSubdomain(name)) return reject(`${quote(name)} is no node name`);
      const decoded = decodeNode(text);
      const part = { restOf: nodeRest, encode: encodeNode };
      return checked(decoded, (node) => validateNode(node, expected), addresses, nodeAddressProblem, part);
    }
    case 'services': {
      if (!isNamespacedName(name)) return reject(`${quote(name)} is no namespace/name`);
      const decoded = decodeGlobalService(text);
      const part = { restOf: serviceRest, encode: encodeGlobalService };
      const validate = (service: GlobalService) => validateGlobalService(service, expected);
      return checked(decoded, validate, addresses, serviceAddressProblem, part);
    }
    case 'identities':
      return whole(decodeIdentityEntry(name, text, peer));
    case 'ip': {
      const decoded = decodeIpEntry(text);
      return checked(decoded, (entry) => validateIpEntry(entry, expected), addresses, ipAddressProblem);
    }
    case 'serviceexports': {
      if (!isNamespacedName(name)) return reject(`${quote(name)} is no namespace/name`);
      const decoded = decodeServiceExport(text);
      return whole(decoded.ok ? validateServiceExport(decoded.value, expected) : decoded);
    }
  }
}

/** Well-formed, then held against its key and the peer's config, then against where the peer's addresses may lie. */
function checked<T>(
  decoded: Decoded<T>,
  validate: (value: T) => Decoded<T>,
  addresses: AddressFacts,
  addressProblem: (value: T, addresses: AddressFacts) => string | undefined,
  part?: {
    readonly restOf: (value: T, addresses: AddressFacts) => Rest<T> | undefined;
    readonly encode: (rest: T) => string;
  },
): Taken {
  const valid = decoded.ok ? validate(decoded.value) : decoded;
  if (!valid.ok) return valid;
  const rest = part?.restOf(valid.value, addresses);
  const problem = addressProblem(rest?.object ?? valid.value, addresses);
  if (problem !== undefined) return reject(problem);
  if (part === undefined || rest === undefined) return WHOLE;
  return accept({ object: part.encode(rest.object), reason: rest.reason });
}

export interface AcceptedConfig {
  readonly id: number;
  /** Without canaries there is nothing to wait for before a list (§1.4). */
  readonly hasCanaries: boolean;
  readonly families: readonly WireFamily[];
  /** The value for our own agents: the mirror keeps canaries and scopes every key by cluster (§1.3). */
  readonly cachedValue: string;
}

/** The handshake: what the peer says it is, held against this cluster and against what was agreed when it was connected. */
export function acceptConfig(
  cluster: string,
  text: string,
  local: { readonly id: number; readonly maxConnectedClusters: MaxConnectedClusters },
  agreedId: number | undefined,
): Decoded<AcceptedConfig> {
  const decoded = decodeClusterConfig(text);
  if (!decoded.ok) return decoded;
  const valid = validatePeerConfig(cluster, decoded.value, local);
  if (!valid.ok) return valid;
  const { id, capabilities } = decoded.value;
  if (agreedId !== undefined && agreedId !== 0 && agreedId !== id) {
    return reject(
      `cluster ${cluster} has cluster id ${id}, but id ${agreedId} was agreed when it was connected; disconnect and connect it again`,
    );
  }
  if (capabilities.cached === true) {
    return reject(
      `cluster ${cluster} offers a mirror of itself (capability "cached") in place of its own state; a mirror is never mirrored onward`,
    );
  }
  return accept({
    id,
    hasCanaries: capabilities.syncedCanaries === true,
    families: publishedFamilies(decoded.value),
    cachedValue: cachedConfig(decoded.value),
  });
}

/** What the peer says of itself, with fields that we do not know, and the two things that a mirror has of its own. */
function cachedConfig(config: ClusterConfig): string {
  return encodeClusterConfig({
    ...config,
    capabilities: { ...config.capabilities, cached: true, syncedCanaries: true },
  });
}
