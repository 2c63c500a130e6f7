/** Operations as the admin interface sees them: start, feed, watch. */
import { isDeepStrictEqual } from 'node:util';
import {
  type ClusterInfo,
  type ConnectDirection,
  clusterNameProblem,
  MeshError,
  type OperationEvent,
  type OperationInfo,
} from '@clustermesh/contract';
import { type Clock, type Log, systemClock } from '@clustermesh/runtime';
import type { AgentView, MirrorView, PeerDirectory, UserDirectory } from '../ports.ts';
import { checkPeer, type OwnCluster } from '../preflight/agreement.ts';
import type { RotationPorts } from '../rotation/index.ts';
import {
  eventsBetween,
  isFinished,
  type JobData,
  type OperationSnapshot,
  operationId,
  operationInfo,
  type RotateJobData,
} from './model.ts';
import { createPendingStore } from './pending.ts';
import { openQueue } from './queue.ts';
import type { RedisConfig } from './redis-config.ts';
import { DEFAULT_TIMERS, runStep, type StepTimers, takeBackConnect } from './steps.ts';

export interface OperationsOptions {
  readonly own: OwnCluster;
  /** The cluster's CA (ca.crt, ca.key). */
  readonly pkiDir: string;
  readonly stateDir: string;
  readonly redis: RedisConfig;
  readonly peers: PeerDirectory;
  readonly users: UserDirectory;
  readonly mirror: MirrorView;
  readonly agents: AgentView;
  readonly rotation: RotationPorts;
  readonly log: Log;
  readonly clock?: Clock | undefined;
  readonly timers?: Partial<StepTimers> | undefined;
  /** How long a killed step rests before it is taken up again. Default 5 s. */
  readonly lockMs?: number | undefined;
  readonly attempts?: number | undefined;
  /** Whether this replica runs the steps. Default: it is the only one. */
  readonly mayRun?: (() => boolean) | undefined;
  /** Another replica that leads: it is the one to ask. Default: there is none. */
  readonly otherLeader?: (() => string | undefined) | undefined;
  /** Throws when this cluster connects with nobody (mesh-switch.ts). Default: it may. */
  readonly mayConnect?: ((attempted: string) => Promise<void>) | undefined;
}

export interface StartConnectOptions {
  /** Default: both. */
  readonly direction?: ConnectDirection | undefined;
  /** The caller's name for this start (admin.proto). Default: a random one. */
  readonly request?: string | undefined;
}

export interface Operations {
  /** This cluster's certificate request for `peer`. */
  prepareConnect(peer: string): Promise<string>;
  /**
   * Returns the operation's id; the same while an equal one runs, and for the same `request` for ever: a caller that lost the answer
   * asks again.
   */
  startConnect(peer: ClusterInfo, peerCsrPem: string, options?: StartConnectOptions): Promise<string>;
  isKnown(id: string): Promise<boolean>;
  /** Whether there is a key for `peer` that waits for its certificate. */
  isPrepared(peer: string): boolean;
  /** Takes a `prepareConnect` back that led to nothing. */
  abandonConnect(peer: string): void;
  supplyCertificate(peer: string, certificatePem: string): Promise<void>;
  /** Moves this cluster's traffic away from a peer that is to be disconnected. */
  startDrain(peer: string, request?: string): Promise<string>;
  startDisconnect(peer: string, request?: string): Promise<string>;
  /** Replaces this cluster's CA; one that stands half way goes on from there. */
  startRotation(wanted: Pick<RotateJobData, 'overlapMs' | 'without'>, request?: string): Promise<string>;
  /** Ends after an event with state done or failed. While Redis is away it says so and waits. */
  watch(id: string, signal: AbortSignal): AsyncGenerator<OperationEvent, void, void>;
  list(): Promise<readonly OperationInfo[]>;
  /** Starts an operation that failed or was cancelled once more; returns the new one's id. */
  retry(id: string): Promise<string>;
  /** Ends an operation. What a connect of a new peer had begun is taken back by a disconnect. */
  cancel(id: string): Promise<void>;
  /** Clears keys that were made for a connect which nobody went on with; returns the peers. */
  sweepPending(): readonly string[];
  redisReachable(): Promise<boolean>;
  close(): Promise<void>;
}

/** Far longer than any operation waits for a certificate. */
const PENDING_KEPT_MS = 24 * 3_600_000;
/** A watcher looks this often even if nothing tells it to: another process may run the steps. */
const WATCH_INTERVAL_MS = 500;

