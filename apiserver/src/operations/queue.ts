/**
 * Operations in BullMQ: one flow per operation, its steps chained as children, so that Redis holds what is to be done and a
 * killed apiserver goes on where it was.
 *
 *   await-sync ◄── install-credentials ◄── authorize-peer        (a child runs before its parent)
 */
import { MeshError } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import { DelayedError, type FlowJobNode, FlowProducer, Queue, UnrecoverableError, Worker } from 'bullmq';
import { listOperations, readOperation, readSteps, type StepJob, unfinishedOperations } from './job-records.ts';
import {
  encodeFailure,
  type JobData,
  jobId,
  kindOf,
  type OperationSnapshot,
  STEPS,
  type StepName,
  type StepResult,
} from './model.ts';
import {
  COMMAND_TIMEOUT_MS,
  connectForCommands,
  connectForWork,
  createErrorLimiter,
  redisUnreachable,
} from './redis.ts';
import type { RedisConfig } from './redis-config.ts';

export interface StepRun {
  readonly step: StepName;
  readonly data: JobData;
  /** Aborted on cancellation and when this process stops. */
  readonly signal: AbortSignal;
  readonly report: (message: string) => void;
}

export interface QueueOptions {
  readonly redis: RedisConfig;
  readonly log: Log;
  readonly runStep: (run: StepRun) => Promise<StepResult>;
  /** Called once a step has failed for good; killed meanwhile, the step runs, fails and calls it again. */
  readonly takeBack?: ((data: JobData, step: StepName) => Promise<void>) | undefined;
  /** Whether this process is the one that runs steps: of several on one Redis only the leader does. Default: always. */
  readonly mayRun?: (() => boolean) | undefined;
  /** A killed worker's step is taken up again this long after its last sign of life, plus one check interval. Default 5 s. */
  readonly lockMs?: number | undefined;
  readonly attempts?: number | undefined;
}

export interface OperationQueue {
  /** Whether Redis answers right now. */
  ping(): Promise<boolean>;
  add(data: JobData): Promise<void>;
  /** Undefined when Redis knows no such operation. */
  snapshot(operation: string): Promise<OperationSnapshot | undefined>;
  /** The newest first. */
  list(): Promise<readonly OperationSnapshot[]>;
  /** What an operation was started with; undefined when Redis knows none of that name. */
  data(operation: string): Promise<JobData | undefined>;
  /** Operations that have neither ended nor been cancelled. */
  running(): Promise<readonly JobData[]>;
  cancel(operation: string): Promise<void>;
  /** Called when a step made progress or ended. Returns the function that stops listening. */
  onActivity(listener: () => void): () => void;
  close(): Promise<void>;
}

const NAME = 'operations';
const FIRST_RETRY_MS = 500;
/** 0.5 + 1 + 2 + 4 s between them: long enough for a restart, short enough for someone who waits for an answer. */
const ATTEMPTS = 5;
const KEEP = { age: 7 * 86_400, count: 1000 };
const CLOSE_TIMEOUT_MS = 2000;
const LEADERSHIP_CHECK_MS = 200;
/** Why a step is interrupted that the next leader is to run. */
const STANDING_BY = Symbol('standing by');
/** Waiting steps hold a slot, so there must be more slots than peers that are being connected at one time. */
const CONCURRENCY = 64;

