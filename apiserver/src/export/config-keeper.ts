/**
 * Keeps `cilium/cluster-config/<own>` as it should be: it is the handshake, and a peer that reads another id in it refuses this
 * cluster. Repaired at once when somebody alters or deletes it, and looked at every five minutes (wire-contract §1.3).
 */
import { clusterConfigKey, messageOf } from '@clustermesh/contract';
import { type Etcd, startReflector } from '@clustermesh/kvstore';
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';
import { countRuns, type KvstoreMetrics } from '../kvstore-metrics.ts';
import { fencedWrite, type WriteRight } from '../write-right.ts';

export interface ConfigKeeperOptions {
  readonly etcd: Etcd;
  readonly cluster: string;
  readonly value: string;
  readonly right: WriteRight;
  readonly metrics?: KvstoreMetrics | undefined;
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export interface ConfigKeeper {
  /** It is in the etcd that answers now. */
  isWritten(): boolean;
  /** Times that it was found altered or gone. */
  repairs(): number;
  problems(): readonly string[];
  readonly ended: Promise<void>;
}

const REFRESH_MS = 300_000;
/** Against somebody who insists: no more than ten writes a second. */
const LEAST_INTERVAL_MS = 100;
/** For how long a repair is worth a line in the status. */
const RECENT_MS = 60_000;

export function keepClusterConfig(options: ConfigKeeperOptions): ConfigKeeper {
  const { etcd, right, log, clock, signal } = options;
  const key = clusterConfigKey(options.cluster);
  /** The etcd in which it has been right: that it is missing in a new one is nobody's doing. */
  let rightIn: number | undefined;
  let repairs = 0;
  let repairedAt: number | undefined;

  const pass = async () => {
    const there = (await etcd.get(key, { signal }))?.value.toString();
    if (there !== options.value) {
      const isForeign = rightIn === etcd.epoch;
      await fencedWrite(etcd, right, [{ put: key, value: options.value }], {
        attempted: 'writing the cluster config',
        signal,
      });
      if (isForeign) {
        repairs++;
        repairedAt = clock.nowMs();
        log.warn({ key, found: there ?? 'nothing' }, 'somebody else changed the cluster config: put right');
      }
    }
    rightIn = etcd.epoch;
  };

  const runner = startRunner({
    run: countRuns(options.metrics, 'clustermesh-cluster-config-enforcer', pass),
    minIntervalMs: LEAST_INTERVAL_MS,
    retryMs: 200,
    maxIntervalMs: REFRESH_MS,
    signal,
    clock,
    onError: (error, failures) => {
      if (failures === 1 && !signal.aborted) log.warn({ reason: messageOf(error) }, 'cluster config waits');
    },
  });
  const reflector = startReflector({
    etcd,
    prefix: key,
    log,
    clock,
    signal,
    backoff: { minMs: 100, maxMs: 5_000 },
    sink: {
      apply: ({ upserts, removes }) => {
        if (removes.includes(key) || upserts.some((row) => row.key === key)) runner.trigger();
      },
      synced: runner.trigger,
    },
  });
  const stopFollowing = right.leadership.onChange(() => {
    runner.trigger();
    runner.retryNow();
  });
  runner.trigger();

  return {
    isWritten: () => rightIn === etcd.epoch,
    repairs: () => repairs,
    problems: () =>
      repairedAt === undefined || clock.nowMs() - repairedAt > RECENT_MS
        ? []
        : [
            `${key} was changed by somebody else ${repairs === 1 ? 'once' : `${repairs} times`}, and put right each time`,
          ],
    ended: Promise.all([runner.ended, reflector.done]).then(stopFollowing),
  };
}
