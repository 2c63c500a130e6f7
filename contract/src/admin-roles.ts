/** Who may call what on the admin interface. A method that is missing here does not compile. */
import type { AdminMethods } from './admin-api.ts';

/**
 * `operator` may do everything, `viewer` only look. `peer` is a connected cluster, by the certificate it reads etcd with. `anyone`
 * has proved nothing; what it may call must prove the right to itself (an invitation).
 */
export type AdminRole = 'operator' | 'viewer' | 'peer' | 'anyone';

const LOOK: readonly AdminRole[] = ['operator', 'viewer'];
const ACT: readonly AdminRole[] = ['operator'];
/** They prove their right by the token that they bring. */
const JOIN: readonly AdminRole[] = ['operator', 'viewer', 'peer', 'anyone'];
/** What concerns nobody but the peer that asks. */
const PEER: readonly AdminRole[] = ['peer'];
const MEET: readonly AdminRole[] = ['operator', 'viewer', 'peer'];

export const ADMIN_METHOD_ROLES: Readonly<Record<keyof AdminMethods, readonly AdminRole[]>> = {
  GetCluster: MEET,
  GetFacts: MEET,
  GetStatus: LOOK,
  Preflight: LOOK,
  Diagnose: LOOK,
  ListOperations: LOOK,
  WatchOperation: LOOK,
  PrepareConnect: ACT,
  StartConnect: ACT,
  SupplyCertificate: ACT,
  StartDisconnect: ACT,
  StartDrain: ACT,
  RetryOperation: ACT,
  CancelOperation: ACT,
  CreateInvite: ACT,
  RotateLeaves: ACT,
  RotateCa: ACT,
  RenewPeer: PEER,
  Join: ACT,
  Disable: ACT,
  Enable: ACT,
  RedeemInvite: JOIN,
  CompleteInvite: JOIN,
};

/** Methods that change nothing: they are audited only when they are refused. */
export function isReadOnly(method: keyof AdminMethods): boolean {
  return ADMIN_METHOD_ROLES[method] !== JOIN && ADMIN_METHOD_ROLES[method].includes('viewer');
}

/**
 * The role of a certificate's common name. `admin-<cluster>` is the cluster's own administrator, `operator-…` and `viewer-…` are
 * people and programs of this cluster, `remote-…` a peer. Every other name (nodes, local readers, the gate) has no business here.
 */
export function adminRoleOf(user: string, cluster: string): AdminRole | undefined {
  if (user === `admin-${cluster}` || /^operator-./.test(user)) return 'operator';
  if (/^viewer-./.test(user)) return 'viewer';
  if (/^remote-./.test(user)) return 'peer';
  return undefined;
}
