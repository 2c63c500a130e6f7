/**
 * The exported shapes of the key-value room. Nothing here mentions gRPC or etcd3: callers see rows, writers and sessions.
 * Revisions are numbers (etcd's counter stays far below 2^53); cluster and lease ids are decimal strings (they use all 64 bits).
 */

import type { Clock, Log } from '@clustermesh/runtime';

// ---------------------------------------------------------------- client

export interface HostAlias {
  readonly hostname: string;
  readonly ips: readonly string[];
}

export interface EtcdOptions {
  /** `https://host:port` or `http://host:port`; tried in a shuffled order, one connection at a time. */
  readonly endpoints: readonly string[];
  /** A hostname of an endpoint is connected to at these addresses, and an address of an endpoint is verified as that hostname. */
  readonly hostAliases?: readonly HostAlias[] | undefined;
  /** All three are read again whenever a connection is built. Needed for https endpoints. */
  readonly caFile?: string | undefined;
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  readonly log: Log;
  readonly clock?: Clock | undefined;
  /** Bound of one request (default 10 s). */
  readonly requestTimeoutMs?: number | undefined;
  /** Bound of connecting to one address (default 5 s). */
  readonly connectTimeoutMs?: number | undefined;
  /** HTTP/2 pings while anything is in flight (default: every 15 s, 10 s to answer). etcd refuses an interval below 5 s. */
  readonly keepalive?: { readonly timeMs: number; readonly timeoutMs: number } | undefined;
  /** How often a quiet watch stream is asked for a sign of life (default 5 s); two unanswered requests end the connection. */
  readonly progressIntervalMs?: number | undefined;
}

export interface KeyValue {
  readonly key: string;
  readonly value: Buffer;
  readonly createRevision: number;
  readonly modRevision: number;
  readonly version: number;
  /** '0': not leased. */
  readonly lease: string;
}

export interface Header {
  readonly clusterId: string;
  readonly revision: number;
  /** The connection that answered; it belongs to one etcd for all its life. */
  readonly connection: number;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
  /** Of a read: as of this revision; fails if that was compacted. */
  readonly revision?: number | undefined;
  /** Fails unless sent on this connection: what was read on one may not hold for the etcd behind the next. */
  readonly connection?: number | undefined;
}

export interface PagesOptions extends CallOptions {
  /** A key that is read with the first page, as of one revision, in one request. */
  readonly beside?: string | undefined;
}

export interface RangePage {
  readonly kvs: KeyValue[];
  /** Of the first page: the key that was asked for beside it; undefined: it is not there. */
  readonly beside?: KeyValue | undefined;
  /** Of the page-1 answer: every page is pinned to it. */
  readonly header: Header;
}

export interface RangeResult {
  readonly kvs: KeyValue[];
  readonly header: Header;
}

export type Compare =
  | { readonly key: string; readonly absent: true }
  | { readonly key: string; readonly value: string | Buffer }
  | { readonly key: string; readonly modRevision: number }
  | { readonly key: string; readonly createRevision: number };

export type TxnOp =
  | { readonly put: string; readonly value: string | Buffer; readonly lease?: string | undefined }
  | { readonly delete: string }
  | { readonly deletePrefix: string }
  | { readonly get: string };

export interface TxnRequest {
  readonly compare?: readonly Compare[] | undefined;
  /** At most 128 in all; the caller splits. */
  readonly success: readonly TxnOp[];
  readonly failure?: readonly TxnOp[] | undefined;
}

export interface TxnResult {
  readonly succeeded: boolean;
  readonly header: Header;
  /** One entry per `get` of the branch that ran, in order. */
  readonly gets: (KeyValue | undefined)[];
}

export interface WatchEvent {
  readonly type: 'put' | 'delete';
  readonly key: string;
  /** Empty for a delete. */
  readonly value: Buffer;
  readonly modRevision: number;
  /** 0 and '0' for a delete. */
  readonly createRevision: number;
  readonly lease: string;
}

export interface WatchRequest {
  readonly prefix: string;
  /** Watch exactly the key `prefix` and nothing below it. */
  readonly exact?: boolean | undefined;
  readonly startRevision: number;
  readonly signal: AbortSignal;
  /** As in CallOptions: a watch continues a list of the same connection. */
  readonly connection?: number | undefined;
  /** The server accepted the watch. */
  onCreated?(header: Header): void;
  /** Whole responses in order. `complete` is false while a big revision is still being sent in parts. */
  onEvents(events: WatchEvent[], header: Header, complete: boolean): void;
  /** A sign of life without events. Its revision is not a resume point (etcd#15220). */
  onProgress?(): void;
}

