/** What an operation is: its name, its steps, what a step's job carries, and how its state reads. Pure, but for random names. */
import { randomBytes } from 'node:crypto';
import {
  type ClusterInfo,
  type ConnectDirection,
  type ErrorCode,
  isErrorCode,
  MeshError,
  messageOf,
  type OperationEvent,
  type OperationInfo,
} from '@clustermesh/contract';

export type OperationKind = 'connect' | 'disconnect' | 'drain' | 'rotate';

/** In the order in which they run. */
export const STEPS = {
  connect: ['authorize-peer', 'install-credentials', 'await-sync'],
  disconnect: ['remove-config', 'revoke-peer', 'await-drained'],
  drain: ['withdraw-services', 'await-moved'],
  rotate: ['announce-ca', 'await-trust', 'switch-ca', 'await-renewal', 'retire-ca'],
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
  readonly direction: ConnectDirection;
  /** The peer was not configured when this was started: a failure may take back all that was begun. */
  readonly isNew: boolean;
}

export interface DisconnectJobData extends JobDataBase {
  readonly kind: 'disconnect';
}

export interface DrainJobData extends JobDataBase {
  readonly kind: 'drain';
}

/** The replacement of this cluster's own CA; `peer` is the cluster itself. */
export interface RotateJobData extends JobDataBase {
  readonly kind: 'rotate';
  /** How long both CAs are trusted at least after the new one has begun to sign. */
  readonly overlapMs: number;
  /** Peers and nodes that are not waited for. */
  readonly without: readonly string[];
}

export type JobData = ConnectJobData | DisconnectJobData | DrainJobData | RotateJobData;

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

export const newRequest = (): string => randomBytes(4).toString('hex');

/** `request` (admin.proto) ends the id: the same call, made again, names the same operation. */
export function operationId(kind: OperationKind, peer: string, request = ''): string {
  if (request !== '' && !/^[0-9a-f]{8,32}$/.test(request))
    throw new MeshError({
      code: 'invalid-argument',
      message: `starting the ${kind} of ${peer}: the request id ${JSON.stringify(request)} is not made of 8 to 32 hex digits`,
    });
  return `${kind}-${peer}-${request || newRequest()}`;
}

/** Operation ids begin with their kind. */
export function kindOf(operation: string): OperationKind {
  const kind = operation.slice(0, operation.indexOf('-'));
  return kind === 'disconnect' || kind === 'drain' || kind === 'rotate' ? kind : 'connect';
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
  /** Tries so far, the running one included. */
  readonly attempts?: number | undefined;
  /** Wall clock, milliseconds since 1970. */
  readonly startedAt?: number | undefined;
  readonly endedAt?: number | undefined;
  readonly failure?: StepFailure | undefined;
  readonly certificatePem?: string | undefined;
}

export interface OperationSnapshot {
  readonly id: string;
  readonly kind: OperationKind;
  readonly peer: string;
  /** Wall clock, milliseconds since 1970. */
  readonly createdAt?: number | undefined;
  readonly steps: readonly StepSnapshot[];
}

export function isFinished(snapshot: OperationSnapshot): boolean {
  return (
    snapshot.steps.some((step) => step.state === 'failed') || snapshot.steps.every((step) => step.state === 'done')
  );
}

/** As operators see it in a list. */
export function operationInfo(snapshot: OperationSnapshot): OperationInfo {
  const failure = snapshot.steps.find((step) => step.failure !== undefined)?.failure;
  return {
    id: snapshot.id,
    kind: snapshot.kind,
    peer: snapshot.peer,
    createdUnixMs: snapshot.createdAt ?? 0,
    state:
      failure !== undefined
        ? failure.code === 'cancelled'
          ? 'cancelled'
          : 'failed'
        : isFinished(snapshot)
          ? 'done'
          : snapshot.steps.some((step) => step.state === 'active')
            ? 'active'
            : 'waiting',
    steps: snapshot.steps.map((step) => ({
      step: step.step,
      state: step.state,
      message: step.message,
      attempts: step.attempts ?? 0,
      startedUnixMs: step.startedAt ?? 0,
      endedUnixMs: step.endedAt ?? 0,
      errorCode: step.failure?.code ?? '',
      hint: step.failure?.hint ?? '',
    })),
  };
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
