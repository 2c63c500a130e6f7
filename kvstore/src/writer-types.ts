/** The exported shapes of the writer. */
import type { Clock, Log } from '@clustermesh/runtime';
import type { Backoff, Compare, Etcd } from './types.ts';

export interface WriterOptions {
  readonly etcd: Etcd;
  /** Prefixes that nobody else writes: leftovers and foreign changes under them are found and repaired. */
  readonly owned: readonly string[];
  readonly log: Log;
  readonly clock?: Clock | undefined;
  readonly signal: AbortSignal;
  /** Keys of this writer hang on leases, as many as are needed; without it, on none. */
  readonly lease?: LeasedMode | undefined;
  /** Default: as fast as etcd takes it. */
  readonly rate?: WriteRate | undefined;
  /** Periodic full compare (default 60 s; 0: only on reconnect). */
  readonly auditIntervalMs?: number | undefined;
  /** Default 100 ms to 5 s. */
  readonly backoff?: Backoff | undefined;
  /** Added to every transaction; if they do not hold nothing is written, and the writer says so in its status. */
  readonly fence?: (() => readonly Compare[]) | undefined;
  /** Writes only while leading, fenced by the election; stands by otherwise. */
  readonly leadership?: Leadership | undefined;
}

export interface LeasedMode {
  /** Default 900 s, as Cilium's. */
  readonly ttlSeconds?: number | undefined;
  /** Default 1000: etcd gets slow with more (etcd#15993). */
  readonly maxKeysPerLease?: number | undefined;
}

/** Keys put or deleted a second. */
export interface WriteRate {
  readonly keysPerSecond: number;
  /**
   * Until all owned prefixes are `ready` and have been written once, and again after another etcd has taken the place of this one.
   * Default: unlimited.
   */
  readonly bootstrapKeysPerSecond?: number | undefined;
}

/** Who may write, by an election (or a stand-in of a test). */
export interface Leadership {
  /** To be part of every transaction; undefined while somebody else leads. */
  fence(): readonly Compare[] | undefined;
  /** Called when leadership was won or lost. Returns the function that stops listening. */
  onChange(listener: () => void): () => void;
  /** For people: who leads. */
  readonly holder: string | undefined;
}

export interface FlushResult {
  /** Highest revision of this writer's data at that moment. */
  readonly revision: number;
  /** Keys that etcd refuses for good (status names them); they do not hold up the rest. */
  readonly failed: number;
}

export interface WriterKeyError {
  readonly key: string;
  readonly code: string;
  readonly reason: string;
}

export interface WriterStatus {
  readonly connected: boolean;
  /** Keys still to be written or removed; while not connected, an estimate from before. */
  readonly pending: number;
  /** Keys put or deleted since the start. */
  readonly written: number;
  readonly desired: number;
  readonly errors: readonly WriterKeyError[];
  readonly lastError: string | undefined;
  /** Per owned prefix: highest mod_revision of what is there. */
  readonly lastRevision: ReadonlyMap<string, number>;
  /** Monotonic ms of the last round after which nothing was pending. */
  readonly lastFlushAt: number | undefined;
  readonly compares: number;
  /** Keys that were found changed or missing without this writer having done it. */
  readonly repairs: number;
  /** Leases held, of the leased mode. */
  readonly leases: number;
}

export interface Writer {
  set(key: string, value: string | Buffer): void;
  delete(key: string): void;
  /** What is wanted under a key, in etcd or on its way there. */
  get(key: string): Buffer | undefined;
  /** The desired set of a prefix, whole: keys of this writer under it that are not in `rows` are removed. */
  replace(prefix: string, rows: ReadonlyMap<string, string | Buffer>): void;
  /** The desired set of an owned prefix is complete from here on: what is under it and not desired is a leftover. */
  ready(prefix: string): void;
  /** Everything set before this call is in etcd when it resolves; rejects only when the writer has ended. */
  flush(): Promise<FlushResult>;
  /** Written once all that is pending now is flushed, and again after every full compare. `delete(key)` ends it. */
  canary(key: string, value: () => string): void;
  status(): WriterStatus;
  /** What `status().pending` counts, key by key: those that wait, those on their way, and canaries. */
  pendingKeys(): Iterable<string>;
  /** Resolves when the writer has ended (its signal aborted). Never rejects. */
  readonly done: Promise<void>;
}