export type EtcdEvent =
  | {
      readonly type: 'connected';
      readonly connection: number;
      readonly clusterId: string;
      readonly clusterChanged: boolean;
      readonly endpoint: string;
    }
  | { readonly type: 'disconnected'; readonly connection: number; readonly reason: string };

export interface EtcdStatus {
  readonly endpoint: string;
  readonly clusterId: string;
  readonly version: string;
  readonly revision: number;
  readonly dbSizeBytes: number;
}

export interface Lease {
  /** Changes when the lease was lost and granted again. */
  readonly id: string;
  readonly ttlSeconds: number;
  /** Renews now instead of at the next third of the TTL; a lease that turns out to be lost is granted again. */
  renew(): Promise<void>;
  /** Ends the keepalive and revokes the lease (best effort), unless told to let it run out. */
  close(options?: { readonly revoke?: boolean }): Promise<void>;
}

export interface LeaseRequest {
  readonly ttlSeconds: number;
  /** The old lease is gone with all its keys; `lease.id` is already the new one. */
  onRegranted?(id: string): void;
}

export type Permission = 'read' | 'write' | 'readwrite';

/** Idempotent: adding what exists, and removing what does not, is success. */
export interface EtcdAuth {
  isEnabled(): Promise<boolean>;
  enable(): Promise<void>;
  disable(): Promise<void>;
  /** A user without password: only a client certificate with this common name logs in as it. */
  addUser(name: string): Promise<void>;
  deleteUser(name: string): Promise<void>;
  listUsers(): Promise<string[]>;
  userRoles(name: string): Promise<string[]>;
  addRole(name: string): Promise<void>;
  deleteRole(name: string): Promise<void>;
  listRoles(): Promise<string[]>;
  grantRole(user: string, role: string): Promise<void>;
  revokeRole(user: string, role: string): Promise<void>;
  /** `scope` 'prefix' covers every key that starts with `key`. */
  grantPermission(role: string, permission: Permission, key: string, scope: 'prefix' | 'key'): Promise<void>;
  revokePermission(role: string, key: string, scope: 'prefix' | 'key'): Promise<void>;
  listPermissions(role: string): Promise<{ permission: Permission; key: string; rangeEnd: string }[]>;
}

export interface Etcd {
  readonly endpoints: readonly string[];
  /** Of the etcd that answered last; undefined before the first answer. */
  readonly clusterId: string | undefined;
  /** Grows whenever another etcd (or one whose revision went backwards) answers: cursors of before are void. */
  readonly epoch: number;
  readonly connected: boolean;
  /** Number of the current connection once etcd has answered on it. */
  readonly connection: number | undefined;
  /** Monotonic time of the last byte that proved that etcd lives; undefined before the first. */
  readonly lastProofOfLifeAt: number | undefined;
  readonly auth: EtcdAuth;

  get(key: string, options?: CallOptions): Promise<KeyValue | undefined>;
  /** Like `get`, with the header (its revision is where a watch for the missing key starts). */
  getWithHeader(key: string, options?: CallOptions): Promise<{ kv: KeyValue | undefined; header: Header }>;
  /** Everything under a prefix, collected from `pages`. */
  range(prefix: string, options?: CallOptions): Promise<RangeResult>;
  /** Pages pinned to the revision and the connection of the first, in key order. */
  pages(prefix: string, options?: PagesOptions): AsyncGenerator<RangePage, void, void>;
  count(prefix: string, options?: CallOptions): Promise<number>;
  put(key: string, value: string | Buffer, options?: CallOptions & { lease?: string }): Promise<Header>;
  /** True if the key was there. */
  delete(key: string, options?: CallOptions): Promise<boolean>;
  deletePrefix(prefix: string, options?: CallOptions): Promise<number>;
  txn(request: TxnRequest, options?: CallOptions): Promise<TxnResult>;
  /** Puts all of the entries if none of the keys exists; else changes nothing and returns what is there, in the order given. */
  createOnly(
    entries: ReadonlyMap<string, string | Buffer>,
    options?: CallOptions,
  ): Promise<{ created: boolean; existing: (KeyValue | undefined)[] }>;
  lease(request: LeaseRequest, options?: CallOptions): Promise<Lease>;
  /** Runs until the signal aborts (resolves) or the watch cannot go on (rejects with the reason). */
  watch(request: WatchRequest): Promise<void>;
  compact(revision: number): Promise<void>;
  status(options?: CallOptions): Promise<EtcdStatus>;
  /** Returns the function that stops listening. */
  onEvent(listener: (event: EtcdEvent) => void): () => void;
  /** Drops the current connection; the next call builds a new one with the files as they are then. */
  reconnect(reason: string): void;
  close(): Promise<void>;
}

// ---------------------------------------------------------------- reflector