export function openQueue(options: QueueOptions): OperationQueue {
  const { log, redis } = options;
  const { prefix } = redis;
  const commands = connectForCommands(redis);
  const work = connectForWork(redis);
  const errors = createErrorLimiter(log);
  const listeners = new Set<() => void>();
  const active = new Map<string, AbortController>();
  let closing = false;
  let producers: { readonly queue: Queue<StepJob>; readonly flows: FlowProducer } | undefined;

  const changed = () => {
    for (const listener of listeners) listener();
  };
  /** Why the last attempt to connect failed. */
  let lastError: Error | undefined;
  commands.on('error', (error) => {
    lastError = error;
    errors.report(error, 'redis is unreachable or refuses us: operations wait');
  });
  commands.on('ready', () => {
    lastError = undefined;
    errors.recovered();
    changed();
  });
  commands.on('close', changed);
  work.on('error', () => {}); // `commands` sees the same outage and reports it

  /** BullMQ's objects are unusable for ever if Redis leaves while they introduce themselves: then they are made anew. */
  async function connected(attempted: string): Promise<NonNullable<typeof producers>> {
    if (commands.status !== 'ready') throw redisUnreachable(attempted, redis, lastError);
    if (producers !== undefined) return producers;
    const queue = new Queue<StepJob>(NAME, { connection: commands, prefix });
    const flows = new FlowProducer({ connection: commands, prefix });
    const onError = (error: Error) => errors.report(error, 'redis: a command failed');
    queue.on('error', onError);
    flows.on('error', onError);
    await Promise.all([queue.waitUntilReady(), flows.waitUntilReady()]);
    producers = { queue, flows };
    return producers;
  }

  async function ask<T>(attempted: string, use: (with_: NonNullable<typeof producers>) => Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(redisUnreachable(attempted, redis, `no answer within ${COMMAND_TIMEOUT_MS / 1000} s`)),
        COMMAND_TIMEOUT_MS + 500,
      );
    });
    try {
      return await Promise.race([connected(attempted).then(use), late]);
    } catch (error) {
      // A TypeError is a fault of ours; what else BullMQ and ioredis throw means that Redis is away, starting or read-only.
      throw error instanceof MeshError || error instanceof TypeError
        ? error
        : redisUnreachable(attempted, redis, error);
    } finally {
      clearTimeout(timer);
    }
  }

  const worker = new Worker<JobData, StepResult>(NAME, (job, token) => processJob(job, token), {
    connection: work,
    prefix,
    concurrency: CONCURRENCY,
    lockDuration: options.lockMs ?? 5000,
    stalledInterval: 1000,
    // A step may be interrupted by any number of restarts: all are safe to run again.
    maxStalledCount: 1_000_000,
    // Default 15 s: how long it sits still after Redis was away.
    runRetryDelay: 500,
    drainDelay: 1,
    autorun: false,
  });
  worker.on('error', (error) => {
    if (!closing) errors.report(error, 'redis: the worker of operations had an error');
  });
  for (const event of ['progress', 'completed', 'failed', 'stalled'] as const) worker.on(event, changed);

  const mayRun = options.mayRun ?? (() => true);
  /** Follows leadership: BullMQ's worker is started once, and paused and resumed from then on. */
  const keepStep = () => {
    if (closing) return;
    if (!mayRun()) {
      if (!worker.isRunning() || worker.isPaused()) return;
      void worker.pause(true).catch(() => {});
      for (const controller of active.values()) controller.abort(STANDING_BY);
    } else if (!worker.isRunning()) {
      worker.run().catch((error: unknown) => {
        if (!closing) errors.report(error, 'redis: the worker of operations had an error');
      });
    } else if (worker.isPaused()) void worker.resume();
  };
  keepStep();
  const leadership = options.mayRun === undefined ? undefined : setInterval(keepStep, LEADERSHIP_CHECK_MS).unref();

  /** Straight back into the queue: the next apiserver takes the step up without waiting for the lock to run out. */
  async function handBack(job: StepJob, token: string | undefined): Promise<never> {
    await job.moveToDelayed(Date.now(), token);
    throw new DelayedError();
  }

  async function takenBack(job: StepJob, step: StepName): Promise<void> {
    // Its successor decides what becomes of a cancelled operation's doings.
    if (job.data.cancelled || active.get(job.id ?? '')?.signal.aborted) return;
    try {
      await options.takeBack?.(job.data, step);
    } catch (error) {
      log.error(
        { err: error, operation: job.data.operation },
        'what a failed operation had begun could not be taken back',
      );
    }
  }

  async function processJob(job: StepJob, token: string | undefined): Promise<StepResult> {
    // A worker that is closing may still fetch one job: its blocked wait ends with whatever comes first.
    if (closing || !mayRun()) return handBack(job, token);
    const step = job.name as StepName;
    const id = job.id ?? '';
    const abort = new AbortController();
    active.set(id, abort);
    const attempts = job.opts.attempts ?? 1;
    const attempt = job.attemptsMade + 1;
    let reported = '';
    const report = (message: string) => {
      if (message === reported) return;
      reported = message;
      // Not awaited: a step does not stand still because Redis does.
      job.updateProgress({ message }).then(changed, () => {});
    };
    try {
      if (job.data.cancelled) throw cancelled(job.data);
      return await options.runStep({ step, data: job.data, signal: abort.signal, report });
    } catch (error) {
      if (closing || abort.signal.reason === STANDING_BY) return handBack(job, token);
      const failure = MeshError.from(
        abort.signal.aborted ? cancelled(job.data) : error,
        `step ${step} of ${job.data.operation}`,
      );
      if (!(error instanceof MeshError))
        log.error({ err: error, operation: job.data.operation, step }, 'step failed unexpectedly');
      if (!failure.retryable || attempt >= attempts) {
        await takenBack(job, step);
        throw new UnrecoverableError(encodeFailure(failure));
      }
      report(`attempt ${attempt} of ${attempts} failed, trying again: ${failure.message}`);
      throw new Error(encodeFailure(failure));
    } finally {
      if (active.get(id) === abort) active.delete(id);
    }
  }

  return {
    ping: async () => {
      try {
        await ask('asking for a sign of life', () => commands.ping());
        return true;
      } catch {
        return false;
      }
    },

    add: async (data) => {
      const order: readonly StepName[] = STEPS[data.kind];
      const flow = order.reduce<FlowJobNode | undefined>(
        (child, step) => ({
          name: step,
          queueName: NAME,
          prefix,
          data,
          opts: {
            jobId: jobId(data.operation, step),
            attempts: options.attempts ?? ATTEMPTS,
            backoff: { type: 'exponential', delay: FIRST_RETRY_MS },
            removeOnComplete: KEEP,
            removeOnFail: KEEP,
            ...(step === order.at(-1) ? {} : { failParentOnFailure: true }),
          },
          ...(child === undefined ? {} : { children: [child] }),
        }),
        undefined,
      );
      await ask(`starting the ${data.kind} of ${data.peer}`, ({ flows }) => flows.add(flow!));
    },

    snapshot: (operation) => ask(`reading operation ${operation}`, ({ queue }) => readOperation(queue, operation)),
    list: () => ask('listing operations', ({ queue }) => listOperations(queue)),
    data: (operation) =>
      ask(`reading operation ${operation}`, async ({ queue }) => (await readSteps(queue, operation))?.[0]?.data),

    running: () => ask('listing operations', ({ queue }) => unfinishedOperations(queue)),

    cancel: (operation) =>
      ask(`cancelling ${operation}`, async ({ queue }) => {
        for (const step of STEPS[kindOf(operation)]) {
          const job = await queue.getJob(jobId(operation, step));
          if (job === undefined) continue;
          await job.updateData({ ...job.data, cancelled: true });
          active.get(job.id ?? '')?.abort();
          // In its backoff: let it run, and fail, now.
          if (await job.isDelayed()) await job.promote();
        }
      }),

    onActivity: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },

    close: async () => {
      closing = true;
      clearInterval(leadership);
      // The worker first: one that is not closing would fetch the steps again that we hand back.
      const closed = worker.close(work.status !== 'ready');
      for (const controller of active.values()) controller.abort();
      await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, CLOSE_TIMEOUT_MS).unref())]);
      // A worker that could not say goodbye (Redis is away) is cut off: its steps are taken up by the next one.
      commands.endAll();
      work.endAll();
    },
  };
}

function cancelled(data: JobData): MeshError {
  return new MeshError({
    code: 'cancelled',
    message: `the ${data.kind} of ${data.peer} was cancelled by a later command`,
    retryable: false,
  });
}
