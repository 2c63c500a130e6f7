/** Users and roles of this cluster's etcd: what should be, and the steps from what is (wire-contract §1.12). Pure. */
import {
  agentKey,
  CACHE_PREFIX,
  CLUSTER_CONFIG_PREFIX,
  clusterConfigKey,
  HEARTBEAT_KEY,
  healthPrefix,
  IDENTITIES_PREFIX,
  nodeRecordPrefix,
  OWN_PREFIX,
  STATE_PREFIX,
  SYNCED_PREFIX,
  syncedPrefix,
} from '@clustermesh/contract';
import { type Permission, prefixEnd } from '@clustermesh/kvstore';
import { gateUser } from '@clustermesh/pki';
import type { AuthMode } from '../gate/config.ts';

export interface Grant {
  readonly permission: Permission;
  readonly key: string;
  readonly scope: 'prefix' | 'key';
}

export interface AuthSpec {
  /** User → its one role. */
  readonly users: ReadonlyMap<string, string>;
  /** Role → its grants; `root` is etcd's own and has none. */
  readonly roles: ReadonlyMap<string, readonly Grant[]>;
  /** Users and roles that begin like this and are not wanted are removed. */
  readonly managed: readonly string[];
  /** Users of exactly these names that are not wanted are removed. */
  readonly retired: readonly string[];
}

/** A user is the common name of a client certificate; none has a password. */
export const REMOTE_USER_PREFIX = 'remote-';
export const NODE_USER_PREFIX = 'node-';
const ROOT = 'root';
/** The one user of all peers, from before each had its own. */
const LEGACY_REMOTE_USER = 'remote';

const read = (key: string): Grant => ({ permission: 'read', key, scope: 'prefix' });
const write = (key: string, scope: Grant['scope'] = 'prefix'): Grant => ({ permission: 'readwrite', key, scope });

export interface AuthInput {
  readonly cluster: string;
  readonly nodes: readonly string[];
  /** Users of peers (`remote-<peer>`); undefined when users.yaml was never readable: then nobody's access is touched. */
  readonly remoteUsers: readonly string[] | undefined;
  /** Default `migration`. */
  readonly authMode?: AuthMode | undefined;
  /** By which way peers come: at etcd itself each has a user of its own (default); behind the gate only the gate has. */
  readonly peerAccess?: PeerAccess | undefined;
}

export const PEER_ACCESS = ['etcd', 'gate'] as const;
export type PeerAccess = (typeof PEER_ACCESS)[number];

/** The users with the role `remote`. */
function readersOf({ cluster, remoteUsers = [], authMode = 'migration', peerAccess }: AuthInput): readonly string[] {
  if (peerAccess === 'gate') return [gateUser(cluster)];
  return [...(authMode === 'cluster' ? [] : [LEGACY_REMOTE_USER]), ...(authMode === 'legacy' ? [] : remoteUsers)];
}

export function desiredAuth(input: AuthInput): AuthSpec {
  const { cluster, nodes, remoteUsers } = input;
  const isPeersKnown = remoteUsers !== undefined || input.peerAccess === 'gate';
  const nodeGrants = (node: string): Grant[] => [
    read(CACHE_PREFIX),
    read(CLUSTER_CONFIG_PREFIX),
    read(SYNCED_PREFIX),
    read(OWN_PREFIX),
    write(nodeRecordPrefix(node)),
    write(agentKey(node), 'key'),
    write(healthPrefix(node)),
    write(IDENTITIES_PREFIX),
  ];
  return {
    users: new Map([
      [ROOT, ROOT],
      [`admin-${cluster}`, ROOT],
      [`local-${cluster}`, 'local'],
      ...readersOf(input).map((user): [string, string] => [user, 'remote']),
      ...nodes.map((node): [string, string] => [`${NODE_USER_PREFIX}${node}`, `${NODE_USER_PREFIX}${node}`]),
    ]),
    roles: new Map<string, readonly Grant[]>([
      [ROOT, []],
      // The heartbeat is granted as a prefix without a slash, because readers list it so (§1.13).
      ['local', [read(HEARTBEAT_KEY), read(CACHE_PREFIX), read(CLUSTER_CONFIG_PREFIX), read(SYNCED_PREFIX)]],
      [
        'remote',
        [
          read(HEARTBEAT_KEY),
          read(STATE_PREFIX),
          { permission: 'read', key: clusterConfigKey(cluster), scope: 'key' },
          read(syncedPrefix(cluster)),
        ],
      ],
      ...nodes.map((node): [string, readonly Grant[]] => [`${NODE_USER_PREFIX}${node}`, nodeGrants(node)]),
    ]),
    managed: [NODE_USER_PREFIX, gateUser(''), ...(isPeersKnown ? [REMOTE_USER_PREFIX] : [])],
    retired: [LEGACY_REMOTE_USER],
  };
}

