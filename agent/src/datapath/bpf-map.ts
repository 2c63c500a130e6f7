/** A typed view of one kernel map. Rows go in and out in batches; each row gets its own result. */
import { setImmediate } from 'node:timers/promises';
import type { MapLayout } from '@clustermesh/bpf';
import { MeshError } from '@clustermesh/contract';
import * as libbpf from './libbpf.ts';

/** Large enough that the syscall no longer counts (0.6 µs a row), small enough not to hold up the event loop. */
const BATCH = 1000;

/** The row at `index` cannot be said in bytes. */
type Refused = (index: number, error: unknown) => void;

/** What is done with the rows of a window. */
interface Batches {
  readonly doing: string;
  /** An error of a row that is none. */
  readonly forgiven: number;
  many(from: number, count: number): libbpf.BatchResult;
  one(place: number): number;
}

export interface BpfMap<K, V> {
  readonly name: string;
  readonly fd: number;
  readonly id: number;
  readonly maxEntries: number;
  lookup(key: K): V | undefined;
  /** One entry per row: undefined, or why the kernel did not take it. */
  update(rows: readonly (readonly [K, V])[]): Promise<(MeshError | undefined)[]>;
  /**
   * The same of rows that become the kernel's only here, a window of them at a time: `key` or `value` may throw, which `refused` is told
   * of; the others are written.
   */
  updateEach<Row>(
    rows: readonly Row[],
    key: (row: Row) => K,
    value: (row: Row) => V,
    refused: Refused,
  ): Promise<(MeshError | undefined)[]>;
  /** What is absent already counts as removed. */
  remove(keys: readonly K[]): Promise<(MeshError | undefined)[]>;
  removeEach<Row>(rows: readonly Row[], key: (row: Row) => K, refused: Refused): Promise<(MeshError | undefined)[]>;
  /**
   * Every row once; rows that come and go meanwhile may or may not be among them. In slices: `visit` sees what the kernel holds at
   * that moment, and between slices others have their turn.
   */
  scan(visit: (key: K, value: V) => void): Promise<void>;
  entries(): Promise<[K, V][]>;
  /** How many rows there are, in slices as scan() reads them. */
  count(): Promise<number>;
}

const rethrow: Refused = (_, error) => {
  throw error;
};

const unsupported = (rc: number): boolean => rc === -libbpf.ENOTSUPP || rc === -libbpf.EOPNOTSUPP;

