/** A typed view of one kernel map. Rows go in and out in batches; each row gets its own result. */
import { setImmediate } from 'node:timers/promises';
import type { Codec, MapLayout } from '@clustermesh/bpf';
import { MeshError } from '@clustermesh/contract';
import * as libbpf from './libbpf.ts';

/** Large enough that the syscall no longer counts (0.6 µs a row), small enough not to hold up the event loop. */
const BATCH = 1000;

export interface BpfMap<K, V> {
  readonly name: string;
  readonly fd: number;
  readonly id: number;
  readonly maxEntries: number;
  lookup(key: K): V | undefined;
  /** One entry per row: undefined, or why the kernel did not take it. */
  update(rows: readonly (readonly [K, V])[]): Promise<(MeshError | undefined)[]>;
  /** What is absent already counts as removed. */
  remove(keys: readonly K[]): Promise<(MeshError | undefined)[]>;
  /**
   * Every row once; rows that come and go meanwhile may or may not be among them. In slices: `visit` sees what the kernel holds at
   * that moment, and between slices others have their turn.
   */
  scan(visit: (key: K, value: V) => void): Promise<void>;
  entries(): Promise<[K, V][]>;
  /** How many rows there are, in slices as scan() reads them. */
  count(): Promise<number>;
}

function encodeAll<T>(codec: Codec<T>, values: readonly T[]): Buffer {
  const into = Buffer.alloc(codec.size * values.length);
  values.forEach((value, i) => void codec.encode(value, into, i * codec.size));
  return into;
}

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
   * Runs `batch` over rows from..n. The kernel stops at the first row that it refuses: that one gets the error (unless
   * it is `forgiven`), and the next batch begins behind it. Kernels without this batch call get one call per row.
   */
  async function inBatches(
    n: number,
    doing: string,
    forgiven: number,
    many: (from: number, count: number) => libbpf.BatchResult,
    one: (index: number) => number,
  ): Promise<(MeshError | undefined)[]> {
    const results = new Array<MeshError | undefined>(n).fill(undefined);
    const settle = (index: number, rc: number): void => {
      if (rc < 0 && rc !== forgiven) results[index] = failure(doing, rc);
    };
    let batching = true;
    for (let at = 0; at < n; ) {
      const size = Math.min(BATCH, n - at);
      const { rc, count } = batching ? many(at, size) : { rc: -libbpf.ENOTSUPP, count: 0 };
      if (unsupported(rc)) {
        batching = false;
        for (let i = at; i < at + size; i++) settle(i, one(i));
        at += size;
      } else if (rc < 0) {
        settle(at + count, rc);
        at += count + 1;
      } else {
        at += size;
      }
      if (at < n) await setImmediate();
    }
    return results;
  }

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

    update(rows) {
      const keys = encodeAll(
        keyCodec,
        rows.map(([key]) => key),
      );
      const values = encodeAll(
        valueCodec,
        rows.map(([, value]) => value),
      );
      const slice = (all: Buffer, size: number, from: number, count: number) =>
        all.subarray(from * size, (from + count) * size);
      return inBatches(
        rows.length,
        'writing to',
        0,
        (from, n) =>
          libbpf.updateBatch(fd, slice(keys, keyCodec.size, from, n), slice(values, valueCodec.size, from, n), n),
        (i) => libbpf.mapUpdate(fd, slice(keys, keyCodec.size, i, 1), slice(values, valueCodec.size, i, 1)),
      );
    },

    remove(toRemove) {
      const keys = encodeAll(keyCodec, toRemove);
      const slice = (from: number, count: number) =>
        keys.subarray(from * keyCodec.size, (from + count) * keyCodec.size);
      return inBatches(
        toRemove.length,
        'removing from',
        -libbpf.ENOENT,
        (from, n) => libbpf.deleteBatch(fd, slice(from, n), n),
        (i) => libbpf.mapDelete(fd, slice(i, 1)),
      );
    },

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
