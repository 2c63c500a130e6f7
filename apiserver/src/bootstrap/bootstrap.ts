/**
 * Brings users, roles and auth of the local etcd to what they should be, and keeps them there: at the start, whenever users.yaml
 * changes, after every wipe. Auth is enabled last; only then the marker is written that every writer's transactions ask for,
 * so that no data is ever in an etcd that anybody may write to.
 */
import { dirname } from 'node:path';
import { BOOTSTRAP_KEY, MeshError, messageOf } from '@clustermesh/contract';
import type { Compare, Etcd } from '@clustermesh/kvstore';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import type { AuthMode } from '../gate/config.ts';
import { countRuns, type KvstoreMetrics } from '../kvstore-metrics.ts';
import type { EtcdView, UserDirectory } from '../ports.ts';
import { watchedDirectory } from '../watched-dir.ts';
import { type AuthActual, type AuthStep, desiredAuth, type PeerAccess, planAuth, REMOTE_USER_PREFIX } from './plan.ts';
import { editUsersFile, readUsersFile, type UsersRead } from './users.ts';

export interface BootstrapOptions {
  readonly etcd: Etcd;
  readonly cluster: string;
  readonly nodes: readonly string[];
  readonly usersFile: string;
  readonly authMode?: AuthMode;
  readonly peerAccess?: PeerAccess;
  readonly metrics?: KvstoreMetrics | undefined;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

export interface Bootstrap extends UserDirectory, EtcdView {
  /** The etcd that answers now has its users, roles and auth. */
  ready(): boolean;
  problems(): readonly string[];
  /** To be part of every transaction of this process: holds only in an etcd that has been bootstrapped. */
  fence(): readonly Compare[];
  /** Milliseconds from the start to the first time that it was ready. */
  tookMs(): number | undefined;
  readonly ended: Promise<void>;
}

const MARKER = '1';
/** A quick look at the marker tells a wiped etcd; it is also what notices that etcd is gone or back. */
const CHECK_MS = 2_000;
/** Somebody may change users or roles by hand: compared whole this often. */
const FULL_COMPARE_MS = 60_000;

export async function readAuth(etcd: Etcd): Promise<AuthActual> {
  const users = new Map<string, readonly string[]>();
  for (const user of await etcd.auth.listUsers()) users.set(user, await etcd.auth.userRoles(user));
  const roles = new Map<string, Awaited<ReturnType<typeof etcd.auth.listPermissions>>>();
  for (const role of await etcd.auth.listRoles()) roles.set(role, await etcd.auth.listPermissions(role));
  return { users, roles };
}

async function apply(etcd: Etcd, step: AuthStep): Promise<void> {
  const { auth } = etcd;
  switch (step.do) {
    case 'addRole':
      return auth.addRole(step.role);
    case 'deleteRole':
      return auth.deleteRole(step.role);
    case 'addUser':
      return auth.addUser(step.user);
    case 'deleteUser':
      return auth.deleteUser(step.user);
    case 'grantRole':
      return auth.grantRole(step.user, step.role);
    case 'revokeRole':
      return auth.revokeRole(step.user, step.role);
    case 'grantPermission':
      return auth.grantPermission(step.role, step.grant.permission, step.grant.key, step.grant.scope);
    case 'revokePermission':
      return auth.revokePermission(step.role, step.grant.key, step.grant.scope);
  }
}

export function startBootstrap(options: BootstrapOptions): Bootstrap {
  const { etcd, usersFile, authMode, peerAccess } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'bootstrap' });
  const startedAt = clock.nowMs();

  let users: readonly string[] | undefined;
  let problems: readonly string[] = [];
  let doneFor: { readonly epoch: number; readonly inputs: string; readonly atMs: number } | undefined;
  let isReady = false;
  let tookMs: number | undefined;
  let lastError = '';

  const readFile = (): UsersRead => {
    try {
      directory.arm();
    } catch (error) {
      return { users: undefined, problems: [messageOf(error)] };
    }
    const result = readUsersFile(usersFile);
    // Before the first peer there is no file.
    if (result.isMissing !== true || users === undefined || users.length === 0) return result;
    return {
      users: undefined,
      problems: [`${usersFile} is missing; the users it named last keep their access: ${users.join(', ')}`],
    };
  };

  /** A missing or malformed file keeps the users it named last. */
  const readUsers = () => {
    const result = readFile();
    const fresh = result.problems.filter((problem) => !problems.includes(problem));
    for (const problem of fresh) log.warn(problem);
    problems = result.problems;
    users = result.users ?? users;
  };

  const pass = async () => {
    readUsers();
    const input = { cluster: options.cluster, nodes: options.nodes, remoteUsers: users, authMode, peerAccess };
    const inputs = JSON.stringify(input);
    const marker = await etcd.get(BOOTSTRAP_KEY);
    const isMarked = marker?.value.toString() === MARKER;
    if (!isMarked) isReady = false;
    const isFresh =
      doneFor !== undefined &&
      doneFor.epoch === etcd.epoch &&
      doneFor.inputs === inputs &&
      clock.nowMs() - doneFor.atMs < FULL_COMPARE_MS;
    if (!(isMarked && isFresh)) {
      await compareAll(input, isMarked);
      doneFor = { epoch: etcd.epoch, inputs, atMs: clock.nowMs() };
    }
    if (lastError !== '') log.info('etcd answers again');
    lastError = '';
  };

  const compareAll = async (input: Parameters<typeof desiredAuth>[0], isMarked: boolean) => {
    const actual = await readAuth(etcd);
    // Nothing has named them yet: those that are there stay, and are known when the file is written.
    users ??= [...actual.users.keys()].filter((user) => user.startsWith(REMOTE_USER_PREFIX));
    const steps = planAuth(desiredAuth(input), actual);
    for (const step of steps) {
      log.debug({ ...step }, 'changing etcd users and roles');
      await apply(etcd, step);
    }
    if (steps.length > 0) log.info({ steps: steps.length }, 'etcd users and roles changed');
    if (!(await etcd.auth.isEnabled())) {
      await etcd.auth.enable();
      log.info('etcd auth enabled');
    }
    if (!isMarked) await etcd.put(BOOTSTRAP_KEY, MARKER);
    isReady = true;
    tookMs ??= clock.nowMs() - startedAt;
  };

  /**
   * Passes and changes of single users exclude each other: a pass that began before a user was named takes it for a leftover, and one that
   * began before a user was struck out makes it again.
   */
  let busy: Promise<unknown> = Promise.resolve();
  const alone = <T>(act: () => Promise<T>): Promise<T> => {
    const run = busy.then(act);
    busy = run.catch(() => {});
    return run;
  };

  const runner = startRunner({
    run: countRuns(options.metrics, 'clustermesh-users-management', () => alone(pass)),
    minIntervalMs: 50,
    retryMs: 200,
    maxIntervalMs: CHECK_MS,
    signal: options.signal,
    clock,
    onError: (error) => {
      const message = messageOf(error);
      if (message !== lastError) log.warn({ reason: message }, 'bootstrap waits for etcd');
      lastError = message;
    },
  });
  const directory = watchedDirectory(dirname(usersFile), runner.trigger, options.signal);
  etcd.onEvent((event) => event.type === 'connected' && runner.trigger());
  runner.trigger();

  return {
    ready: () => isReady,
    problems: () => problems,
    fence: () => [{ key: BOOTSTRAP_KEY, value: MARKER }],
    tookMs: () => tookMs,
    connected: () => etcd.connected && lastError === '',
    lastError: () => lastError,
    ended: runner.ended,
    async addPeer(peer) {
      const user = `${REMOTE_USER_PREFIX}${peer}`;
      if (authMode === 'legacy')
        throw new MeshError({
          code: 'invalid-config',
          message: `adding etcd user ${user}: with authMode legacy all peers share the user "remote"`,
          hint: 'set authMode: migration in apiserver.yaml (and gate.yaml) to give each peer its own, revocable user',
        });
      editUsersFile(usersFile, user, 'add', users);
      readUsers();
      // The gate reads the file by itself.
      if (peerAccess === 'gate') return;
      if (!isReady) throw notReady(`adding etcd user ${user}`, lastError);
      await alone(async () => {
        await etcd.auth.addUser(user);
        await etcd.auth.grantRole(user, 'remote');
      });
    },
    async removePeer(peer) {
      const user = `${REMOTE_USER_PREFIX}${peer}`;
      editUsersFile(usersFile, user, 'remove', users);
      readUsers();
      runner.trigger();
      // The file is the truth: when etcd does not answer now, the next pass removes the user.
      await alone(() => etcd.auth.deleteUser(user)).catch((error) =>
        log.warn({ user, reason: messageOf(error) }, 'user not removed from etcd yet'),
      );
    },
  };
}

function notReady(attempted: string, why: string): MeshError {
  return new MeshError({
    code: 'etcd-unreachable',
    message: `${attempted}: this cluster's etcd is not ready${why === '' ? '' : ` (${why})`}`,
    hint: 'users.yaml has been written; the user follows by itself when etcd is back',
    retryable: true,
  });
}