export function openMap<K, V>(name: string, fd: number, layout: MapLayout<K, V>): BpfMap<K, V> {
  const { id, maxEntries } = libbpf.mapInfo(fd);
  const { key: keyCodec, value: valueCodec } = layout;

  function failure(doing: string, rc: number): MeshError {
    if (rc === -libbpf.E2BIG || rc === -libbpf.ENOSPC) {
      return new MeshError({
        code: 'map-full',
        message: `${doing} ${name}: the map is full (${maxEntries} rows)`,
        hint: `Enlarge ${name} (mapSizes) or reduce what is programmed; the row is tried again by itself.`,
        retryable: true,
      });
    }
    const retryable = rc === -libbpf.ENOMEM;
    return new MeshError({ code: 'kernel', message: `${doing} ${name}: ${libbpf.errnoText(rc)}`, retryable });
  }

  /**
   * One window of rows as bytes, in which every call encodes: it is filled and handed over without a pause in between, and whole
   * tables pass through it without leaving garbage.
   */
  let keys = Buffer.alloc(0);
  let values = Buffer.alloc(0);
  const keysAt = (place: number, n: number) => keys.subarray(place * keyCodec.size, (place + n) * keyCodec.size);
  const valuesAt = (place: number, n: number) =>
    values.subarray(place * valueCodec.size, (place + n) * valueCodec.size);
  function makeRoom(rows: number): void {
    const room = Math.min(rows, BATCH);
    if (keys.length >= room * keyCodec.size && values.length >= room * valueCodec.size) return;
    keys = Buffer.alloc(room * keyCodec.size);
    values = Buffer.alloc(room * valueCodec.size);
  }

  /**
   * Window by window. The kernel stops at the first row that it refuses: that one gets the error (unless it is forgiven), and the next
   * call begins behind it. Kernels without this batch call get one call per row.
   */
  async function inBatches<Row>(
    rows: readonly Row[],
    encode: (row: Row, place: number) => void,
    refused: Refused,
    { doing, forgiven, many, one }: Batches,
  ): Promise<(MeshError | undefined)[]> {
    const results = new Array<MeshError | undefined>(rows.length).fill(undefined);
    /** Which row each place of the window has. */
    const rowAt = new Uint32Array(Math.min(rows.length, BATCH));
    const settle = (place: number, rc: number): void => {
      if (rc < 0 && rc !== forgiven) results[rowAt[place]!] = failure(doing, rc);
    };
    let batching = true;
    for (let start = 0; start < rows.length; start += BATCH) {
      if (start > 0) await setImmediate();
      makeRoom(rows.length - start);
      const end = Math.min(start + BATCH, rows.length);
      let filled = 0;
      for (let i = start; i < end; i++) {
        try {
          encode(rows[i]!, filled);
          rowAt[filled++] = i;
        } catch (error) {
          refused(i, error);
        }
      }
      for (let at = 0; at < filled; ) {
        const { rc, count } = batching ? many(at, filled - at) : { rc: -libbpf.ENOTSUPP, count: 0 };
        if (unsupported(rc)) {
          batching = false;
          for (; at < filled; at++) settle(at, one(at));
        } else if (rc < 0) {
          settle(at + count, rc);
          at += count + 1;
        } else {
          at = filled;
        }
      }
    }
    return results;
  }

  const updateEach: BpfMap<K, V>['updateEach'] = (rows, key, value, refused) =>
    inBatches(
      rows,
      (row, place) => {
        keyCodec.encode(key(row), keys, place * keyCodec.size);
        valueCodec.encode(value(row), values, place * valueCodec.size);
      },
      refused,
      {
        doing: 'writing to',
        forgiven: 0,
        many: (from, n) => libbpf.updateBatch(fd, keysAt(from, n), valuesAt(from, n), n),
        one: (place) => libbpf.mapUpdate(fd, keysAt(place, 1), valuesAt(place, 1)),
      },
    );

  const removeEach: BpfMap<K, V>['removeEach'] = (rows, key, refused) =>
    inBatches(rows, (row, place) => void keyCodec.encode(key(row), keys, place * keyCodec.size), refused, {
      doing: 'removing from',
      forgiven: -libbpf.ENOENT,
      many: (from, n) => libbpf.deleteBatch(fd, keysAt(from, n), n),
      one: (place) => libbpf.mapDelete(fd, keysAt(place, 1)),
    });

  /** `take` gets so many keys and values at a time, as bytes. False if the kernel has no batches for this kind of map. */
  async function readBatches(take: (keys: Buffer, values: Buffer, n: number) => void): Promise<boolean> {
    // A hash map's token is a bucket number, a trie's is a key.
    let token = Buffer.alloc(Math.max(4, keyCodec.size));
    let started = false;
    let room = BATCH;
    for (;;) {
      const keys = Buffer.alloc(room * keyCodec.size);
      const values = Buffer.alloc(room * valueCodec.size);
      const next = Buffer.alloc(token.length);
      const { rc, count } = libbpf.lookupBatch(fd, started ? token : null, next, keys, values, room);
      if (rc === -libbpf.ENOSPC) {
        room *= 2; // one bucket holds more than we made room for
        continue;
      }
      if (unsupported(rc)) return false;
      if (rc < 0 && rc !== -libbpf.ENOENT) throw failure('listing', rc);
      take(keys, values, count);
      if (rc === -libbpf.ENOENT) return true; // that was the last batch
      token = next;
      started = true;
      await setImmediate();
    }
  }

  async function scan(visit: (key: K, value: V) => void): Promise<void> {
    const isDone = await readBatches((keys, values, n) => {
      for (let i = 0; i < n; i++) {
        visit(keyCodec.decode(keys, i * keyCodec.size), valueCodec.decode(values, i * valueCodec.size));
      }
    });
    if (!isDone) scanOneByOne(fd, layout, visit);
  }

  return {
    name,
    fd,
    id,
    maxEntries,

    lookup(key) {
      const value = Buffer.alloc(valueCodec.size);
      const rc = libbpf.mapLookup(fd, keyCodec.encode(key), value);
      if (rc === -libbpf.ENOENT) return undefined;
      if (rc < 0) throw failure('reading from', rc);
      return valueCodec.decode(value);
    },

    update: (rows) =>
      updateEach(
        rows,
        ([key]) => key,
        ([, value]) => value,
        rethrow,
      ),
    updateEach,
    remove: (toRemove) => removeEach(toRemove, (key) => key, rethrow),
    removeEach,

    scan,
    async entries() {
      const found: [K, V][] = [];
      await scan((key, value) => void found.push([key, value]));
      return found;
    },
    async count() {
      let rows = 0;
      const isDone = await readBatches((_keys, _values, n) => {
        rows += n;
      });
      if (!isDone) scanOneByOne(fd, layout, () => rows++);
      return rows;
    },
  };
}

function scanOneByOne<K, V>(fd: number, { key, value }: MapLayout<K, V>, visit: (key: K, value: V) => void): void {
  const next = Buffer.alloc(key.size);
  const bytes = Buffer.alloc(value.size);
  for (let at: Buffer | null = null; libbpf.mapNextKey(fd, at, next) === 0; at = Buffer.from(next)) {
    if (libbpf.mapLookup(fd, next, bytes) === 0) visit(key.decode(next), value.decode(bytes));
  }
}
