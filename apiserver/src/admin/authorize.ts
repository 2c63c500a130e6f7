/** Puts the roles of contract/src/admin-roles.ts and the audit log before the handlers of the admin interface. */
import {
  ADMIN_METHOD_ROLES,
  type AdminMethods,
  type AdminRole,
  adminRoleOf,
  isReadOnly,
  MeshError,
  messageOf,
} from '@clustermesh/contract';
import type { CallContext, Handlers } from '@clustermesh/runtime';
import type { Audit } from './audit.ts';

type Method = keyof AdminMethods;
type AnyHandler = (request: unknown, context: CallContext) => Promise<unknown> | AsyncIterable<unknown>;

/** The socket is its owner's, who may do everything but what only a peer can ask for itself. */
export function roleOf(context: CallContext, cluster: string): AdminRole {
  if (context.caller.via === 'socket') return 'operator';
  return (context.caller.user === undefined ? undefined : adminRoleOf(context.caller.user, cluster)) ?? 'anyone';
}

export function authorized(handlers: Handlers<AdminMethods>, cluster: string, audit: Audit): Handlers<AdminMethods> {
  const guarded = Object.entries(handlers).map(([name, handler]) => [
    name,
    guard(name as Method, handler as AnyHandler, cluster, audit),
  ]);
  return Object.fromEntries(guarded) as Handlers<AdminMethods>;
}

function guard(method: Method, handler: AnyHandler, cluster: string, audit: Audit): AnyHandler {
  return (request, context) => {
    const role = roleOf(context, cluster);
    const entry = { caller: context.caller, role, method, subject: subjectOf(request) };
    if (!ADMIN_METHOD_ROLES[method].includes(role)) {
      const error = refusal(method, role, context);
      audit.write({ ...entry, outcome: 'refused', error: error.message });
      throw error;
    }
    const result = handler(request, context);
    if (isReadOnly(method)) return result;
    const failed = (error: unknown) => {
      audit.write({ ...entry, outcome: 'failed', error: messageOf(error) });
      throw error;
    };
    return (result as Promise<unknown>).then((value) => {
      audit.write({ ...entry, outcome: 'done' });
      return value;
    }, failed);
  };
}

function refusal(method: Method, role: AdminRole, { caller }: CallContext): MeshError {
  const roles = ADMIN_METHOD_ROLES[method].join(' or ');
  const user = caller.via === 'tls' ? caller.user : 'the owner of the socket';
  if (user === undefined)
    return new MeshError({
      code: 'unauthenticated',
      message: `calling ${method}: it takes a client certificate with the role ${roles}, and none was shown that is valid here`,
      hint: 'issue one with the cluster’s CA (common name operator-NAME or viewer-NAME), or use the unix socket on its host',
    });
  return new MeshError({
    code: 'permission-denied',
    message: `calling ${method} as ${user}: that is ${role === 'anyone' ? 'no role here' : `the role ${role}`}, and it takes ${roles}`,
    hint: 'the common name of the certificate says the role: operator-NAME, viewer-NAME, remote-PEER',
  });
}

/** The fields that say what a call is about. */
function subjectOf(request: unknown): Readonly<Record<string, string>> {
  const fields = request as Readonly<Record<string, unknown>>;
  const named = (value: unknown) => (typeof value === 'string' ? value : (value as { name?: unknown } | null)?.name);
  return Object.fromEntries(
    ['id', 'peer', 'operation'].flatMap((field) => {
      const value = named(fields[field]);
      return typeof value === 'string' && value !== '' ? [[field, value.slice(0, 253)]] : [];
    }),
  );
}
