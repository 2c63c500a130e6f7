/**
 * The two connections to Redis. Redis may be away at any time and for long: nothing here throws at the process, fills the log,
 * or hangs a caller.
 *
 *   commands   asked by callers who wait: fails at once while Redis is away, and within COMMAND_TIMEOUT_MS when it does not answer
 *   work       the worker's: waits for Redis for as long as it takes
 */
import { MeshError, messageOf } from '@clustermesh/contract';
import { type Log, systemClock } from '@clustermesh/runtime';
import { Redis } from 'ioredis';

export const COMMAND_TIMEOUT_MS = 3000;
const LONGEST_RECONNECT_MS = 1000;
const REPEAT_LOG_MS = 60_000;

/** Milliseconds until the next attempt; never gives up. */
const retryStrategy = (times: number): number => Math.min(50 * 2 ** Math.min(times, 10), LONGEST_RECONNECT_MS);

export function connectForCommands(path: string): Redis {
  return new Redis({
    path,
    retryStrategy,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    commandTimeout: COMMAND_TIMEOUT_MS,
  });
}

export function connectForWork(path: string): Redis {
  // null: BullMQ insists on it for a connection that blocks.
  return new Redis({ path, retryStrategy, maxRetriesPerRequest: null });
}

export function redisUnreachable(attempted: string, path: string, cause?: unknown): MeshError {
  return new MeshError({
    code: 'redis-unreachable',
    message: `${attempted}: Redis at ${path} is unreachable${cause === undefined ? '' : ` (${messageOf(cause)})`}`,
    hint: 'operations wait for Redis and go on when it is back; replication and traffic do not need it',
    cause,
  });
}

/** An error listener that says a thing once, repeats it once a minute at most, and says how often it was silent. */
export function createErrorLimiter(
  log: Log,
  clock = systemClock,
): { report(error: unknown, what: string): void; recovered(): void } {
  let lastLoggedAt: number | undefined;
  let suppressed = 0;
  return {
    report: (error, what) => {
      const now = clock.nowMs();
      if (lastLoggedAt !== undefined && now - lastLoggedAt < REPEAT_LOG_MS) {
        suppressed++;
        return;
      }
      log.warn({ reason: messageOf(error), suppressed }, what);
      lastLoggedAt = now;
      suppressed = 0;
    },
    recovered: () => {
      if (lastLoggedAt !== undefined) log.info('redis is reachable again: operations go on');
      lastLoggedAt = undefined;
      suppressed = 0;
    },
  };
}
