import { nextEvent, storeOf } from './etcd.ts';
import { faults, leaseEnds } from './faults.ts';
import { heartSteps } from './holding.ts';
import { readerSteps } from './reader.ts';
import { KEYS, type Rules, type State, type Step } from './state.ts';
import { returns, writerSteps } from './writer.ts';

export function* successors(state: State, rules: Rules): Generator<Step> {
  yield* writerSteps(state, rules);
  yield* readerSteps(state, rules);
  yield* heartSteps(state);
  yield* returns(state);
  yield* leaseEnds(state);
  yield* faults(state, rules);
}

/** Synced, connected, and nothing on its way: then the rows are etcd's but for those that are held, or the difference is a silent one. */
export function silentDifference(state: State): string | undefined {
  const { reader, holding } = state;
  if (reader.at !== 'watching' || !reader.verified || nextEvent(state, reader.next) !== undefined) return undefined;
  const { rows } = storeOf(state);
  const key = KEYS.find((name) => rows[name]?.value !== state.rows[name]?.value && !holding.held.includes(name));
  if (key !== undefined) return `synced, with ${key} = ${state.rows[key]?.value} where etcd has ${rows[key]?.value}`;
  const kept = holding.held.find((name) => state.rows[name] === undefined);
  return kept && `${kept} is held, and not there`;
}

/** Where the rest of the way leads from a state without further faults; undefined: it is at rest. */
export function nextOfItself(state: State, rules: Rules): Step | undefined {
  return (
    returns(state).next().value ??
    writerSteps(state, rules).next().value ??
    readerSteps(state, rules).next().value ??
    heartSteps(state).next().value
  );
}

/** At rest the rows are the desired ones. */
export function wrongAtRest({ reader, rows, writer, holding }: State): string | undefined {
  const key = KEYS.find((name) => rows[name]?.value !== writer.desired[name]);
  const isSynced = reader.at === 'watching' && reader.verified && holding.held.length === 0;
  if (key === undefined && isSynced) return undefined;
  return `at rest (${reader.at}) with ${key ?? 'all rows'}: ${JSON.stringify(rows)}`;
}
