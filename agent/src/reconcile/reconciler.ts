/**
 * Closes the difference between a table and the kernel, in batches. It knows nothing of what the rows mean.
 *
 *   pass()   works on the rows that changed or are due for another try
 *   check()  reads the kernel whole and asks for what differs: rows changed, lost or added behind our back
 *
 * A row that fails becomes an error row and is tried again later; the others are unaffected. Which rows may be pruned is
 * decided before: whatever must stay is in the table (projections keep restored rows until their source has synced).
 */
import { setImmediate } from 'node:timers/promises';
import { MeshError } from '@clustermesh/contract';
import type { Clock } from '@clustermesh/runtime';
import type { MapOps, OpResult } from '../datapath/types.ts';
import type { Table, TableRow } from './table.ts';

export interface ReconcilerOptions<Row> {
  readonly table: Table<Row>;
  readonly ops: MapOps<Row>;
  readonly clock: Clock;
  /** Rows per call of the ops (default 1000). */
  readonly batchSize?: number;
  /** First delay after a failure (default 100 ms); doubles up to `maxRetryMs` (default 10 s). */
  readonly retryMs?: number;
  readonly maxRetryMs?: number;
}

export interface PassResult {
  readonly updated: number;
  readonly removed: number;
  readonly failed: number;
}

export interface Reconciler {
  /**
   * `part`: what comes and what goes may be done apart, where other tables must follow in between.
   */
  pass(part?: 'all' | 'updates' | 'removes'): Promise<PassResult>;
  /**
   * Returns how many rows differed. The next pass mends them. May run beside passes if `isScanned`: each row is compared in the
   * moment in which it is read. Otherwise not.
   */
  check(): Promise<number>;
  readonly isScanned: boolean;
}

/** Rows looked at before others have their turn. */
const SLICE = 10_000;

export function createReconciler<Row>(options: ReconcilerOptions<Row>): Reconciler {
  const { table, ops, clock } = options;
  const batchSize = options.batchSize ?? 1000;
  const retryMs = options.retryMs ?? 100;
  const maxRetryMs = options.maxRetryMs ?? 10_000;

  /** Runs one batch and writes the results back; returns the work that failed. */
  async function runBatch(batch: readonly TableRow<Row>[], call: () => Promise<OpResult[]>): Promise<TableRow<Row>[]> {
    let errorOf: (row: TableRow<Row>, index: number) => MeshError | undefined;
    try {
      const results = await call();
      errorOf = (row, index) => {
        const result = results[index];
        if (result?.key === row.key) return result.error;
        return new MeshError({
          code: 'internal',
          message: `programming row ${row.key} of ${table.name}: the datapath gave no result`,
        });
      };
    } catch (error) {
      const failure = MeshError.from(error, `programming ${batch.length} rows of ${table.name}`, 'kernel');
      errorOf = () => failure;
    }
    const failed: TableRow<Row>[] = [];
    for (const [index, row] of batch.entries()) {
      const error = errorOf(row, index);
      if (error === undefined) {
        table.settle(row, {});
        continue;
      }
      const delay = Math.min(retryMs * 2 ** Math.min(row.failures, 16), maxRetryMs);
      table.settle(row, { error, retryAtMs: clock.nowMs() + delay });
      failed.push(row);
    }
    return failed;
  }

  async function inBatches(
    work: readonly TableRow<Row>[],
    call: (batch: readonly TableRow<Row>[]) => Promise<OpResult[]>,
  ): Promise<TableRow<Row>[]> {
    const failed: TableRow<Row>[] = [];
    for (let at = 0; at < work.length; at += batchSize) {
      // In place of a row that changed while an earlier batch was written, another is pending: the next pass takes it.
      const batch = work.slice(at, at + batchSize).filter(({ status }) => status !== 'replaced');
      if (batch.length === 0) continue;
      failed.push(...(await runBatch(batch, () => call(batch))));
    }
    return failed;
  }

  async function update(work: readonly TableRow<Row>[]): Promise<TableRow<Row>[]> {
    return inBatches(work, (batch) => ops.update(batch.map(({ desired }) => desired as Row)));
  }

  return {
    isScanned: ops.scan !== undefined,
    async pass(part = 'all') {
      const updates: TableRow<Row>[] = [];
      const removes: TableRow<Row>[] = [];
      for (const row of table.due(clock.nowMs())) {
        if (part === (row.desired === undefined ? 'updates' : 'removes')) continue;
        (row.desired === undefined ? removes : updates).push(row);
      }
      // Make before break: what is new is there before what is old goes. A full map is the exception: removing makes room,
      // so what did not fit is tried once more after that.
      let failedUpdates = await update(updates);
      const failedRemoves = await inBatches(removes, (batch) => ops.remove(batch.map(({ key }) => key)));
      if (failedUpdates.length > 0 && removes.length > failedRemoves.length)
        failedUpdates = await update(failedUpdates);
      return {
        updated: updates.length - failedUpdates.length,
        removed: removes.length - failedRemoves.length,
        failed: failedUpdates.length + failedRemoves.length,
      };
    },

    async check() {
      table.beginRound();
      let differences = 0;
      const compare = (key: string, held: Row) => {
        if (table.compare(key, held)) differences++;
      };
      if (ops.scan !== undefined) await ops.scan(compare);
      else for (const [key, held] of await ops.list()) compare(key, held);
      let looked = 0;
      for (const [key, row] of table.entries()) {
        if (table.isUnseen(row)) {
          table.touch(key);
          differences++;
        }
        if (ops.scan !== undefined && ++looked % SLICE === 0) await setImmediate();
      }
      return differences;
    },
  };
}
