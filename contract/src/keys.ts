/**
 * Every etcd key of the project is built here and nowhere else (wire-contract §1.0, architecture "Keys of our own").
 * Prefixes end in "/" except the heartbeat's, which Cilium lists without (wire-contract §1.13).
 */

export const HEARTBEAT_KEY = 'cilium/.heartbeat';
export const STATE_PREFIX = 'cilium/state/';
export const CACHE_PREFIX = 'cilium/cache/';
export const CLUSTER_CONFIG_PREFIX = 'cilium/cluster-config/';
export const SYNCED_PREFIX = 'cilium/synced/';

/** The families that have data keys in this release. */
export const FAMILIES = ['nodes', 'services', 'identities', 'ip'] as const;
export type Family = (typeof FAMILIES)[number];
/** Families that get a canary: readers of serviceexports wait for one even when MCS is off (§1.4, §12.3). */
export const CANARY_FAMILIES = [...FAMILIES, 'serviceexports'] as const;
export type CanaryFamily = (typeof CANARY_FAMILIES)[number];
/** What an agent reads of a peer, if the peer publishes it: `serviceexports` have no consumer on a node. */
export const AGENT_FAMILIES = [...FAMILIES, 'endpointslices'] as const;
export type AgentFamily = (typeof AGENT_FAMILIES)[number];
/** Every family of the wire; which of them a cluster publishes is said by its config (`publishedFamilies`). */
export const WIRE_FAMILIES = [...CANARY_FAMILIES, 'endpointslices'] as const;
export type WireFamily = (typeof WIRE_FAMILIES)[number];

export type Layout = 'state' | 'cache';

export function clusterConfigKey(cluster: string): string {
  return `${CLUSTER_CONFIG_PREFIX}${cluster}`;
}

export function syncedPrefix(cluster: string): string {
  return `${SYNCED_PREFIX}${cluster}/`;
}

export function canaryKey(cluster: string, family: WireFamily, layout: Layout): string {
  return `${SYNCED_PREFIX}${cluster}/cilium/${layout}/${family}/v1`;
}

/** The prefix under which a family's data of `cluster` lies; in the state layout identities and ip are not cluster-scoped. */
export function dataPrefix(cluster: string, family: WireFamily, layout: Layout): string {
  const base = `cilium/${layout}/${family}/v1/`;
  if (layout === 'cache') return family === 'identities' ? `${base}${cluster}/id/` : `${base}${cluster}/`;
  if (family === 'identities') return `${base}id/`;
  if (family === 'ip') return `${base}default/`;
  return `${base}${cluster}/`;
}

export function nodeKey(cluster: string, node: string, layout: Layout = 'state'): string {
  return `${dataPrefix(cluster, 'nodes', layout)}${node}`;
}

export function serviceKey(cluster: string, namespace: string, name: string, layout: Layout = 'state'): string {
  return `${dataPrefix(cluster, 'services', layout)}${namespace}/${name}`;
}

export function identityKey(cluster: string, id: number, layout: Layout = 'state'): string {
  return `${dataPrefix(cluster, 'identities', layout)}${id}`;
}

/** `address` is `<ip>` for a host and `<ip>/<len>` for a prefix. */
export function ipKey(cluster: string, address: string, layout: Layout = 'state'): string {
  return `${dataPrefix(cluster, 'ip', layout)}${address}`;
}

export function serviceExportKey(cluster: string, namespace: string, name: string, layout: Layout = 'state'): string {
  return `${dataPrefix(cluster, 'serviceexports', layout)}${namespace}/${name}`;
}

export function endpointSliceKey(cluster: string, namespace: string, slice: string, layout: Layout = 'state'): string {
  return `${dataPrefix(cluster, 'endpointslices', layout)}${namespace}/${slice}`;
}

/** The part of a data key behind its family's prefix, or undefined for a foreign key. */
export function keyName(key: string, prefix: string): string | undefined {
  return key.startsWith(prefix) && key.length > prefix.length ? key.slice(prefix.length) : undefined;
}

