import { MeshError } from '@clustermesh/contract';
import { etcdDetails } from './errors.ts';
import type { WireHeader, WirePermission } from './proto.ts';
import { prefixEnd } from './ranges.ts';
import type { EtcdAuth, Permission } from './types.ts';

type Call = <Response extends { readonly header: WireHeader }>(
  method: string,
  request: object,
  attempted: string,
) => Promise<Response>;

interface NameList {
  readonly header: WireHeader;
}

const WIRE_PERMISSION: Record<Permission, WirePermission['permType']> = {
  read: 'Read',
  write: 'Write',
  readwrite: 'Readwrite',
};
const PERMISSION: Record<WirePermission['permType'], Permission> = {
  Read: 'read',
  Write: 'write',
  Readwrite: 'readwrite',
};

/** Success if it works, or if etcd says that it is so already. */
async function unless(already: RegExp, attempt: Promise<unknown>): Promise<void> {
  try {
    await attempt;
  } catch (error) {
    if (!already.test(etcdDetails(error))) throw error;
  }
}

/** Users, roles and rights. Every operation can be repeated: the bootstrap that calls them may die between any two. */
export function createAuth(call: Call): EtcdAuth {
  const roleOf = async (role: string) =>
    (await call<NameList & { perm: WirePermission[] }>('Auth.RoleGet', { role }, `reading etcd role ${role}`)).perm;
  const bounds = (key: string, scope: 'prefix' | 'key') => ({
    key: Buffer.from(key),
    range_end: scope === 'prefix' ? prefixEnd(Buffer.from(key)) : Buffer.alloc(0),
  });
  return {
    async isEnabled() {
      // AuthStatus is younger than 3.4. Logging in with a password that nobody has tells it too.
      try {
        await call('Auth.Authenticate', { name: 'root', password: '' }, 'asking whether etcd auth is on');
        return true;
      } catch (error) {
        if (/authentication is not enabled/.test(etcdDetails(error))) return false;
        if (/authentication failed|no password|user name/.test(etcdDetails(error))) return true;
        throw error;
      }
    },
    enable: () => unless(/already enabled/, call('Auth.AuthEnable', {}, 'enabling etcd auth')),
    disable: () => unless(/not enabled/, call('Auth.AuthDisable', {}, 'disabling etcd auth')),
    addUser: (name) =>
      unless(/user name already exists/, call('Auth.UserAdd', { name, password: '' }, `adding etcd user ${name}`)),
    deleteUser: (name) =>
      unless(/user name not found/, call('Auth.UserDelete', { name }, `deleting etcd user ${name}`)),
    async listUsers() {
      return (await call<NameList & { users: string[] }>('Auth.UserList', {}, 'listing etcd users')).users;
    },
    async userRoles(name) {
      return (await call<NameList & { roles: string[] }>('Auth.UserGet', { name }, `reading etcd user ${name}`)).roles;
    },
    addRole: (name) => unless(/role name already exists/, call('Auth.RoleAdd', { name }, `adding etcd role ${name}`)),
    deleteRole: (role) =>
      unless(/role name not found/, call('Auth.RoleDelete', { role }, `deleting etcd role ${role}`)),
    async listRoles() {
      return (await call<NameList & { roles: string[] }>('Auth.RoleList', {}, 'listing etcd roles')).roles;
    },
    // Granting what is granted is success in etcd itself.
    grantRole: async (user, role) =>
      void (await call('Auth.UserGrantRole', { user, role }, `granting etcd role ${role} to ${user}`)),
    revokeRole: (name, role) =>
      unless(
        /role is not granted|user name not found/,
        call('Auth.UserRevokeRole', { name, role }, `revoking etcd role ${role} from ${name}`),
      ),
    async grantPermission(role, permission, key, scope) {
      if (key === '')
        throw new MeshError({
          code: 'invalid-argument',
          message: `granting ${permission} to etcd role ${role}: empty key`,
        });
      const perm = { permType: WIRE_PERMISSION[permission], ...bounds(key, scope) };
      await call(
        'Auth.RoleGrantPermission',
        { name: role, perm },
        `granting ${permission} on ${key} to etcd role ${role}`,
      );
    },
    revokePermission: (role, key, scope) =>
      unless(
        /permission is not granted|role name not found/,
        call(
          'Auth.RoleRevokePermission',
          { role, ...bounds(key, scope) },
          `revoking rights on ${key} from etcd role ${role}`,
        ),
      ),
    async listPermissions(role) {
      return (await roleOf(role)).map((perm) => ({
        permission: PERMISSION[perm.permType],
        key: perm.key.toString(),
        rangeEnd: perm.range_end.toString(),
      }));
    },
  };
}
