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
  /** Settles, and never rejects, when the sink has taken or refused the last batch. */
  #pending: Promise<void> = Promise.resolve();
  #undelivered: string[] = [];
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

  /**
   * Ends the delivery once the sink is done with what it has (an old value must not arrive after the list that comes next), and
   * returns the keys whose changes did not reach it.
   */
  async end(): Promise<string[]> {
    this.#ended = true;
    await this.#pending;
    return [...this.#undelivered, ...this.#waiting.keys()];
  }

  /** Resolves once the sink has taken all that was committed so far, or the delivery has ended. */
  async idle(): Promise<void> {
    while (!this.#ended && this.#busy) await this.#pending;
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
        this.#pending = pending.then(
          () => {
            this.#busy = false;
            this.#options.onApplied(revision);
            this.#drain();
          },
          (error) => {
            this.#undelivered.push(...batch.keys());
            this.#fail(error);
          },
        );
      } catch (error) {
        this.#undelivered.push(...batch.keys());
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
    this.#ended = true;
    this.#options.onError(error);
  }
}