export interface AuthActual {
  readonly users: ReadonlyMap<string, readonly string[]>;
  readonly roles: ReadonlyMap<
    string,
    readonly { readonly permission: Permission; readonly key: string; readonly rangeEnd: string }[]
  >;
}

export type AuthStep =
  | { readonly do: 'addRole' | 'deleteRole'; readonly role: string }
  | { readonly do: 'addUser' | 'deleteUser'; readonly user: string }
  | { readonly do: 'grantRole' | 'revokeRole'; readonly user: string; readonly role: string }
  | { readonly do: 'grantPermission' | 'revokePermission'; readonly role: string; readonly grant: Grant };

function grantOf(actual: {
  readonly permission: Permission;
  readonly key: string;
  readonly rangeEnd: string;
}): Grant | undefined {
  if (actual.rangeEnd === '') return { permission: actual.permission, key: actual.key, scope: 'key' };
  if (actual.rangeEnd === prefixEnd(Buffer.from(actual.key)).toString())
    return { permission: actual.permission, key: actual.key, scope: 'prefix' };
  return undefined;
}

const sameGrant = (a: Grant, b: Grant) => a.permission === b.permission && a.key === b.key && a.scope === b.scope;

/** Roles before users, rights before the users that would use them, removals last but rights that are too wide go with their role. */
export function planAuth(desired: AuthSpec, actual: AuthActual): AuthStep[] {
  const steps: AuthStep[] = [];
  const isManaged = (name: string) =>
    desired.managed.some((prefix) => name.startsWith(prefix)) || desired.retired.includes(name);

  for (const [role, grants] of desired.roles) {
    const there = actual.roles.get(role);
    // root's rights are built into etcd.
    if (there === undefined) steps.push({ do: 'addRole', role });
    if (role === ROOT) continue;
    const held: Grant[] = [];
    let isStrange = false;
    for (const entry of there ?? []) {
      const grant = grantOf(entry);
      if (grant === undefined) isStrange = true;
      else held.push(grant);
    }
    if (isStrange) {
      // A range that is neither a key nor a prefix is not ours: the role is made again. Its users get it back below.
      steps.push({ do: 'deleteRole', role }, { do: 'addRole', role });
      held.length = 0;
    }
    const surplus = held.filter((grant) => !grants.some((wanted) => sameGrant(wanted, grant)));
    // One right per range: what is changed is revoked by range and granted anew.
    steps.push(...surplus.map((grant): AuthStep => ({ do: 'revokePermission', role, grant })));
    const missing = grants.filter((grant) => !held.some((there) => sameGrant(there, grant)));
    steps.push(...missing.map((grant): AuthStep => ({ do: 'grantPermission', role, grant })));
  }
  const remade = new Set(steps.flatMap((step) => (step.do === 'deleteRole' ? [step.role] : [])));
  for (const [user, role] of desired.users) {
    const roles = actual.users.get(user);
    if (roles === undefined) steps.push({ do: 'addUser', user });
    for (const other of roles ?? []) if (other !== role) steps.push({ do: 'revokeRole', user, role: other });
    if (roles?.includes(role) !== true || remade.has(role)) steps.push({ do: 'grantRole', user, role });
  }
  for (const user of actual.users.keys()) {
    if (isManaged(user) && !desired.users.has(user)) steps.push({ do: 'deleteUser', user });
  }
  for (const role of actual.roles.keys()) {
    if (role.startsWith(NODE_USER_PREFIX) && !desired.roles.has(role)) steps.push({ do: 'deleteRole', role });
  }
  return steps;
}
