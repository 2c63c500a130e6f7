/**
 * A peer's data is data from a stranger. Every object is held against its key and against what the peer's config says; what passes
 * is mirrored byte for byte, so that fields we do not know survive. Pure.
 */
import {
  accept,
  type CanaryFamily,
  type ClusterConfig,
  type Decoded,
  decodeClusterConfig,
  decodeGlobalService,
  decodeIdentityEntry,
  decodeIpEntry,
  decodeNode,
  encodeClusterConfig,
  FAMILIES,
  isDnsSubdomain,
  type MaxConnectedClusters,
  reject,
  validateGlobalService,
  validateIpEntry,
  validateNode,
  validatePeerConfig,
} from '@clustermesh/contract';
import { type AddressFacts, ipAddressProblem, nodeAddressProblem, serviceAddressProblem } from './addresses.ts';

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

function checkServiceExport(name: string, text: string, peer: PeerFacts): Decoded<unknown> {
  let raw: { cluster?: unknown; namespace?: unknown; name?: unknown };
  try {
    raw = JSON.parse(text) ?? {};
  } catch {
    return reject('service export is not JSON');
  }
  if (raw.cluster !== peer.cluster || `${raw.namespace}/${raw.name}` !== name) {
    return reject(
      `service export ${raw.cluster}/${raw.namespace}/${raw.name} lies under the key of ${peer.cluster}/${name}`,
    );
  }
  return accept(raw);
}

/** Why the object under `name` (its key behind the family's prefix) must not be taken over; undefined when it is fine. */
export function objectProblem(
  family: CanaryFamily,
  name: string,
  value: Buffer,
  peer: PeerFacts,
  addresses: AddressFacts,
): string | undefined {
  const text = decodeText(value);
  if (text === undefined) return `${family} ${JSON.stringify(name)} is not UTF-8`;
  const result = checkObject(family, name, text, peer, addresses);
  return result.ok ? undefined : result.reason;
}

function checkObject(
  family: CanaryFamily,
  name: string,
  text: string,
  peer: PeerFacts,
  addresses: AddressFacts,
): Decoded<unknown> {
  const expected = { ...peer, name };
  switch (family) {
    case 'nodes': {
      if (!isDnsSubdomain(name)) return reject(`${JSON.stringify(name)} is no node name`);
      const decoded = decodeNode(text);
      return checked(decoded, (node) => validateNode(node, expected), addresses, nodeAddressProblem);
    }
    case 'services': {
      if (!isNamespacedName(name)) return reject(`${JSON.stringify(name)} is no namespace/name`);
      const decoded = decodeGlobalService(text);
      return checked(decoded, (service) => validateGlobalService(service, expected), addresses, serviceAddressProblem);
    }
    case 'identities':
      return decodeIdentityEntry(name, text, peer);
    case 'ip': {
      const decoded = decodeIpEntry(text);
      return checked(decoded, (entry) => validateIpEntry(entry, expected), addresses, ipAddressProblem);
    }
    case 'serviceexports':
      return isNamespacedName(name)
        ? checkServiceExport(name, text, peer)
        : reject(`${JSON.stringify(name)} is no namespace/name`);
  }
}

/** Well-formed, then held against its key and the peer's config, then against where the peer's addresses may lie. */
function checked<T>(
  decoded: Decoded<T>,
  validate: (value: T) => Decoded<T>,
  addresses: AddressFacts,
  addressProblem: (value: T, addresses: AddressFacts) => string | undefined,
): Decoded<T> {
  const valid = decoded.ok ? validate(decoded.value) : decoded;
  const problem = valid.ok ? addressProblem(valid.value, addresses) : undefined;
  return problem === undefined ? valid : reject(problem);
}

export interface AcceptedConfig {
  readonly id: number;
  /** Without canaries there is nothing to wait for before a list (§1.4). */
  readonly hasCanaries: boolean;
  readonly families: readonly CanaryFamily[];
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
  const families: readonly CanaryFamily[] =
    capabilities.serviceExportsEnabled === undefined ? FAMILIES : [...FAMILIES, 'serviceexports'];
  return accept({
    id,
    hasCanaries: capabilities.syncedCanaries === true,
    families,
    cachedValue: cachedConfig(decoded.value),
  });
}

/** Endpoint slices are not mirrored, so the mirror must not claim them. */
function cachedConfig(config: ClusterConfig): string {
  const { endpointSlicesExportMode: _, ...capabilities } = config.capabilities;
  return encodeClusterConfig({ ...config, capabilities: { ...capabilities, cached: true, syncedCanaries: true } });
}