export function startOperations(options: OperationsOptions): Operations {
  const { own } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'operations' });
  const pending = createPendingStore({ stateDir: options.stateDir, cluster: own.name });
  const ports = { ...options, pending, timers: { ...DEFAULT_TIMERS, ...options.timers } };
  const queue = openQueue({
    redis: options.redis,
    log,
    mayRun: options.mayRun,
    takeBack: async (data, step) => {
      if (data.kind !== 'connect' || !data.isNew || step === 'await-sync') return;
      // A later command has other plans with this peer.
      if ((await queue.running()).some((other) => other.peer === data.peer && other.operation !== data.operation))
        return;
      await takeBackConnect(ports, data.peer);
      log.info({ operation: data.operation, peer: data.peer }, 'a connect failed: what it had begun is taken back');
    },
    runStep: async (run) => {
      const startedAt = clock.nowMs();
      log.info({ operation: run.data.operation, step: run.step }, 'step started');
      const result = await runStep(ports, run);
      log.info(
        { operation: run.data.operation, step: run.step, ms: Math.round(clock.nowMs() - startedAt) },
        'step done',
      );
      return result;
    },
    lockMs: options.lockMs,
    attempts: options.attempts,
  });

  /** Starts are serialised, so that two callers at once cannot both find nothing running. */
  let last: Promise<unknown> = Promise.resolve();
  function inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = last.then(work);
    last = result.catch(() => {});
    return result;
  }

  const isKnown = async (id: string): Promise<boolean> => (await queue.data(id)) !== undefined;

  async function start(wanted: JobData): Promise<string> {
    // Called again by somebody who has lost the answer.
    if (await isKnown(wanted.operation)) return wanted.operation;
    let isNew = wanted.kind === 'connect' && wanted.isNew;
    for (const running of await queue.running()) {
      if (running.peer !== wanted.peer) continue;
      if (sameRequest(running, wanted)) return running.operation;
      if (running.kind === 'disconnect' || wanted.kind === 'drain') {
        throw new MeshError({
          code: 'locked',
          message: `starting the ${wanted.kind} of ${wanted.peer}: a ${running.kind} of ${wanted.peer} is running`,
          hint: 'wait until it has ended, then try again',
          retryable: true,
        });
      }
      // A disconnect ends a connect that cannot finish; a connect with other facts replaces one with outdated ones.
      await queue.cancel(running.operation);
      if (running.kind === 'connect' && running.isNew && wanted.kind === 'connect') isNew = true;
    }
    await queue.add(wanted.kind === 'connect' ? { ...wanted, isNew } : wanted);
    log.info({ operation: wanted.operation, peer: wanted.peer }, 'operation started');
    return wanted.operation;
  }

  async function connectJob(peer: ClusterInfo, csrPem: string, as: StartConnectOptions): Promise<JobData> {
    await options.mayConnect?.(`connecting ${peer.name}`);
    const isNew = !(await options.peers.list()).some((configured) => configured.name === peer.name);
    return {
      kind: 'connect',
      operation: operationId('connect', peer.name, as.request),
      peer: peer.name,
      info: peer,
      csrPem,
      direction: as.direction ?? 'both',
      isNew,
    };
  }

  /** Keys that wait for a certificate lie on the disk of the replica that was asked. */
  function checkLeading(attempted: string): void {
    const leader = options.otherLeader?.();
    if (leader === undefined) return;
    throw new MeshError({
      code: 'conflict',
      message: `${attempted}: this replica of ${own.name}'s apiserver stands by, replica ${leader} leads`,
      hint: 'use the handle file of the replica that leads',
    });
  }

  async function ended(id: string, attempted: string): Promise<JobData> {
    const [data, snapshot] = await Promise.all([queue.data(id), queue.snapshot(id)]);
    if (data === undefined || snapshot === undefined) throw unknown(id, attempted);
    const { state } = operationInfo(snapshot);
    if (state === 'failed' || state === 'cancelled') return data;
    throw new MeshError({
      code: 'conflict',
      message: `${attempted} ${id}: it is ${state}`,
      hint:
        state === 'done'
          ? 'start another one with the command itself'
          : 'it goes on by itself: follow it with operations watch',
    });
  }

  async function* watch(id: string, signal: AbortSignal): AsyncGenerator<OperationEvent, void, void> {
    let previous: OperationSnapshot | undefined;
    let saidAway = false;
    while (!signal.aborted) {
      // Before looking: what happens while we look must not be slept over.
      const activity = nextActivity(signal);
      try {
        const snapshot = await queue.snapshot(id);
        if (snapshot === undefined) {
          throw new MeshError({
            code: 'not-found',
            message: `following operation ${id}: it is not known here`,
            hint:
              previous === undefined
                ? 'operations are kept for a week'
                : 'Redis has lost its data: start the operation again',
          });
        }
        saidAway = false;
        yield* eventsBetween(previous, snapshot);
        previous = snapshot;
        if (isFinished(snapshot)) return;
      } catch (error) {
        if (!(error instanceof MeshError) || error.code !== 'redis-unreachable') throw error;
        if (!saidAway) yield awayEvent(id, error, previous);
        saidAway = true;
      }
      await activity;
    }
  }

  function nextActivity(signal: AbortSignal): Promise<void> {
    const wake = new AbortController();
    const stopListening = queue.onActivity(() => wake.abort());
    return clock.sleep(WATCH_INTERVAL_MS, AbortSignal.any([wake.signal, signal])).finally(stopListening);
  }

  return {
    prepareConnect: async (peer) => {
      checkLeading(`connecting ${peer}`);
      await options.mayConnect?.(`connecting ${peer}`);
      return pending.request(checkedName(peer));
    },

    startConnect: (peer, peerCsrPem, options = {}) =>
      inTurn(async () => {
        // Refused here already when it can be told without asking anyone else; the step checks again, with all that is known then.
        checkPeer(own, peer, []);
        checkLeading(`connecting ${peer.name}`);
        return start(await connectJob(peer, peerCsrPem, options));
      }),

    supplyCertificate: async (peer, certificatePem) => {
      const waiting = pending.isWaiting(checkedName(peer));
      // A courier that comes again after all is done brings nothing new.
      if (!waiting && (await options.peers.list()).some((configured) => configured.name === peer)) return;
      pending.supply(peer, certificatePem);
    },

    isKnown,
    isPrepared: (peer) => pending.isWaiting(checkedName(peer)),
    abandonConnect: (peer) => pending.clear(checkedName(peer)),
    startDrain: (peer, request) => inTurn(() => start(partingJob('drain', peer, request))),
    startDisconnect: (peer, request) => inTurn(() => start(partingJob('disconnect', peer, request))),
    startRotation: (wanted, request) =>
      inTurn(async () => {
        checkLeading('rotating the CA');
        return start(rotateJob(options.own.name, wanted, request));
      }),

    list: async () => (await queue.list()).map(operationInfo),

    retry: (id) =>
      inTurn(async () => {
        const data = await ended(id, 'trying again');
        checkLeading(`trying ${id} again`);
        if (data.kind === 'connect') return start(await connectJob(data.info, data.csrPem, data));
        if (data.kind !== 'rotate') return start(partingJob(data.kind, data.peer));
        return start(rotateJob(data.peer, data));
      }),

    cancel: (id) =>
      inTurn(async () => {
        const data = await queue.data(id);
        if (data === undefined) throw unknown(id, 'cancelling');
        if (!(await queue.running()).some((running) => running.operation === id)) return;
        // Starting a disconnect ends the connect, and takes back whatever it had done.
        if (data.kind === 'connect' && data.isNew) await start(partingJob('disconnect', data.peer));
        else await queue.cancel(id);
      }),

    watch,
    sweepPending: () => pending.sweep(PENDING_KEPT_MS),
    redisReachable: () => queue.ping(),
    close: () => queue.close(),
  };
}

