/** Keeps this cluster's own certificates fresh: looked at every hour, issued anew when two thirds of their lifetime are over. */
import { type IssuedCertificate, MeshError, messageOf } from '@clustermesh/contract';
import { ensureClusterPki, tornLeaves } from '@clustermesh/pki';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';

export interface RenewalOptions {
  readonly pkiDir: string;
  readonly cluster: string;
  /** Of several replicas on one directory, one issues. */
  readonly isLeading: () => boolean;
  /** The replica that leads instead, to be named. Default: not known. */
  readonly otherLeader?: () => string | undefined;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

const CHECK_MS = 3_600_000;
const RETRY_MS = 60_000;

export interface Renewal {
  readonly ended: Promise<void>;
  /** Looks now. */
  check(): Promise<void>;
  /** Issues every leaf anew, due or not; refuses (`conflict`) when another replica leads. */
  rotateLeaves(): Promise<readonly IssuedCertificate[]>;
}

/** Before anything logs in anywhere: what a killed apiserver left torn would keep this one from etcd, and so from ever renewing it. */
export async function mendTornLeaves(pkiDir: string, cluster: string, log: Log): Promise<void> {
  const torn = tornLeaves(pkiDir);
  if (torn.length === 0) return;
  await ensureClusterPki({ dir: pkiDir, cluster });
  log.warn({ torn }, 'certificates that do not belong to their keys were issued again');
}

/** Everybody who uses a certificate reads it again by itself: etcd, gate and admin interface at the next handshake, clients too. */
export function startRenewal(options: RenewalOptions): Renewal {
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'renewal' });
  // Two calls at once do no harm: a key and its certificate are written together (writePair).
  async function issue(reissue: boolean): Promise<readonly IssuedCertificate[]> {
    const { issued } = await ensureClusterPki({
      dir: options.pkiDir,
      cluster: options.cluster,
      now: new Date(clock.wallMs()),
      reissue,
    });
    for (const { file, reason } of issued) log.info({ file, reason }, 'certificate issued');
    return issued;
  }
  const runner = startRunner({
    run: async () => {
      if (options.isLeading()) await issue(false);
    },
    minIntervalMs: 1000,
    retryMs: RETRY_MS,
    maxIntervalMs: CHECK_MS,
    signal: options.signal,
    clock,
    onError: (error) => log.error({ reason: messageOf(error) }, 'certificates not renewed; tried again'),
  });
  return {
    ended: runner.ended,
    check: runner.settled,
    async rotateLeaves() {
      if (options.isLeading()) return issue(true);
      const leader = options.otherLeader?.();
      throw new MeshError({
        code: 'conflict',
        message: `rotating the certificates of ${options.cluster}: this replica of its apiserver does not lead${leader === undefined ? '' : `, replica ${leader} does`}`,
        hint:
          leader === undefined
            ? 'try again when its etcd is connected'
            : 'use the handle file of the replica that leads',
      });
    },
  };
}
