/**
 * The desired rows of one kernel table, each with what became of it. What is desired never changes in a row: a changed row is a
 * new one with a higher revision. One writer (the projections, through `RowSink`), one reader (the reconciler).
 */
import type { MeshError } from '@clustermesh/contract';

export interface RowSink<Row> {
  set(key: string, row: Row): void;
  delete(key: string): void;
}

export interface TableRow<Row> {
  /** Undefined: to be removed from the kernel; the entry goes once that is done. */
  readonly desired: Row | undefined;
  readonly revision: number;
  readonly status: 'pending' | 'done' | 'error';
  readonly error?: MeshError | undefined;
  /** Attempts that failed in a row. */
  readonly failures: number;
  /** Monotonic time before which a failed row is not tried again. */
  readonly retryAtMs: number;
}

export interface TableCounts {
  readonly pending: number;
  readonly done: number;
  readonly error: number;
}

export interface Table<Row> extends RowSink<Row> {
  readonly name: string;
  /** Takes over a row that the kernel already holds. */
  seed(key: string, row: Row): void;
  get(key: string): TableRow<Row> | undefined;
  entries(): IterableIterator<[string, TableRow<Row>]>;
  /** Begins a round in which the kernel's rows are held against these. Rows that are written meanwhile count as seen. */
  beginRound(): void;
  /** The kernel holds this row; true if it should not, or not so: then it is to be mended. */
  compare(key: string, held: Row): boolean;
  /** A row that should be in the kernel and was not seen there in this round: then it is to be written again. */
  isUnseen(row: TableRow<Row>): boolean;
  /** Asks for the row to be written again although its desired value is the same. */
  touch(key: string): void;
  /** Keys to work on now: pending ones, and failed ones whose time has come. */
  due(nowMs: number): string[];
  /** When the next failed row may be tried again; undefined without failed rows. */
  nextRetryAtMs(): number | undefined;
  /** Writes a result back, unless the row has changed since `revision` was read (then it is pending again anyway). */
  settle(
    key: string,
    revision: number,
    outcome: { readonly error?: MeshError | undefined; readonly retryAtMs?: number },
  ): void;
  counts(): TableCounts;
  errors(): { readonly key: string; readonly error: MeshError }[];
  equal(a: Row, b: Row): boolean;
}

/** With a few hundred thousand rows, what becomes of one is noted in place. */
interface SeenRow<Row> extends TableRow<Row> {
  status: TableRow<Row>['status'];
  error: MeshError | undefined;
  failures: number;
  retryAtMs: number;
  /** The last round in which the kernel was seen to hold it, or in which it was written. */
  seen: number;
}

export function createTable<Row>(options: {
  readonly name: string;
  readonly equal: (a: Row, b: Row) => boolean;
}): Table<Row> {
  const rows = new Map<string, SeenRow<Row>>();
  const pending = new Set<string>();
  const failed = new Set<string>();
  let revision = 0;
  let round = 0;

  function put(key: string, row: SeenRow<Row>): void {
    rows.set(key, row);
    if (row.status === 'pending') pending.add(key);
    else pending.delete(key);
    if (failed.size > 0) failed.delete(key);
  }

  const fresh = (desired: Row | undefined, status: TableRow<Row>['status']): SeenRow<Row> => ({
    desired,
    revision: ++revision,
    status,
    error: undefined,
    failures: 0,
    retryAtMs: 0,
    seen: round,
  });

  function want(key: string, desired: Row | undefined): void {
    put(key, fresh(desired, 'pending'));
  }

  function seed(key: string, row: Row): void {
    put(key, fresh(row, 'done'));
  }

  return {
    name: options.name,
    equal: options.equal,
    set(key, row) {
      const before = rows.get(key);
      if (before?.desired !== undefined && options.equal(before.desired, row)) return;
      want(key, row);
    },
    delete(key) {
      const before = rows.get(key);
      if (before !== undefined && before.desired !== undefined) want(key, undefined);
    },
    seed,
    beginRound: () => void round++,
    compare(key, held) {
      const row = rows.get(key);
      if (row === undefined) {
        seed(key, held);
        want(key, undefined);
        return true;
      }
      row.seen = round;
      if (row.status !== 'done' || row.desired === undefined || options.equal(row.desired, held)) return false;
      want(key, row.desired);
      return true;
    },
    isUnseen: (row) => row.status === 'done' && row.desired !== undefined && (row as SeenRow<Row>).seen !== round,
    get: (key) => rows.get(key),
    entries: () => rows.entries(),
    touch(key) {
      const row = rows.get(key);
      if (row !== undefined) want(key, row.desired);
    },
    due(nowMs) {
      const keys = [...pending];
      for (const key of failed) if ((rows.get(key)?.retryAtMs ?? 0) <= nowMs) keys.push(key);
      return keys;
    },
    nextRetryAtMs() {
      let next: number | undefined;
      for (const key of failed) {
        const at = rows.get(key)?.retryAtMs ?? 0;
        if (next === undefined || at < next) next = at;
      }
      return next;
    },
    settle(key, readRevision, outcome) {
      const row = rows.get(key);
      if (row === undefined || row.revision !== readRevision) return;
      pending.delete(key);
      if (outcome.error !== undefined) {
        row.status = 'error';
        row.error = outcome.error;
        row.failures++;
        row.retryAtMs = outcome.retryAtMs ?? 0;
        failed.add(key);
        return;
      }
      if (failed.size > 0) failed.delete(key);
      if (row.desired === undefined) {
        rows.delete(key);
        return;
      }
      row.status = 'done';
      row.error = undefined;
      row.failures = 0;
      row.retryAtMs = 0;
      row.seen = round;
    },
    counts: () => ({ pending: pending.size, error: failed.size, done: rows.size - pending.size - failed.size }),
    errors() {
      return [...failed].flatMap((key) => {
        const error = rows.get(key)?.error;
        return error === undefined ? [] : [{ key, error }];
      });
    },
  };
}
