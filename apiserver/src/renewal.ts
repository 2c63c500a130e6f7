/** Keeps this cluster's own certificates fresh: looked at every hour, issued anew when two thirds of their lifetime are over. */
import { messageOf } from '@clustermesh/contract';
import { ensureClusterPki } from '@clustermesh/pki';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';

export interface RenewalOptions {
  readonly pkiDir: string;
  readonly cluster: string;
  /** Of several replicas on one directory, one issues. */
  readonly isLeading: () => boolean;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

const CHECK_MS = 3_600_000;
const RETRY_MS = 60_000;

/** Everybody who uses a certificate reads it again by itself: etcd, gate and admin interface at the next handshake, clients too. */
export function startRenewal(options: RenewalOptions): { readonly ended: Promise<void>; check(): Promise<void> } {
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'renewal' });
  const runner = startRunner({
    run: async () => {
      if (!options.isLeading()) return;
      const { issued } = await ensureClusterPki({
        dir: options.pkiDir,
        cluster: options.cluster,
        now: new Date(clock.wallMs()),
      });
      for (const { file, reason } of issued) log.info({ file, reason }, 'certificate issued');
    },
    minIntervalMs: 1000,
    retryMs: RETRY_MS,
    maxIntervalMs: CHECK_MS,
    signal: options.signal,
    clock,
    onError: (error) => log.error({ reason: messageOf(error) }, 'certificates not renewed; tried again'),
  });
  return { ended: runner.ended, check: runner.settled };
}
