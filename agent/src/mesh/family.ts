/**
 * One family of one cluster: the decoded rows under one prefix of the local etcd. What does not decode or validate is
 * quarantined: counted, named in the status, and the last good value of that key stays in force.
 */
import { type Decoded, keyName } from '@clustermesh/contract';
import { type Etcd, type HoldDeletes, type SinkBatch, startReflector } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';

/** As a mirror does: what a watch has lost without a word (etcd#17529) is found by a list, however seldom that happens. */
const RESYNC_MS = 600_000;

/** Undefined: there is room for another row. */
export type Room = () => Promise<void> | undefined;

export type RowAction = 'create' | 'modify' | 'delete';

export interface FamilyOptions<T> {
  readonly etcd: Etcd;
  readonly prefix: string;
  readonly canaryKey?: string | undefined;
  readonly log: Log;
  readonly signal: AbortSignal;
  /** Deletes of a writer that fell silent are not believed. */
  readonly holdDeletes?: HoldDeletes | undefined;
  readonly decode: (name: string, value: Buffer) => Decoded<T>;
  /** Names that another source of the same rows has told before: what the first complete list does not have goes then, not earlier. */
  readonly inherited?: ReadonlySet<string> | undefined;
  /** A row by its name behind the prefix; undefined: it is gone. */
  readonly onRow: (name: string, value: T | undefined) => void;
  /** A row that changed after the first complete list; without a value: it is gone. */
  readonly onArrival?: ((action: RowAction, value: T | undefined) => void) | undefined;
  /** After the rows of one batch, or of as many of them as there was room for. */
  readonly onBatch: () => void;
  /** Asked before each row. A promise: no more are taken in until it resolves. Default: there is always room. */
  readonly room?: Room | undefined;
  /** A complete list has been applied. */
  readonly onSynced: () => void;
}

export interface FamilyState {
  /** Complete at least once since the start of this process. */
  readonly synced: boolean;
  /** That list was of the etcd that answers now; false between the loss of an etcd's data and the next complete list. */
  readonly current: boolean;
  /** etcd revision up to which all rows of this family are in memory. */
  readonly revision: number;
  readonly count: number;
  readonly quarantined: number;
  readonly lastQuarantineReason: string | undefined;
  /** Times that following it broke off and was begun again. */
  readonly interruptions: number;
  /** When its etcd last showed on this family's watch that it lives, monotonic; undefined before the first time. */
  readonly lastProofMs: number | undefined;
  /** Rows that etcd has no more, kept because their writer fell silent. */
  readonly held: number;
}

export interface Family {
  state(): FamilyState;
  /** The same as `state().synced`, which is asked for with every restored row. */
  isSynced(): boolean;
  /** Names of the rows in force. */
  names(): ReadonlySet<string>;
}

export function startFamily<T>(options: FamilyOptions<T>): Family {
  const { prefix, log } = options;
  const names = new Set<string>(options.inherited);
  /** Of the inherited names, those that this source has not told itself. */
  let unconfirmed: Set<string> | undefined = new Set(options.inherited);
  const quarantine = new Map<string, string>();
  let lastQuarantineReason: string | undefined;
  let listedEpoch: number | undefined;
  let revision = 0;

  function upsert(key: string, value: Buffer): void {
    const name = keyName(key, prefix);
    if (name === undefined) return;
    unconfirmed?.delete(name);
    const decoded = options.decode(name, value);
    if (!decoded.ok) {
      if (quarantine.get(name) !== decoded.reason) log.warn({ key, reason: decoded.reason }, 'object quarantined');
      quarantine.set(name, decoded.reason);
      lastQuarantineReason = decoded.reason;
      return;
    }
    if (quarantine.size > 0) quarantine.delete(name);
    const known = names.size;
    names.add(name);
    const action = names.size === known ? 'modify' : 'create';
    options.onRow(name, decoded.value);
    if (listedEpoch !== undefined) options.onArrival?.(action, decoded.value);
  }

  /** The first complete list has been applied: inherited rows that it did not have are gone. */
  function dropUnconfirmed(): void {
    for (const name of unconfirmed ?? []) if (names.delete(name)) options.onRow(name, undefined);
    unconfirmed = undefined;
  }

  function remove(key: string): void {
    const name = keyName(key, prefix);
    if (name === undefined) return;
    quarantine.delete(name);
    if (!names.delete(name)) return;
    options.onRow(name, undefined);
    if (listedEpoch !== undefined) options.onArrival?.('delete', undefined);
  }

  /** From the row at `at` on; waits where there is no room. At once if there is, so that a change is not later than it need be. */
  function take(batch: SinkBatch, at: number): Promise<void> | undefined {
    const { upserts, removes } = batch;
    // A reflector that was told to stop may still hand over what it had in flight.
    if (options.signal.aborted) return undefined;
    for (let i = at; i < upserts.length + removes.length; i++) {
      const room = options.room?.();
      if (room !== undefined) {
        options.onBatch();
        return room.then(() => take(batch, i));
      }
      const row = upserts[i];
      if (row === undefined) remove(removes[i - upserts.length]!);
      else upsert(row.key, row.value);
    }
    if (batch.kind === 'watch') revision = Math.max(revision, batch.revision);
    options.onBatch();
    return undefined;
  }

  const reflector = startReflector({
    etcd: options.etcd,
    prefix,
    canaryKey: options.canaryKey,
    holdDeletes: options.holdDeletes,
    resyncIntervalMs: RESYNC_MS,
    log,
    signal: options.signal,
    sink: {
      apply: (batch) => take(batch, 0),
      synced(listRevision) {
        if (options.signal.aborted) return;
        // Set, not raised: a rebuilt etcd counts from one again.
        revision = listRevision;
        dropUnconfirmed();
        listedEpoch = options.etcd.epoch;
        options.onSynced();
      },
    },
  });

  return {
    state: () => ({
      synced: listedEpoch !== undefined,
      current: listedEpoch === options.etcd.epoch,
      revision,
      count: names.size,
      quarantined: quarantine.size,
      lastQuarantineReason: quarantine.size > 0 ? lastQuarantineReason : undefined,
      interruptions: reflector.status().reconnects,
      lastProofMs: reflector.status().lastProofOfLifeAt,
      held: reflector.status().held,
    }),
    isSynced: () => listedEpoch !== undefined,
    names: () => names,
  };
}
