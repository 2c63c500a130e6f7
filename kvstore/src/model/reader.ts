import { revOf, storeAt, storeOf } from './etcd.ts';
import { beginWatch, heldOfList, hold, isSteady, letGo } from './holding.ts';
import { read, remove, upsert } from './rows.ts';
import { type Cursor, KEYS, type Key, type Listing, type Rules, type State, type Step } from './state.ts';
import { watchSteps } from './watch.ts';

export function* readerSteps(state: State, rules: Rules): Generator<Step> {
  const { reader } = state;
  const { bug } = rules;
  if (reader.at === 'listing') yield listStep(state, reader, rules);
  else if (reader.at === 'watching') yield* watchSteps(state, reader, rules);
  else {
    const { canary } = storeOf(state);
    if (reader.cursor !== undefined && isResumable(state, reader.cursor, rules)) {
      const verified = bug === 'resume-by-cluster-id' || bug === 'resume-without-verifying';
      const { rev, canaryCreated, wasSteady } = reader.cursor;
      const resumed = read(state, { at: 'watching', next: rev + 1, canaryCreated, verified });
      yield { name: 'reader resumes', state: beginWatch(resumed, wasSteady, rules) };
    } else if (canary !== undefined || bug === 'prune-without-canary') {
      const rev = revOf(state);
      const wasSteady = isSteady(state, rules);
      const listing = { at: 'listing', rev, seen: [], canaryCreated: canary?.created ?? 0, wasSteady } as const;
      const begun = { ...read(state, listing), highest: rev, tombstones: {} };
      // How much of a list a lost session has seen makes no difference to what is held: of leased rows there is one page.
      const paged = rules.layout === undefined ? begun : KEYS.reduce(takePage, begun);
      yield { name: 'reader begins a list', state: paged };
    }
  }
}

function isResumable(state: State, cursor: Cursor, { bug }: Rules): boolean {
  const { clusterId, compacted } = state.etcd;
  if (clusterId !== cursor.clusterId || revOf(state) < cursor.rev) return false;
  if (cursor.rev < compacted) return false;
  if (bug === 'resume-by-cluster-id') return true;
  const then = storeAt(state, cursor.rev).rows[cursor.anchor.key];
  return (
    revOf(state) >= state.highest &&
    then?.mod === cursor.anchor.mod &&
    then.value === cursor.anchor.value &&
    storeOf(state).canary?.created === cursor.canaryCreated
  );
}

function listStep(state: State, reader: Listing, rules: Rules): Step {
  const key = KEYS[reader.seen.length];
  if (reader.rev < state.etcd.compacted && key !== undefined)
    return { name: 'reader finds its list compacted', state: { ...state, reader: { at: 'idle' } } };
  if (key !== undefined) return { name: `reader lists the page of ${key}`, state: takePage(state, key) };
  const { rows } = storeAt(state, reader.rev);
  const missing = KEYS.filter((held) => held in state.rows && !(held in rows));
  const kept = heldOfList(state, missing, reader.wasSteady, 'list', rules);
  const { canaryCreated } = reader;
  const watching = { at: 'watching', next: reader.rev + 1, canaryCreated, verified: true } as const;
  const begun = beginWatch({ ...state, reader: watching }, reader.wasSteady, rules);
  const next = forgetRevisions(hold(letGo(begun, KEYS), kept, reader.rev), reader.rev, rules);
  const gone = missing.filter((name) => !kept.includes(name));
  return remove('reader ends its list', next, gone);
}

/** Of rows of an etcd that was rebuilt: what is put next is news, though its revision is lower. */
function forgetRevisions(state: State, rev: number, { bug }: Rules): State {
  if (bug === 'held-by-revisions-of-another-etcd') return state;
  const rows = { ...state.rows };
  for (const key of state.holding.held) if (rows[key]!.mod > rev) rows[key] = { ...rows[key]!, mod: 0 };
  return { ...state, rows };
}

function takePage(state: State, key: Key): State {
  const reader = state.reader as Listing;
  const row = storeAt(state, reader.rev).rows[key];
  const next = { ...state, reader: { ...reader, seen: [...reader.seen, key] } };
  return row === undefined ? next : upsert(next, key, row);
}

/** The connection is lost; what the reader keeps of the session is where it was. */
export function loseReader(state: State, rules: Rules): Step {
  const { reader } = state;
  if (reader.at === 'listing' && rules.bug === 'prune-after-part-of-a-list') {
    const unseen = KEYS.filter((key) => key in state.rows && !reader.seen.includes(key));
    return remove('reader is cut off', { ...state, reader: { at: 'idle' } }, unseen);
  }
  if (reader.at !== 'watching') return { name: 'reader is cut off', state: { ...state, reader: { at: 'idle' } } };
  const newest = KEYS.filter((key) => key in state.rows).sort((a, b) => state.rows[b]!.mod - state.rows[a]!.mod)[0];
  const { clusterId } = state.etcd;
  const cursor = newest && {
    ...{ clusterId, rev: reader.next - 1, canaryCreated: reader.canaryCreated, wasSteady: isSteady(state, rules) },
    anchor: { key: newest, ...state.rows[newest]! },
  };
  return {
    name: 'reader is cut off',
    state: { ...state, reader: cursor === undefined ? { at: 'idle' } : { at: 'idle', cursor } },
  };
}
