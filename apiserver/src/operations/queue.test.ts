import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import { MeshError } from '@clustermesh/contract';
import { createLog, type Log, waitFor } from '@clustermesh/runtime';
import { type RedisServer, startRedisServer } from '../testing/redis-server.ts';
import type { JobData, StepResult } from './model.ts';
import { type OperationQueue, openQueue, type QueueOptions, type StepRun } from './queue.ts';

const job = (operation: string): JobData => ({ kind: 'disconnect', operation, peer: 'us' });

/** A log that remembers its lines. */
function recordingLog(): Log & { readonly lines: string[] } {
  const lines: string[] = [];
  const log = createLog('test');
  log.level = 'silent';
  for (const level of ['info', 'warn', 'error'] as const)
    log[level] = ((...args: unknown[]) => lines.push(`${level} ${String(args.at(-1))}`)) as Log['info'];
  return Object.assign(log, { lines });
}

async function start(
  t: TestContext,
  runStep: (run: StepRun) => Promise<StepResult>,
  more: Partial<QueueOptions> = {},
): Promise<{
  redis: RedisServer;
  queue: OperationQueue;
  log: Log & { lines: string[] };
  again: (runStep: (run: StepRun) => Promise<StepResult>, more?: Partial<QueueOptions>) => OperationQueue;
}> {
  const redis = await startRedisServer();
  const log = recordingLog();
  const queues: OperationQueue[] = [];
  const again = (steps: (run: StepRun) => Promise<StepResult>, others = more) => {
    const queue = openQueue({ redis: redis.config, log, runStep: steps, lockMs: 1000, ...others });
    queues.push(queue);
    return queue;
  };
  t.after(async () => {
    for (const queue of queues) await queue.close();
    await redis.stop();
  });
  const queue = again(runStep);
  await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: 5000 });
  return { redis, queue, log, again };
}

const finished = (queue: OperationQueue, operation: string) =>
  waitFor(
    async () => {
      const snapshot = await queue.snapshot(operation);
      return snapshot?.steps.every((step) => step.state === 'done' || step.state === 'failed') ? snapshot : undefined;
    },
    { what: `the end of ${operation}`, timeoutMs: 15_000 },
  );

