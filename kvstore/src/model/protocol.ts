/**
 * Writer, etcd and reflector reduced to what can go wrong between them: two keys, one canary, one event a revision, lists of two pages.
 * Every interleaving of their steps with disconnects, a compaction, a rebuild of etcd (with another cluster id, or with the same) and
 * changes of mind is a path through `successors`. The reflector's steps are those of ../reflector-*.ts, by the same names.
 */

export type Key = 'a' | 'b';
export const KEYS: readonly Key[] = ['a', 'b'];
type Values = Partial<Record<Key, number>>;

/** Faults of our own that the checker must find. */
export type Bug =
  | 'prune-without-canary'
  | 'prune-after-part-of-a-list'
  | 'canary-before-flush'
  | 'writer-trusts-old-compare'
  | 'list-goes-on-in-another-etcd'
  | 'resume-by-cluster-id'
  | 'resume-without-verifying'
  | 'watch-goes-on-after-compaction';

interface Row {
  readonly value: number;
  readonly mod: number;
}

interface Event {
  readonly rev: number;
  readonly key: Key | 'canary';
  /** 0: delete. */
  readonly value: number;
}

interface Cursor {
  readonly clusterId: number;
  readonly rev: number;
  readonly anchor: { readonly key: Key; readonly mod: number; readonly value: number };
  readonly canaryCreated: number;
}

type Reader =
  | { readonly at: 'idle'; readonly cursor?: Cursor }
  | { readonly at: 'listing'; readonly rev: number; readonly seen: readonly Key[]; readonly canaryCreated: number }
  | {
      readonly at: 'watching';
      readonly next: number;
      readonly canaryCreated: number;
      /** `synced` to the outside. */
      readonly verified: boolean;
      /** A list that is being compared, and the keys of events since. */
      readonly audit?: { readonly rev: number; readonly touched: readonly Key[] };
    };

export interface State {
  readonly etcd: { readonly clusterId: number; readonly history: readonly Event[]; readonly compacted: number };
  readonly writer: {
    readonly desired: Values;
    /** What the last compare (or a change since) left to do; undefined: to be compared. */
    readonly pending?: readonly Key[];
    readonly canaryDue: boolean;
  };
  readonly reader: Reader;
  readonly rows: Partial<Record<Key, Row>>;
  /** The highest revision that the reader's client has seen in this etcd. */
  readonly highest: number;
  /** Wanted without a break since what the reader has of it was written. */
  readonly due: readonly Key[];
  /** Up to which revision a key's events are of a time before it was last not wanted. */
  readonly unwantedUpTo: Values;
  readonly budget: {
    readonly changes: number;
    readonly disconnects: number;
    readonly compactions: number;
    readonly rebuilds: number;
  };
}

export interface Step {
  readonly name: string;
  readonly state: State;
  /** What must never happen, and did. */
  readonly violation?: string;
}

export const initial = (budget: State['budget']): State => ({
  etcd: { clusterId: 1, history: [], compacted: 0 },
  writer: { desired: { a: 1, b: 1 }, canaryDue: true },
  reader: { at: 'idle' },
  rows: {},
  highest: 0,
  due: [],
  unwantedUpTo: {},
  budget,
});

// ---------------------------------------------------------------- etcd

const revOf = (state: State) => state.etcd.history.length;

/** What a read at a revision shows. */
export function storeAt(state: State, rev: number): { rows: Partial<Record<Key, Row>>; canaryCreated?: number } {
  const rows: Partial<Record<Key, Row>> = {};
  let canaryCreated: number | undefined;
  for (const event of state.etcd.history.slice(0, rev)) {
    if (event.key === 'canary') canaryCreated ??= event.rev;
    else if (event.value === 0) delete rows[event.key];
    else rows[event.key] = { value: event.value, mod: event.rev };
  }
  return canaryCreated === undefined ? { rows } : { rows, canaryCreated };
}

function put(state: State, key: Event['key'], value: number): State {
  const event = { rev: revOf(state) + 1, key, value };
  return { ...state, etcd: { ...state.etcd, history: [...state.etcd.history, event] } };
}

// ---------------------------------------------------------------- writer

export function* writerSteps(state: State, bug?: Bug): Generator<Step> {
  const { writer } = state;
  if (writer.pending === undefined) {
    const { rows } = storeAt(state, revOf(state));
    const pending = KEYS.filter((key) => rows[key]?.value !== writer.desired[key]);
    yield { name: 'writer compares', state: { ...state, writer: { ...writer, pending, canaryDue: true } } };
    return;
  }
  const [key, ...pending] = writer.pending;
  if (key !== undefined) {
    const written = put(state, key, writer.desired[key] ?? 0);
    yield { name: `writer writes ${key}`, state: { ...written, writer: { ...writer, pending } } };
  }
  if (writer.canaryDue && (key === undefined || bug === 'canary-before-flush'))
    yield {
      name: 'writer puts canary',
      state: { ...put(state, 'canary', 1), writer: { ...writer, canaryDue: false } },
    };
}

