/**
 * The identities that this node uses: known at once for label sets that disk or memory know, agreed with etcd in the background,
 * and agreed again whenever etcd comes back (it may have been wiped) and once a minute.
 */
import { messageOf } from '@clustermesh/contract';
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';
import type { IdentityAllocator } from './allocator.ts';

export interface IdentityKeeper {
  /** The number that this node has been using for the labels, whether or not etcd can be asked. */
  known(labels: string): number | undefined;
  /** What the disk remembers. */
  restore(labels: string, identity: number): void;
  /** The label set is in use (again): agree on it with etcd now. */
  want(labels: string): void;
  onEtcdConnected(): void;
  /** Why a label set has no number yet. */
  waitingFor(): string;
  /** Numbers that had to change under running endpoints. */
  notices(): readonly string[];
}

/** How often identities in use are compared with etcd although nothing happened. */
const VERIFY_INTERVAL_MS = 60_000;
const RETRY_MS = 100;
/** Also the longest delay between tries: etcd coming back is noticed by then even if the event was missed. */
const MAX_INTERVAL_MS = 2_000;
const MAX_NOTICES = 10;

export function startIdentityKeeper(options: {
  readonly allocator: IdentityAllocator;
  readonly inUse: () => Iterable<string>;
  /** A label set got its number, or another one than before. */
  readonly onIdentity: (labels: string, identity: number) => void;
  /** `waitingFor` has something new to say. */
  readonly onWaiting: () => void;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}): IdentityKeeper {
  const { clock, log } = options;
  /** For the life of the process, so that a pod may come back while etcd is away. */
  const identities = new Map<string, number>();
  /** Label sets that etcd has confirmed since it was last connected. */
  let verified = new Set<string>();
  let verifiedAt = clock.nowMs();
  let lastError: string | undefined;
  const notices: string[] = [];

  function forgetVerified(): void {
    verified = new Set();
    verifiedAt = clock.nowMs();
  }

  async function register(labels: string): Promise<void> {
    const round = verified;
    const before = identities.get(labels);
    const { identity, instead } = await options.allocator.register(labels, before);
    lastError = undefined;
    // If etcd was lost meanwhile, this goes to a set that nobody asks any more.
    round.add(labels);
    identities.set(labels, identity);
    if (instead !== undefined) {
      log.warn({ labels, before, identity, reason: instead }, 'identity of running endpoints changed');
      notices.push(`endpoints with labels ${labels} changed from identity ${before} to ${identity}: ${instead}`);
      if (notices.length > MAX_NOTICES) notices.shift();
    }
    options.onIdentity(labels, identity);
  }

  const runner = startRunner({
    async run() {
      if (clock.nowMs() - verifiedAt >= VERIFY_INTERVAL_MS) forgetVerified();
      for (const labels of new Set(options.inUse())) if (!verified.has(labels)) await register(labels);
    },
    minIntervalMs: 0,
    retryMs: RETRY_MS,
    maxIntervalMs: MAX_INTERVAL_MS,
    onError(error) {
      const message = messageOf(error);
      if (message !== lastError) log.warn({ reason: message }, 'identities could not be confirmed; trying again');
      lastError = message;
      options.onWaiting();
    },
    signal: options.signal,
    clock,
  });

  return {
    known: (labels) => identities.get(labels),
    restore: (labels, identity) => void identities.set(labels, identity),
    want(labels) {
      // While nothing here used it, the number may have been deleted by hand, or lost with etcd, and given to other labels.
      verified.delete(labels);
      runner.trigger();
    },
    onEtcdConnected() {
      forgetVerified();
      runner.trigger();
    },
    waitingFor: () => lastError ?? 'allocating',
    notices: () => notices,
  };
}