export interface RowUpsert {
  readonly key: string;
  readonly value: Buffer;
  readonly modRevision: number;
}

export interface SinkBatch {
  readonly upserts: readonly RowUpsert[];
  /** Disjoint from the keys of `upserts`. */
  readonly removes: readonly string[];
  readonly revision: number;
  readonly kind: 'list' | 'watch';
}

export interface Sink {
  /**
   * Must not block the event loop. While a returned promise is pending, changes are gathered by key; too many of them, or an
   * error, end the session: the reflector says so and lists again after a backoff.
   */
  apply(batch: SinkBatch): void | Promise<void>;
  /** A complete list has been applied, removals included. Called after every complete list. */
  synced?(revision: number): void;
}

/**
 * `verifying`: watching again from where the last session stopped; rows count as stale until a complete list has shown the same.
 * `over-limit`: there is more under the prefix than may be held; what was applied stays.
 */
export type ReflectorState =
  | 'connecting'
  | 'waiting-for-canary'
  | 'listing'
  | 'verifying'
  | 'watching'
  | 'over-limit'
  | 'reconnecting'
  | 'closed';

export interface ReflectorStatus {
  readonly state: ReflectorState;
  readonly prefix: string;
  /** Rows are complete and being followed right now. */
  readonly synced: boolean;
  /** Rows were complete once; not `synced` and `everSynced` together mean stale rows. */
  readonly everSynced: boolean;
  /** etcd's revision as of the last list or event applied. Moves with every key of that etcd. */
  readonly revision: number;
  /**
   * The same, moved only by lists and by changes under the prefix. All that a writer did up to its `lastRevision` is applied here
   * once this is not lower (in one etcd).
   */
  readonly dataRevision: number;
  readonly clusterId: string | undefined;
  /** Rows held. */
  readonly count: number;
  /** Of their keys and values. */
  readonly bytes: number;
  /** Rows that etcd has no more, kept because their writer may only have lost its lease. */
  readonly held: number;
  /** Monotonic ms; undefined before the first. */
  readonly lastProofOfLifeAt: number | undefined;
  /** Sessions that ended and were begun again. */
  readonly reconnects: number;
  /** Sessions among those that went on from a revision, found complete by the list that followed. */
  readonly resumes: number;
  readonly lastError: string | undefined;
  /** Differences that only a resync (not the watch) found. Above 0 means that a watch lost something. */
  readonly repairs: number;
}

export interface Backoff {
  readonly minMs: number;
  readonly maxMs: number;
}

export interface ReflectorLimits {
  readonly maxKeys?: number | undefined;
  /** Of keys and values. */
  readonly maxBytes?: number | undefined;
  /** How often it is looked whether what is there fits again (default 30 s). */
  readonly retryMs?: number | undefined;
}

export interface HoldDeletes {
  /** When the writer's heartbeat was received last, monotonic; undefined: never, or its own lease has ended. */
  lastHeartbeatAt(): number | undefined;
  /** Default 120 s, two of Cilium's intervals. */
  readonly silentAfterMs?: number | undefined;
  /** Leased keys deleted at one revision that are taken for a lease that ended (default 10; Cilium deletes key by key). */
  readonly burst?: number | undefined;
  /** How long the writer must have been heard again, and have put nothing again that is held, before a list is believed (default 60 s). */
  readonly settleMs?: number | undefined;
}

export interface ReflectorOptions {
  readonly etcd: Etcd;
  /** With its trailing slash where the keys have one. */
  readonly prefix: string;
  /** The list starts only once this key exists, on every session. */
  readonly canaryKey?: string | undefined;
  readonly sink: Sink;
  readonly log: Log;
  readonly clock?: Clock | undefined;
  readonly signal: AbortSignal;
  /** Default 50 ms to 30 s, jittered. */
  readonly backoff?: Backoff | undefined;
  /** List and compare this often while watching; default never. */
  readonly resyncIntervalMs?: number | undefined;
  /** No more than this is taken in; beyond it the state is `over-limit`. Default: none. */
  readonly limits?: ReflectorLimits | undefined;
  /** For writers whose keys are leased: their deaths are not taken for deletes. */
  readonly holdDeletes?: HoldDeletes | undefined;
  /** Go on from the last revision after a reconnect, where that can be proven right (default true). */
  readonly resume?: boolean | undefined;
  /** Keys that may wait for a slow sink before the session is given up and listed again (default 200 000). */
  readonly maxQueuedKeys?: number | undefined;
}

export interface Reflector {
  status(): ReflectorStatus;
  /** Resolves after the first complete list; rejects if the signal aborts before. */
  waitSynced(): Promise<void>;
  /** Resolves when the reflector has ended (its signal aborted). Never rejects. */
  readonly done: Promise<void>;
}
