/** What ../holdback.ts decides: which deletes are only held, and when they are let go. */
import { nextEvent, storeOf } from './etcd.ts';
import { BURST, type Key, type Row, type Rules, type State, type Step } from './state.ts';
import { isSettled } from './writer.ts';

export function isSteady(state: State, rules: Rules): boolean {
  const { heart } = state.holding;
  return heart === 'steady' || (rules.bug === 'heard-is-steady' && heart === 'heard');
}

const isLeased = (row: Row | undefined) => row?.lease !== undefined;

export function hold(state: State, keys: readonly Key[], revision: number): State {
  if (keys.length === 0) return state;
  const held = [...new Set([...state.holding.held, ...keys])].sort();
  return { ...state, holding: { ...state.holding, held, isQuiet: false, revision } };
}

export function letGo(state: State, keys: readonly Key[]): State {
  const held = state.holding.held.filter((key) => !keys.includes(key));
  if (held.length === state.holding.held.length) return state;
  const isIdle = held.length === 0;
  return { ...state, holding: { ...state.holding, held, isQuiet: isIdle, ...(isIdle && { revision: 0 }) } };
}

/** Those of the rows deleted at one revision that are only held. `together`: all keys of that revision, also of rows that are newer. */
export function heldOfEvent(
  state: State,
  deleted: readonly Key[],
  together: readonly Key[],
  rules: Rules,
): readonly Key[] {
  if (rules.bug === 'nothing-is-held') return [];
  const leased = (key: Key) => isLeased(state.rows[key]);
  const isBurst = together.filter(leased).length >= BURST;
  return !isSteady(state, rules) || isBurst ? deleted.filter(leased) : [];
}

/** Those of the rows that a complete list misses which are only held. `wasSteady`: when it began. */
export function heldOfList(
  state: State,
  missing: readonly Key[],
  wasSteady: boolean,
  by: 'list' | 'resync',
  rules: Rules,
): readonly Key[] {
  const { held } = state.holding;
  const kept = missing.filter((key) => held.includes(key));
  const { bug } = rules;
  if (bug === 'nothing-is-held') return [];
  if (bug === 'resync-holds-nothing' && by === 'resync') return kept;
  const leased = missing.filter((key) => isLeased(state.rows[key]));
  const steady = isSteady(state, rules) && (wasSteady || bug === 'list-judged-at-its-end');
  const isBurst = leased.length >= BURST && bug !== 'list-holds-no-burst';
  if (bug === 'list-releases' && by === 'list' && mayRelease(state, rules)) return [];
  return missing.filter((key) => kept.includes(key) || (leased.includes(key) && (!steady || isBurst)));
}

export function mayRelease(state: State, { bug }: Rules): boolean {
  const { heart, isQuiet, held, revision } = state.holding;
  const { canary } = storeOf(state);
  if (held.length === 0 || heart === 'silent' || canary === undefined) return false;
  if (bug === 'release-when-heard' || bug === 'release-by-any-canary') return true;
  if (bug === 'release-by-canary' && canary.mod > revision) return true;
  return heart === 'steady' && isQuiet;
}

/** The heartbeat, and the time that it has been there. */
export function* heartSteps(state: State): Generator<Step> {
  const { holding, writer, reader } = state;
  const become = (name: string, next: Partial<typeof holding>): Step => ({
    name,
    state: { ...state, holding: { ...holding, ...next } },
  });
  if (writer.presence === 'gone') {
    const next = fallSilent(state);
    yield { name: 'writer is silent for long', state: { ...next, writer: { ...writer, presence: 'silent' } } };
  }
  if (writer.presence !== 'well') return;
  if (holding.heart === 'silent') yield become('reader hears the writer', { heart: 'heard' });
  if (!isSettled(state)) return;
  if (holding.heart === 'heard' && (reader.at !== 'watching' || nextEvent(state, reader.next) === undefined))
    yield become('writer has settled', { heart: 'steady' });
  if (!holding.isQuiet && holding.heart !== 'silent') yield become('nothing was held for long', { isQuiet: true });
}

export function fallSilent(state: State): State {
  const { reader } = state;
  const silent: State = { ...state, holding: { ...state.holding, heart: 'silent' } };
  if (reader.at === 'listing') return { ...silent, reader: { ...reader, wasSteady: false } };
  if (reader.at !== 'idle' || reader.cursor === undefined) return silent;
  return { ...silent, reader: { at: 'idle', cursor: { ...reader.cursor, wasSteady: false } } };
}

/** A watch begins with what was done before: the writer is steady only if it has been ever since. */
export function beginWatch(state: State, wasSteady: boolean, { bug }: Rules): State {
  const { holding } = state;
  if (wasSteady || holding.heart !== 'steady' || bug === 'steady-of-another-session') return state;
  return { ...state, holding: { ...holding, heart: 'heard' } };
}
