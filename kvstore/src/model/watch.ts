import { nextEvent, revOf, storeAt } from './etcd.ts';
import { heldOfEvent, heldOfList, hold, isSteady, letGo, mayRelease } from './holding.ts';
import { read, remove, upsert } from './rows.ts';
import {
  type Comparison,
  type Event,
  KEYS,
  type Key,
  type Rules,
  type State,
  type Step,
  type Watching,
} from './state.ts';

export function* watchSteps(state: State, reader: Watching, rules: Rules): Generator<Step> {
  const { bug } = rules;
  const event = nextEvent(state, reader.next);
  if (event !== undefined && reader.next <= state.etcd.compacted) {
    const skipped = { ...reader, next: state.etcd.compacted + 1 };
    const goesOn = bug === 'watch-goes-on-after-compaction';
    yield { name: 'reader finds its watch compacted', state: { ...state, reader: goesOn ? skipped : { at: 'idle' } } };
  } else if (event !== undefined) yield deliver(state, reader, event, rules);
  if (reader.comparison !== undefined) yield endComparison(state, reader, reader.comparison, rules);
  else if (!reader.verified) yield { name: 'reader lists to verify', state: compare(state, reader, 'verify', rules) };
  else if (mayRelease(state, rules)) {
    if (bug === 'release-without-a-list')
      yield remove('reader releases', letGo(state, state.holding.held), state.holding.held);
    else yield { name: 'reader lists to release', state: compare(state, reader, 'release', rules) };
  }
}

export function compare(state: State, reader: Watching, to: Comparison['to'], rules: Rules): State {
  const comparison = { to, rev: revOf(state), touched: [], wasSteady: isSteady(state, rules) };
  return read(state, { ...reader, comparison });
}

/** All of one revision. */
function deliver(state: State, reader: Watching, { rev, ops }: Event, rules: Rules): Step {
  const rows = ops.filter((op) => op.key !== 'canary') as (Event['ops'][number] & { readonly key: Key })[];
  const { comparison } = reader;
  const touched = [...new Set([...(comparison?.touched ?? []), ...rows.map(({ key }) => key)])].sort();
  let next: State = {
    ...state,
    reader: { ...reader, next: rev + 1, ...(comparison && { comparison: { ...comparison, touched } }) },
  };
  const together = rows.filter(({ value }) => value === 0).map(({ key }) => key);
  const deleted = together.filter((key) => (state.rows[key]?.mod ?? rev) < rev);
  const kept = heldOfEvent(state, deleted, together, rules);
  for (const { key, value, lease } of rows) {
    const last = state.rows[key]?.mod ?? state.tombstones[key] ?? 0;
    if (value !== 0 && last < rev) next = letGo(upsert(next, key, { value, mod: rev, lease }), [key]);
  }
  const gone = deleted.filter((key) => !kept.includes(key));
  const told = rows.map(({ key, value }) => `${key} = ${value}`).join(', ');
  return remove(`reader gets ${told}`, hold(letGo(next, gone), kept, rev), gone);
}

function endComparison(
  state: State,
  reader: Watching,
  { to, rev, touched, wasSteady }: Comparison,
  rules: Rules,
): Step {
  const { rows } = storeAt(state, rev);
  const { comparison: _, ...rest } = reader;
  const next: State = { ...state, reader: rest };
  const untouched = KEYS.filter((key) => !touched.includes(key));
  const unlisted = KEYS.filter((key) => !(key in rows) && (state.rows[key]?.mod ?? rev + 1) <= rev);
  const missing = unlisted.filter((key) => untouched.includes(key));
  const changed = untouched.filter((key) => {
    const [there, had] = [rows[key], state.rows[key]];
    if (there === undefined) return false;
    return had === undefined || had.mod < there.mod || (had.mod === there.mod && had.value !== there.value);
  });
  if (to === 'verify') {
    const differs = changed.length > 0 || missing.some((key) => !state.holding.held.includes(key));
    return differs
      ? { name: 'reader gives up verifying', state: { ...state, reader: { at: 'idle' } } }
      : { name: 'reader has verified', state: { ...state, reader: { ...rest, verified: true } } };
  }
  if (to === 'release') {
    const { held } = state.holding;
    const gone = missing.filter((key) => held.includes(key));
    const again = changed.filter((key) => held.includes(key));
    const taken = again.reduce((from, key) => upsert(from, key, rows[key]!), next);
    const forgets = rules.bug === 'release-forgets-what-is-held-meanwhile';
    return remove('reader releases', bury(letGo(taken, forgets ? KEYS : untouched), gone, rev, rules), gone);
  }
  const kept = heldOfList(state, unlisted, wasSteady, 'resync', rules).filter((key) => missing.includes(key));
  const repaired = changed.reduce((from, key) => letGo(upsert(from, key, rows[key]!), [key]), next);
  const gone = missing.filter((key) => !kept.includes(key));
  const fresh = kept.filter((key) => !state.holding.held.includes(key));
  return remove('reader resyncs', bury(hold(letGo(repaired, gone), fresh, rev), gone, rev, rules), gone);
}

/** Removed at the revision of the list: what is put later is no replay. */
function bury(state: State, keys: readonly Key[], rev: number, { bug }: Rules): State {
  if (bug !== 'tombstone-beyond-the-list') return state;
  return { ...state, tombstones: { ...state.tombstones, ...Object.fromEntries(keys.map((key) => [key, rev + 1])) } };
}
