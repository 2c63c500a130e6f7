/** users.yaml: the durable truth of which peers may read this cluster's etcd. Cilium's format: `users: [{name, role}]`. */
import { readFileSync } from 'node:fs';
import { clusterNameProblem, MeshError, messageOf } from '@clustermesh/contract';
import { atomicWrite } from '@clustermesh/runtime';
import { isSeq, parse, parseDocument, stringify } from 'yaml';
import { z } from 'zod';
import { REMOTE_USER_PREFIX } from './plan.ts';

const fileSchema = z.looseObject({
  users: z
    .array(z.looseObject({ name: z.string(), role: z.string() }))
    .nullish()
    .transform((value) => value ?? []),
});

export interface UsersRead {
  /** Undefined: the file is missing or malformed and says nothing. */
  readonly users: readonly string[] | undefined;
  readonly isMissing?: boolean;
  readonly problems: readonly string[];
}

/** Only `remote-<cluster>` with role `remote` is taken: the file must not be a way to more rights. */
export function parseUsers(file: string, text: string): UsersRead {
  let raw: unknown;
  try {
    raw = parse(text) ?? {};
  } catch (error) {
    return { users: undefined, problems: [`${file} is not YAML: ${messageOf(error)}`] };
  }
  const parsed = fileSchema.safeParse(raw);
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `${issue.path.join('.') || '(file)'}: ${issue.message}`);
    return { users: undefined, problems: [`${file} is invalid: ${issues.join('; ')}`] };
  }
  const users = new Set<string>();
  const problems: string[] = [];
  parsed.data.users.forEach(({ name, role }, index) => {
    const cluster = name.startsWith(REMOTE_USER_PREFIX) ? name.slice(REMOTE_USER_PREFIX.length) : '';
    if (clusterNameProblem(cluster) !== undefined)
      problems.push(`${file}: users.${index}: ${JSON.stringify(name)} is not remote-<cluster>, ignored`);
    else if (role !== 'remote')
      problems.push(`${file}: users.${index}: role ${JSON.stringify(role)} of ${name} is not "remote", ignored`);
    else users.add(name);
  });
  return { users: [...users].sort(), problems };
}

/** A missing file says nothing: that all peers were disconnected is an empty list in it. */
export function readUsersFile(file: string): UsersRead {
  try {
    return parseUsers(file, readFileSync(file, 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { users: undefined, problems: [], isMissing: true };
    return { users: undefined, problems: [`${file} cannot be read: ${messageOf(error)}`] };
  }
}

/** Clusters that the file lets in. */
export const admittedPeers = (file: string): string[] =>
  (readUsersFile(file).users ?? []).map((user) => user.slice(REMOTE_USER_PREFIX.length));

/**
 * Changes the file for one user and leaves everything else in it, comments included, as it is. A missing one is made with the users
 * `known` so far. Returns whether it changed.
 */
export function editUsersFile(
  file: string,
  user: string,
  action: 'add' | 'remove',
  known: readonly string[] = [],
): boolean {
  const current = readUsersFile(file);
  if (current.users === undefined && current.isMissing !== true) {
    throw new MeshError({
      code: 'invalid-config',
      message: `${action === 'add' ? 'adding' : 'removing'} user ${user}: ${current.problems.join('; ')}`,
      hint: 'mend the file; it is not overwritten while it is unreadable',
    });
  }
  if ((current.users ?? known).includes(user) === (action === 'add')) return false;
  const text =
    current.isMissing === true
      ? stringify({ users: known.map((name) => ({ name, role: 'remote' })) })
      : readFileSync(file, 'utf8');
  const document = parseDocument(text.trim() === '' ? 'users: []\n' : text);
  if (!isSeq(document.get('users'))) document.set('users', document.createNode([]));
  const users = document.get('users');
  if (!isSeq(users)) throw new MeshError({ code: 'internal', message: `editing ${file}: users is no list` });
  users.flow = false;
  if (action === 'add') users.add(document.createNode({ name: user, role: 'remote' }));
  else users.items = users.items.filter((item) => (item as { get?(key: string): unknown }).get?.('name') !== user);
  if (users.items.length === 0) users.flow = true;
  atomicWrite(file, document.toString(), 0o600);
  return true;
}
