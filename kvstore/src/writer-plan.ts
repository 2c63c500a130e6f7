/** The pure part of the writer: what differs, and how it is cut into transactions. */

export interface Operation {
  readonly key: string;
  /** Undefined: delete. */
  readonly value: Buffer | undefined;
}

/** etcd allows 128 operations in a transaction; some room is left for a fence. */
export const MAX_OPERATIONS = 100;
/** etcd takes 1.5 MiB in one request; a third of it keeps the pauses that a big transaction causes short. */
export const MAX_BYTES = 512 << 10;

/** Cuts operations into transactions in the order given. An oversized operation gets one of its own. */
export function* batches(operations: Iterable<Operation>, atMost = MAX_OPERATIONS): Generator<Operation[], void, void> {
  const limit = Math.min(atMost, MAX_OPERATIONS);
  let batch: Operation[] = [];
  let bytes = 0;
  for (const operation of operations) {
    const size = operation.key.length + (operation.value?.length ?? 0) + 32;
    if (batch.length > 0 && (batch.length >= limit || bytes + size > MAX_BYTES)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(operation);
    bytes += size;
  }
  if (batch.length > 0) yield batch;
}

export function isUnder(prefixes: Iterable<string>, key: string): boolean {
  for (const prefix of prefixes) if (key.startsWith(prefix)) return true;
  return false;
}

export interface Actual {
  readonly value: Buffer;
  /** False for a key that hangs on another lease than the writer's. */
  readonly leaseFits: boolean;
}

export interface Difference {
  /** Keys to write or delete, desired keys first and in the order in which they were set. */
  readonly dirty: Set<string>;
  /** What is in etcd as wanted or not, by key. Values equal to the desired one share its buffer. */
  readonly applied: Map<string, Buffer>;
}

/** Compares what should be with what is. A key that is there but not desired goes only if `isLeftover` says so. */
export function difference(
  desired: ReadonlyMap<string, Buffer>,
  actual: ReadonlyMap<string, Actual>,
  isLeftover: (key: string) => boolean,
): Difference {
  const dirty = new Set<string>();
  const applied = new Map<string, Buffer>();
  for (const [key, value] of desired) {
    const there = actual.get(key);
    if (there?.leaseFits === true && there.value.equals(value)) applied.set(key, value);
    else dirty.add(key);
  }
  for (const [key, there] of actual) {
    if (desired.has(key)) continue;
    applied.set(key, there.value);
    if (isLeftover(key)) dirty.add(key);
  }
  return { dirty, applied };
}
