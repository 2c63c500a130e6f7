import type { Sink, SinkBatch } from '../types.ts';

export interface MemorySink extends Sink {
  apply(batch: SinkBatch): void;
  readonly rows: Map<string, string>;
  /** Keys whose removal was applied, in order. */
  readonly removed: string[];
  readonly batches: SinkBatch[];
  readonly syncs: number[];
  /** The rows as a plain object, for comparing. */
  contents(): Record<string, string>;
}

/** A sink that remembers everything it was told. */
export function memorySink(): MemorySink {
  const rows = new Map<string, string>();
  const removed: string[] = [];
  const batches: SinkBatch[] = [];
  const syncs: number[] = [];
  return {
    rows,
    removed,
    batches,
    syncs,
    contents: () => Object.fromEntries([...rows].sort(([a], [b]) => (a < b ? -1 : 1))),
    apply(batch) {
      batches.push(batch);
      for (const key of batch.removes) {
        rows.delete(key);
        removed.push(key);
      }
      for (const row of batch.upserts) rows.set(row.key, row.value.toString());
    },
    synced(revision) {
      syncs.push(revision);
    },
  };
}