function sameRequest(a: JobData, b: JobData): boolean {
  // Whether the peer is new changes while the operation runs.
  const request = (data: JobData) => JSON.parse(JSON.stringify({ ...data, operation: '', isNew: false }));
  return isDeepStrictEqual(request(a), request(b));
}

function partingJob(kind: 'disconnect' | 'drain', peer: string, request?: string): JobData {
  return { kind, operation: operationId(kind, checkedName(peer), request), peer };
}

function rotateJob(
  own: string,
  { overlapMs, without }: Pick<RotateJobData, 'overlapMs' | 'without'>,
  request?: string,
): JobData {
  return { kind: 'rotate', operation: operationId('rotate', own, request), peer: own, overlapMs, without };
}

function unknown(id: string, attempted: string): MeshError {
  return new MeshError({
    code: 'not-found',
    message: `${attempted} ${id}: there is no such operation`,
    hint: 'clustermesh operations list shows all; they are kept for a week',
  });
}

function checkedName(peer: string): string {
  const problem = clusterNameProblem(peer);
  if (problem !== undefined) throw new MeshError({ code: 'invalid-argument', message: `naming a peer: ${problem}` });
  return peer;
}

function awayEvent(id: string, error: MeshError, previous: OperationSnapshot | undefined): OperationEvent {
  const step = previous?.steps.find((candidate) => candidate.state !== 'done')?.step ?? '';
  return {
    id,
    kind: previous?.kind ?? '',
    peer: previous?.peer ?? '',
    state: 'waiting',
    step,
    message: 'Redis is unreachable: the operation waits and goes on when it is back',
    certificateForPeerPem: '',
    errorCode: error.code,
    hint: error.hint ?? '',
  };
}
