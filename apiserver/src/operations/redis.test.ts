import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it, type TestContext } from 'node:test';
import { inspect } from 'node:util';
import { MeshError } from '@clustermesh/contract';
import { createCa, issueClient, issueServer } from '@clustermesh/pki';
import { createLog, type Log, repoRoot, waitFor } from '@clustermesh/runtime';
import { Redis } from 'ioredis';
import { freePort } from '../testing/apiserver-process.ts';
import { type RedisServer, startRedisServer } from '../testing/redis-server.ts';
import { type OperationQueue, openQueue, type QueueOptions } from './queue.ts';
import { type RedisConfig, readRedisCredentials, redisAddress, redisSchema } from './redis-config.ts';
import { startSchedule } from './schedule.ts';

const PASSWORDS: Readonly<Record<string, string>> = { eu: 'sesame-eu-5f2a', us: 'sesame-us-81cc' };
const TIMEOUT_MS = 60_000;

interface Stage {
  readonly redis: RedisServer;
  /** As an apiserver of that cluster is told of it: TLS, its own user, its own prefix. */
  readonly config: (cluster: string) => RedisConfig;
  readonly passwordFile: (cluster: string) => string;
  /** May do everything, through the unix socket. */
  readonly admin: Redis;
  readonly open: (redis: RedisConfig, more?: Partial<QueueOptions>) => OperationQueue;
  /** All that was logged, whole. */
  readonly logged: () => string;
  readonly log: Log;
}

const DEFAULT_USER = /^user default .*\n/;

/** One Redis for two clusters: TLS with client certificates, and the users of deploy/redis/users.acl. */
async function start(t: TestContext): Promise<Stage> {
  const dir = mkdtempSync(join(tmpdir(), 'cm-acl-'));
  const write = (name: string, text: string) => {
    writeFileSync(join(dir, name), text, { mode: 0o600 });
    return join(dir, name);
  };
  const ca = await createCa({ cluster: 'eu' });
  const [server, client] = await Promise.all([issueServer({ ca }), issueClient({ ca, commonName: 'admin-eu' })]);
  const caFile = write('ca.crt', ca.certPem);
  const certFile = write('client.crt', client.certPem);
  const keyFile = write('client.key', client.keyPem);
  // Without its first line, which is the same for all.
  const template = readFileSync(join(repoRoot(), 'deploy/redis/users.acl'), 'utf8');
  const users = Object.entries(PASSWORDS).map(([cluster, password]) =>
    template
      .replace(DEFAULT_USER, '')
      .replace('CLUSTER', cluster)
      .replace('PREFIX', cluster)
      .replace('PASSWORD_SHA256', createHash('sha256').update(password).digest('hex')),
  );
  const port = await freePort();
  const redis = await startRedisServer([
    ...['--bind', '127.0.0.1', '--tls-port', String(port), '--tls-auth-clients', 'yes', '--tls-ca-cert-file', caFile],
    ...['--tls-cert-file', write('server.crt', server.certPem), '--tls-key-file', write('server.key', server.keyPem)],
    ...[
      '--aclfile',
      write('users.acl', `${DEFAULT_USER.exec(template)?.[0]}user root on nopass ~* &* +@all\n${users.join('')}`),
    ],
  ]);
  const admin = new Redis({ path: redis.path, username: 'root', password: 'any' });
  const queues: OperationQueue[] = [];
  const lines: string[] = [];
  const log = createLog('test');
  log.level = 'silent';
  log.child = (() => log) as unknown as Log['child'];
  for (const level of ['info', 'warn', 'error'] as const)
    log[level] = ((...args: unknown[]) => lines.push(`${level} ${inspect(args, { depth: 9 })}`)) as Log['info'];
  t.after(async () => {
    for (const queue of queues) await queue.close();
    admin.disconnect();
    await redis.stop();
    rmSync(dir, { recursive: true });
  });
  const passwordFile = (cluster: string) => join(dir, `${cluster}.password`);
  for (const [cluster, password] of Object.entries(PASSWORDS)) write(`${cluster}.password`, `${password}\n`);
  return {
    ...{ redis, admin, passwordFile, log },
    logged: () => lines.join('\n'),
    config: (cluster) =>
      redisSchema.parse({
        url: `rediss://localhost:${port}`,
        username: `clustermesh-${cluster}`,
        passwordFile: passwordFile(cluster),
        ...{ caFile, certFile, keyFile },
        prefix: cluster,
      }),
    open: (config, more = {}) => {
      const queue = openQueue({ redis: config, log, runStep: async () => ({ message: 'ok' }), lockMs: 1000, ...more });
      queues.push(queue);
      return queue;
    },
  };
}

