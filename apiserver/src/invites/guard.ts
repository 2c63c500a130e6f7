/** Rate limit and lock-out of those who have nothing but an address to be told apart by. Pure state, injected clock, bounded memory. */
import { MeshError } from '@clustermesh/contract';
import { type Clock, systemClock } from '@clustermesh/runtime';

export interface GuardOptions {
  /** Failures within `windowMs` after which a source is locked out. */
  readonly failures: number;
  readonly windowMs: number;
  /** First lock-out; doubles with every further one, up to `longestLockMs`. */
  readonly lockMs: number;
  readonly longestLockMs: number;
  /** Attempts of all sources together within `windowMs`: what the work of refusing may cost. */
  readonly attempts: number;
  /** Sources remembered at once; beyond it the one that was quiet longest is forgotten. */
  readonly maxSources: number;
}

export const JOIN_GUARD: GuardOptions = {
  failures: 5,
  windowMs: 60_000,
  lockMs: 60_000,
  longestLockMs: 3_600_000,
  attempts: 120,
  maxSources: 10_000,
};

export interface Guard {
  /** Throws `exhausted`, with how long to wait, unless the source may try now. */
  admit(source: string): void;
  failed(source: string): void;
  succeeded(source: string): void;
  /** Sources locked out now. */
  locked(): number;
}

interface Source {
  failedAt: number[];
  lockedUntil: number;
  locks: number;
}

export function createGuard(what: string, options: GuardOptions = JOIN_GUARD, clock: Clock = systemClock): Guard {
  /** In the order of their last failure. */
  const sources = new Map<string, Source>();
  let attempts: number[] = [];

  const refuse = (why: string, waitMs: number) =>
    new MeshError({
      code: 'exhausted',
      message: `${what}: ${why}`,
      hint: `try again in ${Math.ceil(waitMs / 1000)} s`,
      retryable: false,
    });

  return {
    admit(source) {
      const now = clock.nowMs();
      const known = sources.get(source);
      if (known !== undefined && known.lockedUntil > now)
        throw refuse(`${source} is locked out after too many failures`, known.lockedUntil - now);
      attempts = attempts.filter((at) => now - at < options.windowMs);
      if (attempts.length >= options.attempts)
        throw refuse('too many attempts of all together', options.windowMs - (now - attempts[0]!));
      attempts.push(now);
    },
    failed(source) {
      const now = clock.nowMs();
      const known = sources.get(source) ?? { failedAt: [], lockedUntil: 0, locks: 0 };
      // Quiet for as long as the longest lock-out: the past is forgiven.
      if (known.failedAt.length > 0 && now - known.failedAt.at(-1)! > options.longestLockMs) known.locks = 0;
      known.failedAt = [...known.failedAt.filter((at) => now - at < options.windowMs), now];
      if (known.failedAt.length >= options.failures) {
        known.lockedUntil = now + Math.min(options.lockMs * 2 ** known.locks, options.longestLockMs);
        known.locks++;
      }
      sources.delete(source);
      sources.set(source, known);
      if (sources.size > options.maxSources) sources.delete(sources.keys().next().value!);
    },
    succeeded: (source) => void sources.delete(source),
    locked: () => [...sources.values()].filter((source) => source.lockedUntil > clock.nowMs()).length,
  };
}
