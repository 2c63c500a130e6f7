import { MeshError } from '@clustermesh/contract';
import type { RowUpsert, Sink } from './types.ts';

export interface DeliveryOptions {
  readonly sink: Sink;
  readonly maxQueuedKeys: number;
  readonly onApplied: (revision: number) => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Hands watch events to a sink that may be slow. While it is busy, events gather by key (a delete and re-creation in between become
 * one upsert), so what waits is bounded by the number of keys; beyond `maxQueuedKeys` the session is given up.
 */
export class Delivery {
  readonly #options: DeliveryOptions;
  #waiting = new Map<string, RowUpsert | undefined>();
  #revision = 0;
  #busy = false;
  #ended = false;

  constructor(options: DeliveryOptions) {
    this.#options = options;
  }

  put(row: RowUpsert): void {
    this.#waiting.set(row.key, row);
  }

  remove(key: string): void {
    this.#waiting.set(key, undefined);
  }

  /** Everything put so far belongs to revisions up to this one. */
  commit(revision: number): void {
    if (this.#ended) return;
    this.#revision = Math.max(this.#revision, revision);
    if (this.#waiting.size > this.#options.maxQueuedKeys) {
      this.#fail(
        new MeshError({
          code: 'exhausted',
          message: `applying changes: more than ${this.#options.maxQueuedKeys} keys wait for a slow consumer`,
          retryable: true,
        }),
      );
      return;
    }
    if (!this.#busy) this.#drain();
  }

  /** What waits is dropped: the next list carries it. */
  end(): void {
    this.#ended = true;
    this.#waiting.clear();
  }

  /** Synchronous as long as the sink is, so that a fast sink sees every response as it comes. */
  #drain(): void {
    while (!this.#ended && !this.#busy && (this.#waiting.size > 0 || this.#revision > 0)) {
      const batch = this.#waiting;
      const revision = this.#revision;
      this.#waiting = new Map();
      this.#revision = 0;
      try {
        const pending = batch.size > 0 ? this.#apply(batch, revision) : undefined;
        if (pending === undefined) {
          this.#options.onApplied(revision);
          continue;
        }
        this.#busy = true;
        pending.then(
          () => {
            this.#busy = false;
            if (!this.#ended) this.#options.onApplied(revision);
            this.#drain();
          },
          (error) => this.#fail(error),
        );
      } catch (error) {
        this.#fail(error);
      }
    }
  }

  #apply(batch: Map<string, RowUpsert | undefined>, revision: number): Promise<void> | undefined {
    const upserts: RowUpsert[] = [];
    const removes: string[] = [];
    for (const [key, row] of batch) {
      if (row === undefined) removes.push(key);
      else upserts.push(row);
    }
    return this.#options.sink.apply({ upserts, removes, revision, kind: 'watch' }) ?? undefined;
  }

  #fail(error: unknown): void {
    if (this.#ended) return;
    this.end();
    this.#options.onError(error);
  }
}
