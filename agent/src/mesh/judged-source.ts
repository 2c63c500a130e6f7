/**
 * A reflector over a prefix that has no canary of its own. Whether absence from a complete list means removal is asked of the
 * store memory; deletes that are seen as they happen always count.
 */
import type { Etcd, SinkBatch } from '@clustermesh/kvstore';
import { startReflector } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import type { StoreMemory } from './store-memory.ts';

export interface JudgedSource {
  /** A complete list has been applied. */
  isSynced(): boolean;
  /** That list was of the etcd that answers now. */
  isCurrent(): boolean;
  revision(): number;
  /** Times that following it broke off and was begun again. */
  interruptions(): number;
  /** When etcd last showed on this watch that it lives, monotonic. */
  lastProofMs(): number | undefined;
  /** What the first list did not have, though the kernel has it, was removed while this agent was away. */
  trustsAbsence(): boolean;
  /** The connection of the last complete list. */
  connection(): number | undefined;
}

export function startJudgedSource(options: {
  readonly etcd: Etcd;
  readonly prefix: string;
  readonly memory: StoreMemory;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly apply: (batch: SinkBatch, isSameStore: boolean) => void;
  /** A list is complete, or what `trustsAbsence` answers has changed. */
  readonly onSynced: () => void;
}): JudgedSource {
  const { etcd, memory, signal } = options;
  let listedEpoch: number | undefined;
  let connection: number | undefined;
  let revision = 0;
  let trust: boolean | undefined;

  /** Once, for the first list that somebody could vouch for. */
  async function judgeFirstList(): Promise<void> {
    if (trust !== undefined) return;
    try {
      const isKnown = await memory.isKnown();
      if (signal.aborted) return;
      trust ??= isKnown;
      options.onSynced();
    } catch (error) {
      // The connection broke: the list after the next one asks again.
      options.log.debug({ err: error, prefix: options.prefix }, 'the store could not be judged');
    }
  }

  const reflector = startReflector({
    etcd,
    prefix: options.prefix,
    log: options.log,
    signal,
    sink: {
      apply(batch) {
        if (signal.aborted) return;
        if (batch.kind === 'watch') {
          revision = Math.max(revision, batch.revision);
          options.apply(batch, true);
          return;
        }
        if (batch.removes.length === 0) {
          options.apply(batch, true);
          return;
        }
        // If it cannot be asked, the reflector lists again.
        return memory.isKnown().then((isKnown) => {
          if (!signal.aborted) options.apply(batch, isKnown);
        });
      },
      synced(listRevision) {
        if (signal.aborted) return;
        revision = listRevision;
        listedEpoch = etcd.epoch;
        connection = etcd.connection;
        options.onSynced();
        void judgeFirstList();
      },
    },
  });

  return {
    isSynced: () => listedEpoch !== undefined,
    isCurrent: () => listedEpoch === etcd.epoch,
    revision: () => revision,
    interruptions: () => reflector.status().reconnects,
    lastProofMs: () => reflector.status().lastProofOfLifeAt,
    trustsAbsence: () => trust === true,
    connection: () => connection,
  };
}
