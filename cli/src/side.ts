/** One cluster of a command: its context and the way to its apiserver. */
import { randomBytes } from 'node:crypto';
import { type AdminMethods, MeshError, type OperationEvent } from '@clustermesh/contract';
import { dialRpc, type RpcClient, systemClock } from '@clustermesh/runtime';
import type { Context } from './contexts.ts';
import type { Terminal } from './terminal.ts';

type Unary = Exclude<keyof AdminMethods, 'WatchOperation'>;

export interface Side {
  readonly context: Context;
  /** The cluster's name, for messages. */
  readonly name: string;
  call<K extends Unary>(method: K, request: AdminMethods[K]['request']): Promise<AdminMethods[K]['response']>;
  watch(id: string, signal: AbortSignal): AsyncIterable<OperationEvent>;
  /** Whether a call has been answered: an apiserver that does not answer from then on was there, and is being restarted. */
  hasAnswered(): boolean;
  close(): void;
}

export function openSide(context: Context): Side {
  let client: RpcClient<AdminMethods> | undefined;
  let hasAnswered = false;
  /** gRPC waits ever longer between attempts to reconnect: after a failure a fresh client tries at once. */
  const renew = (error: unknown) => {
    client?.close();
    client = undefined;
    throw error;
  };
  const dialled = () => {
    client ??= dialRpc<AdminMethods>('admin', context.apiserver);
    return client;
  };
  return {
    context,
    name: context.cluster,
    call: (method, request) => {
      const ask = dialled()[method] as (request: unknown) => Promise<never>;
      return ask(request).then(
        (answer) => {
          hasAnswered = true;
          return answer;
        },
        (error) => (isLost(error) ? renew(named(error, context)) : Promise.reject(error)),
      );
    },
    watch: async function* (id, signal) {
      try {
        yield* dialled().WatchOperation({ id }, signal);
      } catch (error) {
        if (isLost(error)) renew(named(error, context));
        throw error;
      }
    },
    hasAnswered: () => hasAnswered,
    close: () => client?.close(),
  };
}

const GRPC_CANCELLED = 1;

/** The apiserver went away, or cut its streams because it is stopping: asking again may help. */
export function isLost(error: unknown): error is MeshError {
  return (
    error instanceof MeshError &&
    (error.code === 'unreachable' || (error.cause as { code?: unknown } | undefined)?.code === GRPC_CANCELLED)
  );
}

function named(error: MeshError, context: Context): MeshError {
  return new MeshError({
    code: 'unreachable',
    message: `reaching the apiserver of cluster ${context.cluster} at ${context.apiserver}: it does not answer`,
    hint: `check that it runs; the address comes from ${context.file}`,
    cause: error,
  });
}

export interface FollowOptions {
  readonly signal: AbortSignal;
  readonly terminal: Terminal;
  readonly onEvent: (event: OperationEvent) => Promise<void> | void;
}

const RETRY_MS = 300;

/** Follows an operation to its end, over restarts of the apiserver. Undefined when the signal ended it first. */
export async function follow(side: Side, id: string, options: FollowOptions): Promise<OperationEvent | undefined> {
  let saidLost = false;
  while (!options.signal.aborted) {
    try {
      for await (const event of side.watch(id, options.signal)) {
        saidLost = false;
        await options.onEvent(event);
        if (event.state === 'done' || event.state === 'failed') return event;
      }
    } catch (error) {
      if (options.signal.aborted) return undefined;
      if (!isLost(error)) throw error;
      if (!saidLost)
        options.terminal.err(
          `${side.name}: the apiserver is gone; waiting for it, the operation goes on when it is back`,
        );
      saidLost = true;
    }
    await systemClock.sleep(RETRY_MS, options.signal);
  }
  return undefined;
}

/** Reasons that pass by themselves: Redis is away, or a disconnect of the same peer has still to end. */
const PASSING = new Set(['redis-unreachable', 'locked']);

/** A name for a start that may have to be repeated (admin.proto). */
export const newRequest = (): string => randomBytes(6).toString('hex');

/**
 * Repeats what cannot be started yet, and what an apiserver that had answered before left unanswered: it may have been carried out,
 * so `work` must be safe to repeat (`newRequest`). Undefined when the signal ended it first.
 */
export async function whenPossible<T>(
  side: Side,
  options: { readonly signal: AbortSignal; readonly terminal: Terminal },
  work: () => Promise<T>,
): Promise<T | undefined> {
  let said = false;
  while (!options.signal.aborted) {
    try {
      return await work();
    } catch (error) {
      const wasThere = isLost(error) && side.hasAnswered();
      if (!wasThere && !(error instanceof MeshError && PASSING.has(error.code))) throw error;
      if (!said)
        options.terminal.err(
          wasThere
            ? `${side.name}: the apiserver is gone; waiting for it`
            : `${side.name}: ${error.message}; trying again until the time is over`,
        );
      said = true;
    }
    await systemClock.sleep(RETRY_MS, options.signal);
  }
  return undefined;
}

/** Brings something to a side until it is there; an apiserver that is away is waited for, silently: whoever follows it says so. */
export async function deliver(work: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await work();
      return;
    } catch (error) {
      if (!isLost(error) && !(error instanceof MeshError && error.retryable)) throw error;
    }
    await systemClock.sleep(RETRY_MS, signal);
  }
}
