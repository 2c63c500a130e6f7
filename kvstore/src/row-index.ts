/** What a reflector remembers of its rows: enough to tell change from repetition and to find what a list no longer has. Pure. */

interface Entry {
  modRevision: number;
  hash: number;
  /** Of key and value, in bytes. */
  size: number;
  /** Goes by itself when its writer does. */
  leased: boolean;
  /** The list or watch period that saw the row last. */
  seen: number;
}

const rotated = (x: number, bits: number): number => (x << bits) | (x >>> (32 - bits));
const mixed = (word: number): number => Math.imul(rotated(Math.imul(word, 0xcc9e2d51), 15), 0x1b873593);

/**
 * MurmurHash3 (x86, 32 bits, seed 0): four bytes at a time, as this is done to every byte of every list. Revisions alone do not tell a
 * change: a rebuilt or restored etcd counts them again.
 */
export function hashOf(value: Uint8Array): number {
  const { length } = value;
  const whole = length & ~3;
  let hash = 0;
  for (let i = 0; i < whole; i += 4) {
    const word = value[i]! | (value[i + 1]! << 8) | (value[i + 2]! << 16) | (value[i + 3]! << 24);
    hash = (Math.imul(rotated(hash ^ mixed(word), 13), 5) + 0xe6546b64) | 0;
  }
  let rest = 0;
  for (let i = length - 1; i >= whole; i--) rest = (rest << 8) | value[i]!;
  if (whole < length) hash ^= mixed(rest);
  hash ^= length;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

export interface IndexedRow {
  readonly key: string;
  readonly value: Buffer;
  readonly modRevision: number;
  /** '0' or absent: not leased. */
  readonly lease?: string;
}

/** A row that etcd must still show, as it was, for a cursor to be worth anything. */
export interface Anchor {
  readonly key: string;
  readonly modRevision: number;
  readonly hash: number;
}

export function sizeOf(row: IndexedRow): number {
  return row.key.length + row.value.length;
}

/** Deletes remembered one by one; of older ones only the highest revision. */
const MAX_TOMBSTONES = 10_000;

export class RowIndex {
  readonly #entries = new Map<string, Entry>();
  /** Keys removed by events, with the revision: a replayed put must not bring one back (etcd#15271, #20221). */
  readonly #tombstones = new Map<string, number>();
  #forgottenUpTo = 0;
  #period = 0;
  #bytes = 0;
  #newest: string | undefined;
  #newestRevision = 0;

  get size(): number {
    return this.#entries.size;
  }

  /** Of keys and values. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The row that was changed last; undefined if that is not known, or it has been removed since. */
  get anchor(): Anchor | undefined {
    const entry = this.#newest === undefined ? undefined : this.#entries.get(this.#newest);
    return entry && { key: this.#newest!, modRevision: entry.modRevision, hash: entry.hash };
  }

  /** Every row is stale until the list that begins now has shown it. */
  beginList(): void {
    this.#period++;
    this.#newest = undefined;
    this.#newestRevision = 0;
    this.#tombstones.clear();
    this.#forgottenUpTo = 0;
  }

  /** Marks the row as there; true if it is new or changed. */
  listed(row: IndexedRow): boolean {
    const before = this.#entries.get(row.key);
    const entry = this.#entryOf(row);
    const changed = before === undefined || before.modRevision !== entry.modRevision || before.hash !== entry.hash;
    this.#store(row.key, entry, before);
    return changed;
  }

  /** The list was complete: forgets and returns the keys that it did not show, but for those that `keep` holds back. */
  endList(keep: (key: string, leased: boolean) => boolean = () => false): string[] {
    const gone: string[] = [];
    for (const [key, entry] of this.#entries)
      if (entry.seen !== this.#period && !keep(key, entry.leased)) gone.push(key);
    for (const key of gone) this.#forget(key);
    return gone;
  }

  /** False for an event that is not newer than the row: repeated or late (etcd#17247, #15271). */
  put(row: IndexedRow): boolean {
    const before = this.#entries.get(row.key);
    const last = before?.modRevision ?? this.#tombstones.get(row.key) ?? this.#forgottenUpTo;
    if (last >= row.modRevision) return false;
    this.#tombstones.delete(row.key);
    this.#store(row.key, this.#entryOf(row), before);
    return true;
  }

  remove(key: string, modRevision: number): boolean {
    const entry = this.#entries.get(key);
    if (entry === undefined || entry.modRevision >= modRevision) return false;
    this.#forget(key);
    this.#tombstones.set(key, modRevision);
    if (this.#tombstones.size > MAX_TOMBSTONES) {
      const [oldest, revision] = this.#tombstones.entries().next().value!;
      this.#tombstones.delete(oldest);
      this.#forgottenUpTo = Math.max(this.#forgottenUpTo, revision);
    }
    return true;
  }

  /** The row never reached the sink, or nobody knows: the next list delivers it again, or removes it. */
  invalidate(key: string): void {
    const before = this.#entries.get(key);
    this.#store(key, { modRevision: -1, hash: 0, size: 0, leased: before?.leased === true, seen: 0 }, before);
  }

  revisionOf(key: string): number | undefined {
    return this.#entries.get(key)?.modRevision;
  }

  isLeased(key: string): boolean {
    return this.#entries.get(key)?.leased === true;
  }

  differs(row: IndexedRow): boolean {
    const entry = this.#entries.get(row.key);
    return (
      entry === undefined ||
      entry.modRevision < row.modRevision ||
      (entry.modRevision === row.modRevision && entry.hash !== hashOf(row.value))
    );
  }

  keys(): IterableIterator<string> {
    return this.#entries.keys();
  }

  #entryOf(row: IndexedRow): Entry {
    return {
      modRevision: row.modRevision,
      hash: hashOf(row.value),
      size: sizeOf(row),
      leased: row.lease !== undefined && row.lease !== '0',
      seen: this.#period,
    };
  }

  #store(key: string, entry: Entry, before: Entry | undefined): void {
    this.#bytes += entry.size - (before?.size ?? 0);
    this.#entries.set(key, entry);
    if (entry.modRevision < this.#newestRevision) return;
    this.#newest = key;
    this.#newestRevision = entry.modRevision;
  }

  #forget(key: string): void {
    this.#bytes -= this.#entries.get(key)?.size ?? 0;
    this.#entries.delete(key);
  }
}