const job = (operation: string) => ({ kind: 'disconnect' as const, operation, peer: 'us' });

const ended = (queue: OperationQueue, operation: string) =>
  waitFor(
    async () => {
      const snapshot = await queue.snapshot(operation);
      return snapshot?.steps.every((step) => step.state === 'done' || step.state === 'failed') ? snapshot : undefined;
    },
    { what: `the end of ${operation}`, timeoutMs: TIMEOUT_MS },
  );

it('operations and schedule run over TLS as a user that may do no more than they need', async (t) => {
  const stage = await start(t);
  let tries = 0;
  const queue = stage.open(stage.config('eu'), {
    runStep: async ({ data, signal }) => {
      if (data.operation === 'disconnect-us-2')
        return new Promise((_, reject) =>
          signal.addEventListener('abort', () =>
            reject(new MeshError({ code: 'cancelled', message: 'stopped', retryable: false })),
          ),
        );
      if (++tries === 1) throw new MeshError({ code: 'unreachable', message: 'not there' });
      return { message: 'ok' };
    },
  });
  await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: TIMEOUT_MS });
  await queue.add(job('disconnect-us-1'));
  assert.ok((await ended(queue, 'disconnect-us-1')).steps.every((step) => step.state === 'done'));
  assert.equal(tries, 4, 'a step was tried again');
  await queue.add(job('disconnect-us-2'));
  await waitFor(async () => (await queue.snapshot('disconnect-us-2'))?.steps[0]?.state === 'active', {
    what: 'the step',
    timeoutMs: TIMEOUT_MS,
  });
  await queue.cancel('disconnect-us-2');
  assert.equal((await ended(queue, 'disconnect-us-2')).steps[0]?.failure?.code, 'cancelled');
  assert.equal((await queue.list()).length, 2);
  assert.deepEqual(await queue.running(), []);

  let runs = 0;
  const run = async () => {
    runs++;
    return undefined;
  };
  const schedule = startSchedule({
    redis: stage.config('eu'),
    log: stage.log,
    mayRun: () => true,
    tasks: [{ name: 'sweep', everyMs: 200, run }],
  });
  t.after(schedule.close);
  await waitFor(() => runs > 1, { what: 'two runs of the schedule', timeoutMs: TIMEOUT_MS });

  // Refused commands that somebody caught would show here.
  assert.deepEqual(await stage.admin.call('ACL', 'LOG'), []);
  assert.equal(stage.logged(), '');
});

it("a user of one prefix can neither read, nor write, nor see another's", async (t) => {
  const stage = await start(t);
  const queue = stage.open(stage.config('eu'));
  await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: TIMEOUT_MS });
  await queue.add(job('disconnect-us-1'));
  await ended(queue, 'disconnect-us-1');
  const key = (await stage.admin.keys('eu:*')).find((candidate) => candidate.endsWith('disconnect-us-1.revoke-peer'));
  assert.ok(key !== undefined, 'the job is there');

  const us = stage.config('us');
  const stranger = new Redis({ ...redisAddress(us), ...readRedisCredentials(us), disableClientInfo: true });
  t.after(() => stranger.disconnect());
  await stranger.set('us:own', '1');
  assert.equal(await stranger.get('us:own'), '1', 'its own it can use');
  for (const attempt of [
    () => stranger.hgetall(key),
    () => stranger.del(key),
    () => stranger.rename('us:own', key),
    () => stranger.eval('return redis.call("HGETALL", KEYS[1])', 1, key),
    () => stranger.eval(`return redis.call("HGETALL", "${key}")`, 0),
    () => stranger.keys('*'),
    () => stranger.scan('0'),
    () => stranger.flushall(),
    () => stranger.config('GET', 'dir'),
    () => stranger.publish('eu', 'x'),
  ])
    await assert.rejects(attempt, /NOPERM|The user executing the script can't access/, String(attempt));

  const intruder = stage.open({ ...us, prefix: 'eu' });
  const refused = (error: unknown) =>
    MeshError.from(error, '').code === 'redis-unreachable' &&
    /Redis at rediss:\/\/localhost:\d+ refuses user clustermesh-us \(.*(NOPERM|executing the script)/.test(
      String(error),
    );
  await waitFor(() => intruder.running().then(() => true, refused), { what: 'the refusal', timeoutMs: TIMEOUT_MS });
  await assert.rejects(intruder.running(), refused);
});