function change(state: State, key: Key, value: number | undefined): State {
  const { [key]: _, ...others } = state.writer.desired;
  const desired: Values = value === undefined ? others : { ...others, [key]: value };
  const { pending } = state.writer;
  return {
    ...state,
    writer: {
      ...state.writer,
      desired,
      ...(pending && { pending: [...pending.filter((other) => other !== key), key] }),
    },
    ...(value === undefined && {
      due: state.due.filter((other) => other !== key),
      unwantedUpTo: { ...state.unwantedUpTo, [key]: revOf(state) },
    }),
  };
}

// ---------------------------------------------------------------- reflector

function upsert(state: State, key: Key, row: Row): State {
  const isDue = key in state.writer.desired && row.mod > (state.unwantedUpTo[key] ?? 0);
  const due = isDue && !state.due.includes(key) ? [...state.due, key].sort() : state.due;
  return { ...state, rows: { ...state.rows, [key]: row }, due };
}

function remove(name: string, state: State, keys: readonly Key[]): Step {
  const early = keys.find((key) => state.due.includes(key));
  const rows = Object.fromEntries(Object.entries(state.rows).filter(([key]) => !keys.includes(key as Key)));
  const next = { ...state, rows };
  return early === undefined
    ? { name, state: next }
    : { name, state: next, violation: `${early} is removed while wanted` };
}

const read = (state: State, reader: Reader): State => ({
  ...state,
  reader,
  highest: Math.max(state.highest, revOf(state)),
});

function isResumable(state: State, cursor: Cursor, bug?: Bug): boolean {
  const { clusterId, compacted } = state.etcd;
  if (clusterId !== cursor.clusterId || revOf(state) < cursor.rev) return false;
  if (cursor.rev < compacted) return false;
  if (bug === 'resume-by-cluster-id') return true;
  const then = storeAt(state, cursor.rev).rows[cursor.anchor.key];
  return (
    revOf(state) >= state.highest &&
    then?.mod === cursor.anchor.mod &&
    then.value === cursor.anchor.value &&
    storeAt(state, revOf(state)).canaryCreated === cursor.canaryCreated
  );
}

export function* readerSteps(state: State, bug?: Bug): Generator<Step> {
  const { reader } = state;
  if (reader.at === 'idle') {
    const { canaryCreated } = storeAt(state, revOf(state));
    if (reader.cursor !== undefined && isResumable(state, reader.cursor, bug)) {
      const verified = bug === 'resume-by-cluster-id' || bug === 'resume-without-verifying';
      const { cursor } = reader;
      const next = { at: 'watching', next: cursor.rev + 1, canaryCreated: cursor.canaryCreated, verified } as const;
      yield { name: 'reader resumes', state: read(state, next) };
    } else if (canaryCreated !== undefined || bug === 'prune-without-canary') {
      const rev = revOf(state);
      const highest = revOf(state);
      const listing = { at: 'listing', rev, seen: [], canaryCreated: canaryCreated ?? 0 } as const;
      yield { name: 'reader begins a list', state: { ...read(state, listing), highest } };
    }
  } else if (reader.at === 'listing') yield listStep(state, reader);
  else yield* watchSteps(state, reader, bug);
}

function listStep(state: State, reader: Extract<Reader, { at: 'listing' }>): Step {
  const key = KEYS[reader.seen.length];
  if (reader.rev < state.etcd.compacted && key !== undefined)
    return { name: 'reader finds its list compacted', state: { ...state, reader: { at: 'idle' } } };
  const { rows } = storeAt(state, reader.rev);
  if (key !== undefined) {
    const row = rows[key];
    const next = { ...state, reader: { ...reader, seen: [...reader.seen, key] } };
    return { name: `reader lists the page of ${key}`, state: row === undefined ? next : upsert(next, key, row) };
  }
  const gone = KEYS.filter((held) => held in state.rows && !(held in rows));
  const { canaryCreated } = reader;
  const watching = { at: 'watching', next: reader.rev + 1, canaryCreated, verified: true } as const;
  return remove('reader ends its list', { ...state, reader: watching }, gone);
}

