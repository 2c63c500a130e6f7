/** Redis goes away and does not come back: what was opened on it closes all the same, and nothing tries to reach it any more. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { it } from 'node:test';
import { repoRoot, waitFor } from '@clustermesh/runtime';
import { startRedisServer } from '../testing/redis-server.ts';
import { connectForWork } from './redis.ts';

/** Ends by itself, or not: a connection that is tried again, or a timer, keeps a process alive. */
const PROGRAM = `
  import { createLog } from '@clustermesh/runtime';
  import { openQueue } from './apiserver/src/operations/queue.ts';
  import { startSchedule } from './apiserver/src/operations/schedule.ts';
  const redis = JSON.parse(process.argv[1]);
  const log = createLog('test');
  log.level = 'silent';
  const queue = openQueue({
    redis, log,
    runStep: ({ signal }) => {
      console.log('step');
      return new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('stopped'))));
    },
  });
  const run = async () => void console.log('task');
  const schedule = startSchedule({ redis, log, mayRun: () => true, tasks: [{ name: 'sweep', everyMs: 60_000, run }] });
  while (!(await queue.ping())) await new Promise((resolve) => setTimeout(resolve, 10));
  await queue.add({ kind: 'disconnect', operation: 'disconnect-us-1', peer: 'us' });
  process.stdin.once('data', async () => {
    await Promise.all([queue.close(), schedule.close()]);
    console.log('closed');
    process.stdin.destroy();
  });
`;

it('closes queue and schedule while Redis is away, a step under way, and leaves no connection behind', {
  timeout: 120_000,
}, async (t) => {
  const redis = await startRedisServer();
  t.after(() => redis.stop());
  const args = ['--import', 'tsx', '--input-type=module', '--eval', PROGRAM, JSON.stringify(redis.config)];
  const child = spawn(process.execPath, args, { cwd: repoRoot(), stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const ended = once(child, 'exit');
  const said = new Set<string>();
  const lines = createInterface({ input: child.stdout });
  const heard = (line: string) =>
    new Promise<void>((resolve, reject) => {
      const look = () => said.has(line) && resolve();
      lines.on('line', look);
      void ended.then(() => reject(new Error(`it ended before it said ${line}`)));
      look();
    });
  lines.on('line', (line) => said.add(line));
  await Promise.all([heard('step'), heard('task')]);
  await redis.kill();
  child.stdin.write('close\n');
  await heard('closed');
  const limit = new Promise<[string]>((resolve) => setTimeout(() => resolve(['still running']), 20_000).unref());
  assert.deepEqual((await Promise.race([ended, limit]))[0], 0);
});

it('what waits on a connection that is ended between two attempts is told so', { timeout: 120_000 }, async (t) => {
  const server = await startRedisServer();
  t.after(() => server.stop());
  const redis = connectForWork(server.config);
  redis.on('error', () => {});
  await redis.ping();
  await server.kill();
  const asked = assert.rejects(redis.ping(), /Connection is closed/);
  await waitFor(() => redis.status === 'reconnecting', { what: 'the pause', timeoutMs: 60_000, intervalMs: 1 });
  const said = once(redis, 'end');
  redis.endAll();
  await Promise.all([asked, said]);
});
