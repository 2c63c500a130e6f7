/**
 * Writer, etcd and reflector reduced to what can go wrong between them: two keys, one canary, one transaction a revision, lists of two
 * pages. Every interleaving of their steps with the faults is a path through `successors`. The steps have the names of what does them
 * in ../reflector-*.ts and ../writer*.ts.
 *
 * Time is what it orders. A writer is silent for its reader before its leases end (a lease is longer than `silentAfterMs`). A writer
 * that was heard for `settleMs` has put again what it lost, and what it did before then has been delivered to a reader that watches.
 */

export type Key = 'a' | 'b';
export const KEYS: readonly Key[] = ['a', 'b'];
export type Name = Key | 'canary';
export type Values = Partial<Record<Key, number>>;

/** Faults of our own that the checker must find. */
export type PlainBug =
  | 'prune-without-canary'
  | 'prune-after-part-of-a-list'
  | 'canary-before-flush'
  | 'writer-trusts-old-compare'
  | 'list-goes-on-in-another-etcd'
  | 'resume-by-cluster-id'
  | 'resume-without-verifying'
  | 'watch-goes-on-after-compaction'
  | 'tombstone-beyond-the-list';

export type LeasedBug =
  | 'nothing-is-held'
  | 'heard-is-steady'
  | 'steady-of-another-session'
  | 'release-when-heard'
  | 'release-without-a-list'
  | 'release-by-canary'
  | 'release-by-any-canary'
  | 'release-forgets-what-is-held-meanwhile'
  | 'list-releases'
  | 'list-holds-no-burst'
  | 'list-judged-at-its-end'
  | 'held-by-revisions-of-another-etcd'
  | 'resync-holds-nothing'
  | 'lost-lease-without-canary'
  | 'lost-lease-not-put-again'
  | 'keys-stay-on-foreign-leases';

/** Which keys hang on one lease: all; both rows; none together. */
export type Layout = 'one' | 'two' | 'three';

/** What does not change along a path. */
export interface Rules {
  readonly bug?: PlainBug | LeasedBug | undefined;
  /** Undefined: keys hang on no lease. */
  readonly layout?: Layout;
  /** Puts the canary of a lost lease again without regard to the rows, as Cilium's does. */
  readonly isForeign?: boolean;
}

/** Leased rows deleted at one revision, or missing from one list, that are taken for a lease that ended. */
export const BURST = 2;

export interface Row {
  readonly value: number;
  readonly mod: number;
  readonly lease?: number | undefined;
}
export type Rows = Partial<Record<Key, Row>>;

export interface Op {
  readonly key: Name;
  /** 0: delete. */
  readonly value: number;
  readonly lease?: number | undefined;
}

export interface Event {
  readonly rev: number;
  readonly ops: readonly Op[];
}

export interface Cursor {
  readonly clusterId: number;
  readonly rev: number;
  readonly anchor: { readonly key: Key } & Row;
  readonly canaryCreated: number;
  /** The writer has been, ever since the session ended. */
  readonly wasSteady: boolean;
}

/** A list that is being compared with the rows while the watch goes on. */
export interface Comparison {
  readonly to: 'verify' | 'resync' | 'release';
  readonly rev: number;
  /** The keys of the events since. */
  readonly touched: readonly Key[];
  readonly wasSteady: boolean;
}

export interface Watching {
  readonly at: 'watching';
  readonly next: number;
  readonly canaryCreated: number;
  /** `synced` to the outside. */
  readonly verified: boolean;
  readonly comparison?: Comparison;
}

export interface Listing {
  readonly at: 'listing';
  readonly rev: number;
  readonly seen: readonly Key[];
  readonly canaryCreated: number;
  /** The writer has been, ever since the list began. */
  readonly wasSteady: boolean;
}

export type Reader = { readonly at: 'idle'; readonly cursor?: Cursor } | Listing | Watching;

export interface Writer {
  readonly desired: Values;
  /** What the last compare (or a change since) left to do; undefined: to be compared. */
  readonly pending?: readonly Key[] | undefined;
  readonly canaryDue: boolean;
  /** By group of keys. */
  readonly leases: Readonly<Record<string, number>>;
  /** `silent`: gone for so long that its reader has noticed, and its leases may end. */
  readonly presence: 'well' | 'gone' | 'silent';
  /** What etcd has lost goes into one transaction. */
  readonly inOne?: boolean;
  /** This process has put its canary once. */
  readonly hasSynced?: boolean;
}

export interface Holding {
  /** The writer's heartbeat as the reader knows it; `heard`: back, but not for `settleMs`. */
  readonly heart: 'steady' | 'silent' | 'heard';
  readonly held: readonly Key[];
  /** Nothing was held, and nothing of it put again, for `settleMs`. */
  readonly isQuiet: boolean;
  /** Of the newest delete that is held. */
  readonly revision: number;
}

export interface Budget {
  readonly changes: number;
  readonly disconnects: number;
  readonly compactions: number;
  readonly rebuilds: number;
  readonly resyncs: number;
  /** Of the writer: it dies, or is cut off. */
  readonly absences: number;
  /** etcd loses a lease that its writer keeps. */
  readonly losses: number;
}

export const NO_BUDGET: Budget = {
  ...{ changes: 0, disconnects: 0, compactions: 0, rebuilds: 0 },
  ...{ resyncs: 0, absences: 0, losses: 0 },
};

export interface State {
  readonly etcd: {
    readonly clusterId: number;
    readonly history: readonly Event[];
    readonly compacted: number;
    readonly leases: readonly number[];
    readonly granted: number;
  };
  readonly writer: Writer;
  readonly reader: Reader;
  readonly rows: Rows;
  readonly holding: Holding;
  /** The highest revision that the reader's client has seen in this etcd. */
  readonly highest: number;
  /** Up to which revision puts of a removed row count as replays. */
  readonly tombstones: Values;
  /** Wanted without a break since what the reader has of it was written. */
  readonly due: readonly Key[];
  /** Up to which revision a key's events are of a time before it was last not wanted. */
  readonly unwantedUpTo: Values;
  readonly budget: Budget;
}

export interface Step {
  readonly name: string;
  readonly state: State;
  /** What must never happen, and did. */
  readonly violation?: string;
}

export const initial = (budget: Budget): State => ({
  etcd: { clusterId: 1, history: [], compacted: 0, leases: [], granted: 0 },
  writer: { desired: { a: 1, b: 1 }, canaryDue: true, leases: {}, presence: 'well' },
  reader: { at: 'idle' },
  rows: {},
  holding: { heart: 'steady', held: [], isQuiet: true, revision: 0 },
  highest: 0,
  tombstones: {},
  due: [],
  unwantedUpTo: {},
  budget,
});

export const spend = (state: State, what: keyof Budget): State => ({
  ...state,
  budget: { ...state.budget, [what]: state.budget[what] - 1 },
});