function* watchSteps(state: State, reader: Extract<Reader, { at: 'watching' }>, bug?: Bug): Generator<Step> {
  const event = state.etcd.history.find((candidate) => candidate.rev >= reader.next);
  if (event !== undefined && reader.next <= state.etcd.compacted) {
    const skipped = { ...reader, next: state.etcd.compacted + 1 };
    const goesOn = bug === 'watch-goes-on-after-compaction';
    yield { name: 'reader finds its watch compacted', state: { ...state, reader: goesOn ? skipped : { at: 'idle' } } };
  } else if (event !== undefined)
    yield deliver({ ...state, reader: { ...reader, next: event.rev + 1 } }, reader, event);
  if (reader.verified) return;
  if (reader.audit === undefined) {
    const audit = { rev: revOf(state), touched: [] };
    yield { name: 'reader lists to verify', state: read(state, { ...reader, audit }) };
    return;
  }
  const { rev, touched } = reader.audit;
  const { rows } = storeAt(state, rev);
  const differs = KEYS.some((key) => {
    if (touched.includes(key)) return false;
    const [there, held] = [rows[key], state.rows[key]];
    if (there === undefined) return held !== undefined && held.mod <= rev;
    return held === undefined || held.mod < there.mod || (held.mod === there.mod && held.value !== there.value);
  });
  const { audit: _, ...rest } = reader;
  if (differs) yield { name: 'reader gives up verifying', state: { ...state, reader: { at: 'idle' } } };
  else
    yield {
      name: 'reader has verified',
      state: { ...state, reader: { ...rest, verified: true } },
    };
}

function deliver(state: State, reader: Extract<Reader, { at: 'watching' }>, event: Event): Step {
  if (event.key === 'canary') return { name: 'an event for nobody', state };
  const { key, rev, value } = event;
  const name = `reader gets ${key} = ${value}`;
  const audit = reader.audit && { ...reader.audit, touched: [...new Set([...reader.audit.touched, key])].sort() };
  const next = audit === undefined ? state : { ...state, reader: { ...(state.reader as typeof reader), audit } };
  const held = state.rows[key];
  if (held !== undefined && held.mod >= rev) return { name, state: next };
  return value === 0
    ? remove(name, next, held === undefined ? [] : [key])
    : { name, state: upsert(next, key, { value, mod: rev }) };
}

/** The connection is lost; what the reader keeps of the session is where it was. */
function loseReader(state: State, bug?: Bug): Step {
  const { reader } = state;
  if (reader.at === 'listing' && bug === 'prune-after-part-of-a-list') {
    const unseen = KEYS.filter((key) => key in state.rows && !reader.seen.includes(key));
    return remove('reader is cut off', { ...state, reader: { at: 'idle' } }, unseen);
  }
  if (reader.at !== 'watching') return { name: 'reader is cut off', state: { ...state, reader: { at: 'idle' } } };
  const newest = KEYS.filter((key) => key in state.rows).sort((a, b) => state.rows[b]!.mod - state.rows[a]!.mod)[0];
  const { clusterId } = state.etcd;
  const cursor = newest && {
    ...{ clusterId, rev: reader.next - 1, canaryCreated: reader.canaryCreated },
    anchor: { key: newest, ...state.rows[newest]! },
  };
  return {
    name: 'reader is cut off',
    state: { ...state, reader: cursor === undefined ? { at: 'idle' } : { at: 'idle', cursor } },
  };
}

function* faults(state: State, bug?: Bug): Generator<Step> {
  const { budget, etcd, writer } = state;
  if (budget.changes > 0) {
    const spent = { ...state, budget: { ...budget, changes: budget.changes - 1 } };
    for (const key of KEYS) {
      const value = writer.desired[key];
      if (value !== undefined) yield { name: `${key} is not wanted any more`, state: change(spent, key, undefined) };
      yield { name: `${key} shall be other`, state: change(spent, key, (value ?? 0) + 1) };
    }
  }
  const lostWriter = (from: State): State =>
    bug === 'writer-trusts-old-compare'
      ? from
      : { ...from, writer: { desired: from.writer.desired, canaryDue: from.writer.canaryDue } };
  if (budget.disconnects > 0) {
    const spent = { ...state, budget: { ...budget, disconnects: budget.disconnects - 1 } };
    if (state.reader.at !== 'idle') yield loseReader(spent, bug);
    if (writer.pending !== undefined) yield { name: 'writer is cut off', state: lostWriter(spent) };
  }
  if (budget.compactions > 0 && etcd.compacted < revOf(state)) {
    const spent = { ...budget, compactions: budget.compactions - 1 };
    yield { name: 'compaction', state: { ...state, budget: spent, etcd: { ...etcd, compacted: revOf(state) } } };
  }
  if (budget.rebuilds > 0) {
    for (const clusterId of [etcd.clusterId, etcd.clusterId + 1]) {
      const lost =
        bug === 'list-goes-on-in-another-etcd' && state.reader.at === 'listing'
          ? { name: '', state: { ...state, reader: { ...state.reader, rev: 0 } } }
          : loseReader(state, bug);
      const empty = { clusterId, history: [], compacted: 0 };
      const rebuilt = {
        ...lost.state,
        etcd: empty,
        unwantedUpTo: {},
        budget: { ...budget, rebuilds: budget.rebuilds - 1 },
      };
      yield {
        ...lost,
        name: `etcd is rebuilt with ${clusterId === etcd.clusterId ? 'the same' : 'another'} id`,
        state: lostWriter(rebuilt),
      };
    }
  }
}

export function* successors(state: State, bug?: Bug): Generator<Step> {
  yield* writerSteps(state, bug);
  yield* readerSteps(state, bug);
  yield* faults(state, bug);
}
