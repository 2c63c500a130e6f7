/** Is what should be in the kernel there, and nothing else? Reads only; mending is the sync loop's work. */
import { type Clock, systemClock } from '@clustermesh/runtime';
import type { Datapath } from './datapath/types.ts';
import type { Table } from './reconcile/table.ts';
import { TABLE_NAMES, type Tables } from './sync.ts';

export interface Difference {
  readonly key: string;
  /** `refused`: the kernel did not take the row. `waiting`: it is about to be written or removed. */
  readonly kind: 'missing' | 'unexpected' | 'different' | 'refused' | 'waiting';
  readonly desired?: unknown;
  readonly held?: unknown;
  readonly reason?: string;
}

export interface TableVerdict {
  readonly table: string;
  /** Rows that should be there, and rows that are. */
  readonly desired: number;
  readonly held: number;
  readonly differences: number;
  /** The first of them. */
  readonly examples: readonly Difference[];
}

const EXAMPLES = 100;
/** Rows on their way are not wrong yet: what differs is looked at again, so often, after so long. */
const LOOKS = 4;
const PAUSE_MS = 500;

type ReadableOps<Row> = { list(): Promise<Map<string, Row>>; read?: () => Promise<Map<string, Row>> };

async function compare<Row>(table: Table<Row>, ops: ReadableOps<Row>) {
  const held = await (ops.read?.() ?? ops.list());
  const differences = new Map<string, Difference>();
  let desired = 0;
  for (const [key, row] of table.entries()) {
    const there = held.get(key);
    const both = {
      ...(row.desired === undefined ? {} : { desired: row.desired }),
      ...(there === undefined ? {} : { held: there }),
    };
    if (row.desired !== undefined) desired++;
    const isRight =
      row.desired === undefined ? there === undefined : there !== undefined && table.equal(row.desired, there);
    if (isRight) continue;
    if (row.status === 'error')
      differences.set(key, { key, kind: 'refused', ...both, reason: row.error?.message ?? 'unknown' });
    else if (row.status === 'pending') differences.set(key, { key, kind: 'waiting', ...both });
    else differences.set(key, { key, kind: there === undefined ? 'missing' : 'different', ...both });
  }
  for (const [key, row] of held) {
    if (table.get(key) === undefined) differences.set(key, { key, kind: 'unexpected', held: row });
  }
  return { desired, held: held.size, differences };
}

async function verifyTable<Row>(table: Table<Row>, ops: ReadableOps<Row>, clock: Clock): Promise<TableVerdict> {
  let last = await compare(table, ops);
  for (let look = 1; look < LOOKS && last.differences.size > 0; look++) {
    await clock.sleep(PAUSE_MS);
    const before = last.differences;
    last = await compare(table, ops);
    // Only what differed all the time is wrong; the rest was on its way.
    for (const key of last.differences.keys()) if (!before.has(key)) last.differences.delete(key);
  }
  const { desired, held, differences } = last;
  return {
    table: table.name,
    desired,
    held,
    differences: differences.size,
    examples: [...differences.values()].slice(0, EXAMPLES),
  };
}

export async function verify(
  tables: Tables,
  datapath: Pick<Datapath, (typeof TABLE_NAMES)[number]>,
  clock: Clock = systemClock,
): Promise<TableVerdict[]> {
  const verdicts: TableVerdict[] = [];
  for (const name of TABLE_NAMES) {
    verdicts.push(await verifyTable(tables[name] as Table<object>, datapath[name] as ReadableOps<object>, clock));
  }
  return verdicts;
}
