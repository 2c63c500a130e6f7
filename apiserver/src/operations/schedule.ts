/**
 * What has to be done now and then: repeating jobs in Redis, so that of several replicas each run is done once, by the one that
 * leads. A run that fails is tried again at its next time; each must be safe to run at any time.
 */
import { messageOf } from '@clustermesh/contract';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { Queue, Worker } from 'bullmq';
import { connectForWork } from './redis.ts';
import type { RedisConfig } from './redis-config.ts';

export interface ScheduledTask {
  /** Stable: the name of its schedule in Redis. */
  readonly name: string;
  readonly everyMs: number;
  /** Returns what it has done, for the log; undefined when there was nothing to do. */
  readonly run: () => Promise<string | undefined>;
}

export interface ScheduleOptions {
  readonly redis: RedisConfig;
  readonly tasks: readonly ScheduledTask[];
  /** Whether this replica is the one that does it. */
  readonly mayRun: () => boolean;
  readonly log: Log;
  readonly clock?: Clock | undefined;
}

const NAME = 'schedule';
const CHECK_MS = 500;
const CLOSE_TIMEOUT_MS = 2000;

export function startSchedule(options: ScheduleOptions): { close(): Promise<void> } {
  const log = options.log.child({ subsystem: 'schedule' });
  const clock = options.clock ?? systemClock;
  const stop = new AbortController();
  const tasks = new Map(options.tasks.map((task) => [task.name, task]));
  const { prefix } = options.redis;
  const connection = connectForWork(options.redis);
  // The queue of operations sees the same outage and reports it.
  const silent = () => {};
  connection.on('error', silent);
  const queue = new Queue(NAME, { connection, prefix });
  const worker = new Worker(NAME, async (job) => runTask(job.name), {
    connection,
    prefix,
    concurrency: 1,
    autorun: false,
    removeOnComplete: { count: 10 },
    removeOnFail: { count: 10 },
  });
  queue.on('error', silent);
  worker.on('error', silent);

  async function runTask(name: string): Promise<void> {
    const task = tasks.get(name);
    // Of a release that had other tasks: its schedule goes.
    if (task === undefined) return void (await queue.removeJobScheduler(name));
    try {
      const done = await task.run();
      if (done !== undefined) log.info({ task: name }, done);
    } catch (error) {
      log.warn({ task: name, reason: messageOf(error) }, 'a scheduled task failed; it is tried again at its next time');
    }
  }

  let isScheduled = false;
  /** The schedules are written once by each leader: it may have other intervals than the one before. */
  const follow = async (): Promise<void> => {
    if (!options.mayRun()) {
      isScheduled = false;
      if (worker.isRunning() && !worker.isPaused()) await worker.pause(true);
      return;
    }
    if (!isScheduled)
      for (const { name, everyMs } of tasks.values())
        await queue.upsertJobScheduler(name, { every: everyMs }, { name });
    isScheduled = true;
    if (!worker.isRunning()) worker.run().catch(silent);
    else if (worker.isPaused()) await worker.resume();
  };
  const runner = startRunner({
    run: follow,
    minIntervalMs: 0,
    retryMs: CHECK_MS,
    maxIntervalMs: CHECK_MS,
    signal: stop.signal,
    clock,
    // Redis is away, which the queue of operations tells.
    onError: silent,
  });
  runner.trigger();

  return {
    close: async () => {
      stop.abort();
      // While Redis is away there is nobody to say goodbye to, and BullMQ would wait.
      const closed = Promise.all([runner.ended, worker.close(connection.status !== 'ready'), queue.close()]).catch(
        silent,
      );
      await Promise.race([closed, clock.sleep(CLOSE_TIMEOUT_MS)]);
      connection.endAll();
    },
  };
}