describe('the queue of operations', () => {
  it('runs the steps in order, one after the other', async (t) => {
    const ran: string[] = [];
    const { queue } = await start(t, async ({ step }) => {
      ran.push(`+${step}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
      ran.push(`-${step}`);
      return { message: step };
    });
    await queue.add(job('disconnect-us-1'));
    const snapshot = await finished(queue, 'disconnect-us-1');
    assert.deepEqual(ran, [
      '+remove-config',
      '-remove-config',
      '+revoke-peer',
      '-revoke-peer',
      '+await-drained',
      '-await-drained',
    ]);
    assert.deepEqual(
      snapshot.steps.map((step) => step.message),
      ['remove-config', 'revoke-peer', 'await-drained'],
    );
    assert.equal(await queue.snapshot('disconnect-us-2'), undefined);
    assert.deepEqual(await queue.running(), []);
  });

  it('tries again what may help, and gives up at once on what cannot', async (t) => {
    let tries = 0;
    const { queue } = await start(t, async ({ step }) => {
      tries++;
      if (step === 'remove-config' && tries < 3) throw new MeshError({ code: 'unreachable', message: 'not there' });
      if (step === 'revoke-peer') throw new MeshError({ code: 'conflict', message: 'no', hint: 'never' });
      return { message: 'ok' };
    });
    await queue.add(job('disconnect-us-1'));
    const snapshot = await finished(queue, 'disconnect-us-1');
    assert.deepEqual(
      snapshot.steps.map((step) => step.state),
      ['done', 'failed', 'failed'],
    );
    assert.deepEqual(snapshot.steps[1]?.failure, { code: 'conflict', message: 'no', hint: 'never' });
    assert.equal(tries, 4);
    assert.deepEqual(await queue.running(), []);
  });

  it('gives up after the last attempt with the last reason', async (t) => {
    const { queue } = await start(
      t,
      () => Promise.reject(new MeshError({ code: 'unreachable', message: 'not there' })),
      { attempts: 2 },
    );
    await queue.add(job('disconnect-us-1'));
    const snapshot = await finished(queue, 'disconnect-us-1');
    assert.equal(snapshot.steps[0]?.failure?.code, 'unreachable');
  });

  it('hands a running step over when its process stops, without delay', async (t) => {
    const { queue, again } = await start(
      t,
      ({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('stopped')))),
    );
    await queue.add(job('disconnect-us-1'));
    await waitFor(async () => (await queue.snapshot('disconnect-us-1'))?.steps[0]?.state === 'active', {
      what: 'the step',
      timeoutMs: 5000,
    });
    const startedAt = performance.now();
    await queue.close();
    assert.ok(performance.now() - startedAt < 10_000, 'closes without waiting for the step');
    const next = again(async () => ({ message: 'ok' }));
    await waitFor(() => next.ping(), { what: 'Redis', timeoutMs: 5000 });
    await finished(next, 'disconnect-us-1');
  });

  it('says that Redis is away instead of hanging, once in the log, and goes on by itself', async (t) => {
    let allowed = false;
    const { redis, queue, log } = await start(t, async () => {
      await waitFor(() => allowed, { what: 'permission', timeoutMs: 20_000 });
      return { message: 'ok' };
    });
    await queue.add(job('disconnect-us-1'));
    await redis.kill();
    const startedAt = performance.now();
    await assert.rejects(queue.add(job('disconnect-us-2')), (error: MeshError) => {
      assert.equal(error.code, 'redis-unreachable');
      assert.match(error.message, /starting the disconnect of us: Redis at .*r\.sock is unreachable/);
      assert.match(error.hint ?? '', /operations wait/);
      return true;
    });
    await assert.rejects(queue.snapshot('disconnect-us-1'), /Redis at .* is unreachable/);
    assert.equal(await queue.ping(), false);
    assert.ok(performance.now() - startedAt < 10_000, 'answers');
    // Long enough for many attempts to reconnect.
    await new Promise((resolve) => setTimeout(resolve, 1500));
    assert.equal(log.lines.filter((line) => line.startsWith('warn')).length, 1, log.lines.join('\n'));
    allowed = true;
    await redis.start();
    await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: 5000 });
    const snapshot = await finished(queue, 'disconnect-us-1');
    assert.ok(snapshot.steps.every((step) => step.state === 'done'));
    await queue.add(job('disconnect-us-3'));
    await finished(queue, 'disconnect-us-3');
    assert.ok(log.lines.includes('info redis is reachable again: operations go on'), log.lines.join('\n'));
  });

  it('may be opened before Redis is there, and closed while it is away', async (t) => {
    const { redis, again } = await start(t, async () => ({ message: 'ok' }));
    await redis.kill();
    const queue = again(async () => ({ message: 'ok' }));
    await assert.rejects(queue.running(), /Redis at .* is unreachable/);
    const away = again(async () => ({ message: 'ok' }));
    const startedAt = performance.now();
    await away.close();
    assert.ok(performance.now() - startedAt < 3000, `closing took ${performance.now() - startedAt} ms`);
    await redis.start();
    await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: 5000 });
    await queue.add(job('disconnect-us-1'));
    await finished(queue, 'disconnect-us-1');
  });

  it('answers within seconds when Redis hangs', async (t) => {
    const { redis, queue } = await start(t, async () => ({ message: 'ok' }));
    redis.pause();
    const startedAt = performance.now();
    await assert.rejects(queue.running(), (error: MeshError) => error.code === 'redis-unreachable');
    assert.ok(performance.now() - startedAt < 5000);
    redis.resume();
    await waitFor(() => queue.ping(), { what: 'Redis', timeoutMs: 10_000 });
    await queue.add(job('disconnect-us-1'));
    await finished(queue, 'disconnect-us-1');
  });

  it('cancels a running step, and one that waits for its next attempt', async (t) => {
    let reached = false;
    const { queue } = await start(t, ({ data, signal }) => {
      if (data.operation === 'disconnect-us-2')
        return Promise.reject(new MeshError({ code: 'unreachable', message: 'not there' }));
      reached = true;
      return new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('stopped'))));
    });
    await queue.add(job('disconnect-us-1'));
    await waitFor(() => reached, { what: 'the step', timeoutMs: 5000 });
    await queue.cancel('disconnect-us-1');
    assert.equal((await finished(queue, 'disconnect-us-1')).steps[0]?.failure?.code, 'cancelled');

    await queue.add(job('disconnect-us-2'));
    await waitFor(async () => /attempt 2/.test((await queue.snapshot('disconnect-us-2'))?.steps[0]?.message ?? ''), {
      what: 'the second attempt',
      timeoutMs: 5000,
    });
    await queue.cancel('disconnect-us-2');
    assert.equal((await finished(queue, 'disconnect-us-2')).steps[0]?.failure?.code, 'cancelled');
  });

  it('runs steps only where it may, and hands a running one to whoever may next', async (t) => {
    let leader = 'a';
    const ranBy: string[] = [];
    const slow =
      (name: string) =>
      ({ signal, step }: StepRun): Promise<StepResult> => {
        ranBy.push(`${name} ${step}`);
        if (name === 'b') return Promise.resolve({ message: 'ok' });
        return new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('deposed'))));
      };
    const { queue, again } = await start(t, slow('a'), { mayRun: () => leader === 'a' });
    again(slow('b'), { mayRun: () => leader === 'b' });
    await queue.add(job('disconnect-us-1'));
    await waitFor(() => ranBy.length > 0, { what: 'the first step', timeoutMs: 10_000 });
    leader = 'b';
    await finished(queue, 'disconnect-us-1');
    assert.deepEqual(ranBy, ['a remove-config', 'b remove-config', 'b revoke-peer', 'b await-drained']);
  });

  it('takes back what a step began that failed for good, and not what was overtaken', async (t) => {
    const takenBack: string[] = [];
    const { queue } = await start(
      t,
      ({ data, signal }) =>
        data.operation === 'disconnect-us-1'
          ? Promise.reject(new MeshError({ code: 'conflict', message: 'no' }))
          : new Promise((_, reject) => signal.addEventListener('abort', () => reject(new Error('stopped')))),
      { takeBack: async (data, step) => void takenBack.push(`${data.operation} ${step}`) },
    );
    await queue.add(job('disconnect-us-1'));
    await finished(queue, 'disconnect-us-1');
    assert.deepEqual(takenBack, ['disconnect-us-1 remove-config']);
    await queue.add(job('disconnect-us-2'));
    await waitFor(async () => (await queue.snapshot('disconnect-us-2'))?.steps[0]?.state === 'active', {
      what: 'the step',
      timeoutMs: 5000,
    });
    await queue.cancel('disconnect-us-2');
    await finished(queue, 'disconnect-us-2');
    assert.equal(takenBack.length, 1);
    const [newest, oldest] = await queue.list();
    assert.deepEqual([newest?.id, oldest?.id], ['disconnect-us-2', 'disconnect-us-1']);
    assert.equal((await queue.data('disconnect-us-1'))?.peer, 'us');
    assert.equal(await queue.data('disconnect-us-9'), undefined);
  });
});
