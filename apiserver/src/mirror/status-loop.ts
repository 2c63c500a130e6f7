/** Publishes `clustermesh/peers/<C>`: on change at most once a second, and at least every `intervalMs` (ages go stale). */
import type { PeerStatus } from '@clustermesh/contract';
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';
import type { Peer } from './peer.ts';

export interface StatusLoopOptions {
  readonly peers: () => Iterable<Peer>;
  readonly afterPass: () => void;
  readonly intervalMs: number;
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

const LEAST_INTERVAL_MS = 1_000;

/** What makes a status worth writing before its time: everything but the ages. */
export function statusFingerprint(status: PeerStatus): string {
  const error = status.error?.replace(/\d+ s\b/, '');
  return JSON.stringify({ ...status, error, updatedAt: '', lastProofAgeMs: status.lastProofAgeMs === null });
}

export function startStatusLoop(options: StatusLoopOptions): { trigger(): void; readonly ended: Promise<void> } {
  const { clock } = options;
  const published = new WeakMap<Peer, { readonly fingerprint: string; readonly atMs: number }>();
  const run = async () => {
    for (const peer of options.peers()) {
      const status = peer.status();
      const fingerprint = statusFingerprint(status);
      const before = published.get(peer);
      if (before?.fingerprint === fingerprint && clock.nowMs() - before.atMs < options.intervalMs) continue;
      peer.publish(status);
      published.set(peer, { fingerprint, atMs: clock.nowMs() });
    }
    options.afterPass();
  };
  return startRunner({
    run,
    minIntervalMs: LEAST_INTERVAL_MS,
    retryMs: LEAST_INTERVAL_MS,
    maxIntervalMs: Math.max(LEAST_INTERVAL_MS, options.intervalMs / 2),
    signal: options.signal,
    clock,
    onError: (error) => options.log.error({ err: error }, 'peer status not written'),
  });
}
