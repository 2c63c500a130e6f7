/**
 * The desired rows of one kernel table, each with what became of it. What is desired never changes in a row: a changed row is a
 * new one, and the one before it reads as replaced. One writer (the projections, through `RowSink`), one reader (the reconciler).
 */
import type { MeshError } from '@clustermesh/contract';
import { NeighbourMap } from './neighbour-map.ts';

export interface RowSink<Row> {
  set(key: string, row: Row): void;
  delete(key: string): void;
}

export interface TableRow<Row> {
  readonly key: string;
  /** Undefined: to be removed from the kernel; the entry goes once that is done. */
  readonly desired: Row | undefined;
  /** `replaced`: another row has taken its place. */
  readonly status: 'pending' | 'done' | 'error' | 'replaced';
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
  /** What to work on now: pending rows, and failed ones whose time has come. */
  due(nowMs: number): TableRow<Row>[];
  /** When the next failed row may be tried again; undefined without failed rows. */
  nextRetryAtMs(): number | undefined;
  /** Writes back what became of a row that was due, unless it has been replaced (then the new one is pending anyway). */
  settle(row: TableRow<Row>, outcome: { readonly error?: MeshError | undefined; readonly retryAtMs?: number }): void;
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
  const rows = new NeighbourMap<SeenRow<Row>>();
  /** Every row that is pending, among others that were. */
  let queue: SeenRow<Row>[] = [];
  let pending = 0;
  const failed = new Set<string>();
  let round = 0;

  function put(row: SeenRow<Row>, before: SeenRow<Row> | undefined): void {
    rows.set(row.key, row);
    if (row.status === 'pending') {
      pending++;
      queue.push(row);
    }
    if (before === undefined) return;
    if (before.status === 'pending') pending--;
    else if (before.status === 'error') failed.delete(row.key);
    before.status = 'replaced';
  }

  const fresh = (key: string, desired: Row | undefined, status: TableRow<Row>['status']): SeenRow<Row> => ({
    key,
    desired,
    status,
    error: undefined,
    failures: 0,
    retryAtMs: 0,
    seen: round,
  });

  function want(key: string, desired: Row | undefined, before: SeenRow<Row> | undefined): void {
    put(fresh(key, desired, 'pending'), before);
  }

  function seed(key: string, row: Row): void {
    put(fresh(key, row, 'done'), rows.get(key));
  }

  return {
    name: options.name,
    equal: options.equal,
    set(key, row) {
      const before = rows.get(key);
      if (before?.desired !== undefined && options.equal(before.desired, row)) return;
      want(key, row, before);
    },
    delete(key) {
      const before = rows.get(key);
      if (before !== undefined && before.desired !== undefined) want(key, undefined, before);
    },
    seed,
    beginRound: () => void round++,
    compare(key, held) {
      const row = rows.get(key);
      if (row === undefined) {
        seed(key, held);
        want(key, undefined, rows.get(key));
        return true;
      }
      row.seen = round;
      if (row.status !== 'done' || row.desired === undefined || options.equal(row.desired, held)) return false;
      want(key, row.desired, row);
      return true;
    },
    isUnseen: (row) => row.status === 'done' && row.desired !== undefined && (row as SeenRow<Row>).seen !== round,
    get: (key) => rows.get(key),
    entries: () => rows.entries(),
    touch(key) {
      const row = rows.get(key);
      if (row !== undefined) want(key, row.desired, row);
    },
    due(nowMs) {
      queue = queue.filter((row) => row.status === 'pending');
      const due = [...queue];
      for (const key of failed) {
        const row = rows.get(key);
        if (row !== undefined && row.retryAtMs <= nowMs) due.push(row);
      }
      return due;
    },
    nextRetryAtMs() {
      let next: number | undefined;
      for (const key of failed) {
        const at = rows.get(key)?.retryAtMs ?? 0;
        if (next === undefined || at < next) next = at;
      }
      return next;
    },
    settle(settled, outcome) {
      if (settled.status === 'replaced') return;
      const row = settled as SeenRow<Row>;
      if (row.status === 'pending') pending--;
      if (outcome.error !== undefined) {
        row.status = 'error';
        row.error = outcome.error;
        row.failures++;
        row.retryAtMs = outcome.retryAtMs ?? 0;
        failed.add(row.key);
        return;
      }
      if (row.status === 'error') failed.delete(row.key);
      row.status = 'done';
      if (row.desired === undefined) {
        rows.delete(row.key);
        return;
      }
      row.error = undefined;
      row.failures = 0;
      row.retryAtMs = 0;
      row.seen = round;
    },
    counts: () => ({ pending, error: failed.size, done: rows.size - pending - failed.size }),
    errors() {
      return [...failed].flatMap((key) => {
        const error = rows.get(key)?.error;
        return error === undefined ? [] : [{ key, error }];
      });
    },
  };
}
