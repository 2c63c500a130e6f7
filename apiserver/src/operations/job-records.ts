/** What BullMQ's jobs tell of operations: read only. */
import type { Job, Queue } from 'bullmq';
import {
  decodeFailure,
  type JobData,
  jobId,
  kindOf,
  type OperationSnapshot,
  STEPS,
  type StepName,
  type StepResult,
  type StepSnapshot,
} from './model.ts';

/** One type for all steps: from a union of data types BullMQ would derive a union of queues. */
export type StepJob = Job<JobData, StepResult>;
type StepRecord = StepSnapshot & { readonly data: JobData; readonly createdAt: number };

const UNFINISHED = ['waiting', 'active', 'delayed', 'waiting-children', 'prioritized'] as const;
const ALL = [...UNFINISHED, 'completed', 'failed'] as const;
/** What a list shows at most. */
const LISTED = 200;

async function readStep(queue: Queue<StepJob>, operation: string, step: StepName): Promise<StepRecord | undefined> {
  // State before content: what a state promises (a result, a reason) is then there.
  const state = await queue.getJobState(jobId(operation, step));
  const job = await queue.getJob(jobId(operation, step));
  if (job === undefined) return undefined;
  const base = {
    step,
    data: job.data,
    message: (job.progress as { message?: string } | undefined)?.message ?? '',
    createdAt: job.timestamp,
    startedAt: job.processedOn,
    endedAt: job.finishedOn,
    // BullMQ counts the ended ones.
    attempts: job.attemptsMade + (state === 'active' ? 1 : 0),
  };
  switch (state) {
    case 'completed': {
      const result = job.returnvalue;
      return { ...base, state: 'done', message: result.message, certificatePem: result.certificatePem };
    }
    case 'failed': {
      const failure = decodeFailure(job.failedReason ?? '');
      return { ...base, state: 'failed', message: failure.message, failure };
    }
    case 'active':
      return { ...base, state: 'active' };
    case 'waiting-children':
      return { ...base, state: 'pending', message: '' };
    default:
      return { ...base, state: 'waiting' };
  }
}

/** Last step first: an earlier step is then never seen behind a later one. Undefined when one is not there. */
export async function readSteps(queue: Queue<StepJob>, operation: string): Promise<StepRecord[] | undefined> {
  const steps: StepRecord[] = [];
  for (const step of [...STEPS[kindOf(operation)]].reverse()) {
    const record = await readStep(queue, operation, step);
    if (record === undefined) return undefined;
    steps.unshift(record);
  }
  return steps;
}

export async function readOperation(queue: Queue<StepJob>, operation: string): Promise<OperationSnapshot | undefined> {
  const steps = await readSteps(queue, operation);
  if (steps === undefined) return undefined;
  const { data, createdAt } = steps[0]!;
  return { id: operation, kind: kindOf(operation), peer: data.peer, createdAt, steps };
}

/** The newest first. */
export async function listOperations(queue: Queue<StepJob>): Promise<OperationSnapshot[]> {
  const created = new Map<string, number>();
  // A removed job leaves a hole in the list.
  for (const job of await queue.getJobs([...ALL], 0, -1))
    if (job?.data !== undefined) created.set(job.data.operation, job.timestamp);
  const newest = [...created].sort((a, b) => b[1] - a[1]).slice(0, LISTED);
  const operations = await Promise.all(newest.map(([operation]) => readOperation(queue, operation)));
  return operations.filter((operation) => operation !== undefined);
}

/** Operations that have neither ended nor been cancelled. */
export async function unfinishedOperations(queue: Queue<StepJob>): Promise<JobData[]> {
  const operations = new Map<string, JobData>();
  for (const job of await queue.getJobs([...UNFINISHED], 0, -1))
    if (job?.data !== undefined) operations.set(job.data.operation, job.data);
  const result: JobData[] = [];
  for (const data of operations.values()) {
    const steps = await readSteps(queue, data.operation);
    if (steps?.every((step) => step.state !== 'failed' && !step.data.cancelled)) result.push(data);
  }
  return result;
}
