/** What a reflector remembers of its rows: enough to tell change from repetition and to find what a list no longer has. Pure. */

interface Entry {
  modRevision: number;
  hash: number;
  /** The list or watch period that saw the row last. */
  seen: number;
}

/** FNV-1a. Revisions alone do not tell a change: a rebuilt or restored etcd counts them again. */
export function hashOf(value: Buffer): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < value.length; i++) hash = Math.imul(hash ^ value[i]!, 0x01000193);
  return hash >>> 0;
}

export interface IndexedRow {
  readonly key: string;
  readonly value: Buffer;
  readonly modRevision: number;
}

export class RowIndex {
  readonly #entries = new Map<string, Entry>();
  #period = 0;

  get size(): number {
    return this.#entries.size;
  }

  /** Every row is stale until the list that begins now has shown it. */
  beginList(): void {
    this.#period++;
  }

  /** Marks the row as there; true if it is new or changed. */
  listed(row: IndexedRow): boolean {
    const hash = hashOf(row.value);
    const entry = this.#entries.get(row.key);
    if (entry === undefined) {
      this.#entries.set(row.key, { modRevision: row.modRevision, hash, seen: this.#period });
      return true;
    }
    const changed = entry.modRevision !== row.modRevision || entry.hash !== hash;
    entry.modRevision = row.modRevision;
    entry.hash = hash;
    entry.seen = this.#period;
    return changed;
  }

  /** The list was complete: forgets and returns the keys that it did not show. */
  endList(): string[] {
    const gone: string[] = [];
    for (const [key, entry] of this.#entries) if (entry.seen !== this.#period) gone.push(key);
    for (const key of gone) this.#entries.delete(key);
    return gone;
  }

  /** False for an event that is not newer than the row: repeated or late (etcd#17247, #15271). */
  put(row: IndexedRow): boolean {
    const entry = this.#entries.get(row.key);
    if (entry !== undefined && entry.modRevision >= row.modRevision) return false;
    this.#entries.set(row.key, { modRevision: row.modRevision, hash: hashOf(row.value), seen: this.#period });
    return true;
  }

  remove(key: string, modRevision: number): boolean {
    const entry = this.#entries.get(key);
    if (entry === undefined || entry.modRevision >= modRevision) return false;
    return this.#entries.delete(key);
  }

  /** The row never reached the sink, or nobody knows: the next list delivers it again, or removes it. */
  invalidate(key: string): void {
    this.#entries.set(key, { modRevision: -1, hash: 0, seen: 0 });
  }

  revisionOf(key: string): number | undefined {
    return this.#entries.get(key)?.modRevision;
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
}
