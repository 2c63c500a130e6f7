/**
 * The two connections to Redis. Redis may be away at any time and for long: nothing here throws at the process, fills the log,
 * or hangs a caller.
 *
 *   commands   asked by callers who wait: fails at once while Redis is away, and within COMMAND_TIMEOUT_MS when it does not answer
 *   work       the worker's: waits for Redis for as long as it takes
 */
import { MeshError, messageOf } from '@clustermesh/contract';
import { type Log, systemClock } from '@clustermesh/runtime';
import { Redis, type RedisOptions } from 'ioredis';
import { type RedisConfig, readRedisCredentials, redisAddress, redisName } from './redis-config.ts';

export const COMMAND_TIMEOUT_MS = 3000;
const LONGEST_RECONNECT_MS = 1000;
const REPEAT_LOG_MS = 60_000;

/** What both connections are made with. Throws an invalid-config when a file cannot be read. */
function login(redis: RedisConfig) {
  return {
    ...redisAddress(redis),
    ...readRedisCredentials(redis),
    // CLIENT SETINFO is unknown to Redis 7.0, and so cannot be allowed in its ACL.
    disableClientInfo: true,
    /** Milliseconds until the next attempt; never gives up. Called on the options that the next attempt is made with. */
    retryStrategy(this: RedisOptions, times: number): number {
      try {
        Object.assign(this, readRedisCredentials(redis));
      } catch {
        // Being replaced just now: what was read last goes on.
      }
      return Math.min(50 * 2 ** Math.min(times, 10), LONGEST_RECONNECT_MS);
    },
  };
}

/** A connection, and those that BullMQ duplicates from it for itself. */
export type Connection = Redis & {
  /** Ends all of them for good. BullMQ waits for Redis before it lets go of its own, and so for ever while Redis is away. */
  endAll(): void;
};

type Options = Omit<RedisOptions, 'replyMapping'>;

function open(first: Options): Connection {
  const ends: (() => void)[] = [];
  let isEnded = false;
  const make = (options: Options): Redis => {
    const redis = new Redis(options);
    const connect = redis.connect.bind(redis);
    ends.push(() => {
      // Told to end between two attempts, ioredis never says that it has: what is queued on it, and whoever waits for its 'end',
      // would wait for ever. An attempt that ends as it begins settles both.
      if (redis.status === 'reconnecting') connect().catch(() => {});
      redis.disconnect();
    });
    return Object.assign(redis, {
      duplicate: (override?: Partial<Options>) => make({ ...redis.options, ...override }),
      connect: (callback?: Parameters<Redis['connect']>[0]) =>
        isEnded ? Promise.reject(new Error('Connection is closed.')) : connect(callback),
    });
  };
  return Object.assign(make(first), {
    endAll: () => {
      isEnded = true;
      for (const end of ends) end();
    },
  });
}

export function connectForCommands(redis: RedisConfig): Connection {
  return open({
    ...login(redis),
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    commandTimeout: COMMAND_TIMEOUT_MS,
  });
}

export function connectForWork(redis: RedisConfig): Connection {
  // null: BullMQ insists on it for a connection that blocks.
  return open({ ...login(redis), maxRetriesPerRequest: null });
}

export function redisUnreachable(attempted: string, redis: RedisConfig, cause?: unknown): MeshError {
  const reason = cause === undefined ? '' : ` (${messageOf(cause)})`;
  const [problem, hint] = isRefusal(cause)
    ? [
        `refuses ${redis.username === undefined ? 'this apiserver' : `user ${redis.username}`}`,
        'see redis.username, redis.passwordFile and redis.prefix of apiserver.yaml and the ACL of that user in Redis; operations wait until it is mended',
      ]
    : ['is unreachable', 'operations wait for Redis and go on when it is back; replication and traffic do not need it'];
  return new MeshError({
    code: 'redis-unreachable',
    message: `${attempted}: Redis at ${redisName(redis)} ${problem}${reason}`,
    hint,
    // No cause: ioredis' errors carry the command with its arguments, the password among them.
  });
}

/** Redis answers, and lets this user or this command not in: https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl */
function isRefusal(error: unknown): boolean {
  return (
    error instanceof Error && /^(WRONGPASS|NOAUTH|NOPERM)\b|The user executing the script can't/.test(error.message)
  );
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