/* Keys of our own, in the local etcd only. */

export const OWN_PREFIX = 'clustermesh/';
export const LOCAL_PREFIX = 'clustermesh/local/';
export const NODES_PREFIX = 'clustermesh/nodes/';
export const IDENTITIES_PREFIX = 'clustermesh/identities/';
export const AGENTS_PREFIX = 'clustermesh/agents/';
export const PEERS_PREFIX = 'clustermesh/peers/';
export const HEALTH_PREFIX = 'clustermesh/health/';
/** Records of invitations; nothing in them is secret (pki/src/token.ts). */
export const INVITES_PREFIX = 'clustermesh/invites/';
/** Present from the moment on which users, roles and auth are in place: nobody writes data into an etcd without it. */
export const BOOTSTRAP_KEY = 'clustermesh/bootstrap';

/** Present while the cluster connects with nobody (`clustermesh disable`). */
export const MESH_DISABLED_KEY = 'clustermesh/disabled';

export function inviteKey(id: string): string {
  return `${INVITES_PREFIX}${id}`;
}

/** Who of several replicas writes: `clustermesh/election/<name>`. */
export function electionKey(name: string): string {
  return `clustermesh/election/${name}`;
}

export const LOCAL_FAMILIES = ['services', 'endpointslices', 'namespaces', 'policies'] as const;
export type LocalFamily = (typeof LOCAL_FAMILIES)[number];

export function localPrefix(family: LocalFamily): string {
  return `${LOCAL_PREFIX}${family}/`;
}

export function localKey(family: LocalFamily, name: string): string {
  return `${localPrefix(family)}${name}`;
}

export function localCanaryKey(family: LocalFamily): string {
  return `${LOCAL_PREFIX}synced/${family}`;
}

export function nodeRecordPrefix(node: string): string {
  return `${NODES_PREFIX}${node}/`;
}

export function nodeRecordKey(node: string): string {
  return `${NODES_PREFIX}${node}/node`;
}

export function nodeSyncedKey(node: string): string {
  return `${NODES_PREFIX}${node}/synced`;
}

export function endpointRecordKey(node: string, endpoint: string): string {
  return `${NODES_PREFIX}${node}/endpoints/${endpoint}`;
}

export type NodesKey =
  | { readonly kind: 'node' | 'synced'; readonly node: string }
  | { readonly kind: 'endpoint'; readonly node: string; readonly endpoint: string };

/** Takes a key under `clustermesh/nodes/` apart; undefined when it is none of ours. */
export function parseNodesKey(key: string): NodesKey | undefined {
  const rest = keyName(key, NODES_PREFIX)?.split('/');
  if (rest === undefined) return undefined;
  const [node, kind, endpoint] = rest;
  if (node === undefined || node === '') return undefined;
  if (rest.length === 2 && (kind === 'node' || kind === 'synced')) return { kind, node };
  if (rest.length === 3 && kind === 'endpoints' && endpoint !== undefined && endpoint !== '')
    return { kind: 'endpoint', node, endpoint };
  return undefined;
}

export function identityByIdKey(id: number): string {
  return `${IDENTITIES_PREFIX}id/${id}`;
}

export function identityByLabelsKey(labels: string): string {
  return `${IDENTITIES_PREFIX}value/${labels}`;
}

export function agentKey(node: string): string {
  return `${AGENTS_PREFIX}${node}`;
}

export function peerKey(cluster: string): string {
  return `${PEERS_PREFIX}${cluster}`;
}

export function healthPrefix(node: string): string {
  return `${HEALTH_PREFIX}${node}/`;
}

/** A node's mark in its etcd: still there, it is the etcd that the node knew; an etcd that was wiped or rebuilt lacks it. */
export function storeMarkKey(node: string): string {
  return `${healthPrefix(node)}store`;
}