it('a wrong password is told without the password, operations wait, and go on when the file is mended', async (t) => {
  const stage = await start(t);
  const wrong = 'not-the-sesame-77';
  writeFileSync(stage.passwordFile('eu'), wrong);
  const queue = stage.open(stage.config('eu'));
  const error = await waitFor(
    () =>
      queue.running().then(
        () => undefined,
        (reason: MeshError) => (/WRONGPASS/.test(reason.message) ? reason : undefined),
      ),
    { what: 'the refusal', timeoutMs: TIMEOUT_MS },
  );
  assert.equal(error.code, 'redis-unreachable');
  assert.match(error.message, /listing operations: Redis at rediss:.* refuses user clustermesh-eu \(WRONGPASS/);
  assert.match(error.hint ?? '', /redis\.passwordFile/);
  assert.match(stage.logged(), /WRONGPASS/);

  writeFileSync(stage.passwordFile('eu'), PASSWORDS['eu']!);
  await waitFor(() => queue.ping(), { what: 'the login', timeoutMs: TIMEOUT_MS });
  await queue.add(job('disconnect-us-1'));
  await ended(queue, 'disconnect-us-1');
  const said = `${stage.logged()} ${inspect(error, { depth: 9 })}`;
  assert.ok(!said.includes(wrong) && !said.includes(PASSWORDS['eu']!), said);
});

it('operations outlive a restart of Redis, whose default user nobody can be', async (t) => {
  const stage = await start(t);
  const config = stage.config('eu');
  const queue = stage.open(config, { mayRun: () => false });
  await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: TIMEOUT_MS });
  await queue.add(job('disconnect-us-1'));
  // What it reads back runs as the default user: without its rights, every transaction would be left out.
  await stage.redis.kill();
  await stage.redis.start();
  await waitFor(() => queue.ping(), { what: 'Redis again', timeoutMs: TIMEOUT_MS });
  assert.deepEqual(
    (await queue.snapshot('disconnect-us-1'))?.steps.map(({ state }) => state),
    ['waiting', 'pending', 'pending'],
  );
  const stranger = createConnection(stage.redis.path);
  t.after(() => stranger.destroy());
  let answers = '';
  stranger.on('data', (data) => {
    answers += data.toString();
  });
  stranger.write('KEYS *\r\nAUTH default any\r\nKEYS *\r\n');
  await waitFor(() => answers.split('\r\n').length > 3, { what: 'three answers', timeoutMs: TIMEOUT_MS });
  assert.match(answers, /^-NOAUTH .*\r\n-WRONGPASS .*\r\n-NOAUTH .*\r\n$/);
});

it('bad settings are named, and no password is taken from a URL', () => {
  const problems = (raw: unknown) =>
    redisSchema.safeParse(raw).error?.issues.map((issue) => issue.path.join('.')) ?? [];
  assert.deepEqual(problems({}), ['path']);
  assert.deepEqual(problems({ path: '/r', url: 'redis://h:1' }), ['path']);
  assert.deepEqual(problems({ url: 'redis://u:secret@h:1' }), ['url']);
  assert.deepEqual(problems({ url: 'http://h' }), ['url']);
  assert.deepEqual(problems({ url: 'redis://h', caFile: '/ca' }), ['caFile']);
  assert.deepEqual(problems({ url: 'rediss://h', certFile: '/c' }), ['certFile']);
  assert.deepEqual(problems({ url: 'rediss://h', username: 'u' }), ['username']);
  assert.deepEqual(problems({ path: '/r', prefix: 'a*' }), ['prefix']);
  assert.ok(!JSON.stringify(redisSchema.safeParse({ url: 'redis://u:secret@h:1' }).error).includes('secret'));
  assert.deepEqual(redisAddress(redisSchema.parse({ url: 'rediss://[::1]/2' })), { host: '::1', port: 6379, db: 2 });
  assert.throws(
    () => readRedisCredentials(redisSchema.parse({ path: '/r', passwordFile: '/nowhere' })),
    /redis\.passwordFile cannot be read.*ENOENT/,
  );
});
