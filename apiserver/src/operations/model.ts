/** What an operation is: its steps, what a step's job carries, and how its state reads. Pure. */
import {
  type ClusterInfo,
  type ErrorCode,
  isErrorCode,
  MeshError,
  messageOf,
  type OperationEvent,
} from '@clustermesh/contract';

export type OperationKind = 'connect' | 'disconnect';

/** In the order in which they run. */
export const STEPS = {
  connect: ['authorize-peer', 'install-credentials', 'await-sync'],
  disconnect: ['remove-config', 'revoke-peer', 'await-drained'],
} as const satisfies Record<OperationKind, readonly string[]>;

export type StepName = (typeof STEPS)[OperationKind][number];

interface JobDataBase {
  /** Id of the operation; `jobId` derives the job's from it. */
  readonly operation: string;
  readonly peer: string;
  /** Set while the job waits or runs; a cancelled step fails at its next look. */
  readonly cancelled?: boolean;
}

/** A job never carries a private key: certificates and requests are public, keys stay on disk. */
export interface ConnectJobData extends JobDataBase {
  readonly kind: 'connect';
  readonly info: ClusterInfo;
  readonly csrPem: string;
}

export interface DisconnectJobData extends JobDataBase {
  readonly kind: 'disconnect';
}

export type JobData = ConnectJobData | DisconnectJobData;

export interface StepResult {
  /** What was done, for the operator. */
  readonly message: string;
  /** The certificate made for the peer. */
  readonly certificatePem?: string;
}

export interface StepFailure {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string;
}

/** BullMQ keeps one string per failure: ours is JSON, so that code and hint survive. */
export function encodeFailure(error: unknown): string {
  const mesh = MeshError.from(error, 'running the step');
  return JSON.stringify({ code: mesh.code, message: mesh.message, hint: mesh.hint ?? '' });
}

export function decodeFailure(text: string): StepFailure {
  try {
    const raw = JSON.parse(text) as Partial<Record<keyof StepFailure, unknown>>;
    if (typeof raw.code === 'string' && isErrorCode(raw.code) && typeof raw.message === 'string') {
      return { code: raw.code, message: raw.message, hint: typeof raw.hint === 'string' ? raw.hint : '' };
    }
  } catch (error) {
    // BullMQ's own words, for example about a job that stalled too often.
    return { code: 'internal', message: text || messageOf(error), hint: '' };
  }
  return { code: 'internal', message: text, hint: '' };
}

/** Colons are not allowed in BullMQ's job ids, and operation ids contain none. */
export function jobId(operation: string, step: StepName): string {
  return `${operation}.${step}`;
}

export type StepState = 'pending' | 'waiting' | 'active' | 'done' | 'failed';

export interface StepSnapshot {
  readonly step: StepName;
  readonly state: StepState;
  readonly message: string;
  readonly failure?: StepFailure | undefined;
  readonly certificatePem?: string | undefined;
}

export interface OperationSnapshot {
  readonly id: string;
  readonly kind: OperationKind;
  readonly peer: string;
  readonly steps: readonly StepSnapshot[];
}

export function isFinished(snapshot: OperationSnapshot): boolean {
  return (
    snapshot.steps.some((step) => step.state === 'failed') || snapshot.steps.every((step) => step.state === 'done')
  );
}

/** The events that tell a watcher how `next` differs from what it was told before. */
export function eventsBetween(previous: OperationSnapshot | undefined, next: OperationSnapshot): OperationEvent[] {
  const events: OperationEvent[] = [];
  let certificate = '';
  const event = (
    state: OperationEvent['state'],
    step: string,
    message: string,
    failure?: StepFailure,
  ): OperationEvent => ({
    id: next.id,
    kind: next.kind,
    peer: next.peer,
    state,
    step,
    message,
    certificateForPeerPem: certificate,
    errorCode: failure?.code ?? '',
    hint: failure?.hint ?? '',
  });

  for (const [index, step] of next.steps.entries()) {
    certificate = step.certificatePem ?? certificate;
    const before = previous?.steps[index];
    if (step.state === 'pending' || (before?.state === step.state && before.message === step.message)) continue;
    if (step.state === 'failed') {
      const failure = step.failure ?? { code: 'internal' as const, message: step.message, hint: '' };
      return [...events, event('failed', step.step, failure.message, failure)];
    }
    // A step without a word has nothing to tell yet.
    if (step.message !== '' || step.state === 'done')
      events.push(event(step.state === 'waiting' ? 'waiting' : 'active', step.step, step.message));
  }
  if (next.steps.every((step) => step.state === 'done') && !previous?.steps.every((step) => step.state === 'done')) {
    const last = next.steps.at(-1);
    events.push(event('done', '', last?.message ?? ''));
  }
  return events;
}
