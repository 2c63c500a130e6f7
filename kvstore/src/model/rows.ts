import { revOf } from './etcd.ts';
import { KEYS, type Key, type Reader, type Row, type State, type Step } from './state.ts';

/** What etcd answers tells the client how far it has come. */
export const read = (state: State, reader: Reader): State => ({
  ...state,
  reader,
  highest: Math.max(state.highest, revOf(state)),
});

export function upsert(state: State, key: Key, row: Row): State {
  const isDue = key in state.writer.desired && row.mod > (state.unwantedUpTo[key] ?? 0);
  const due = isDue && !state.due.includes(key) ? [...state.due, key].sort() : state.due;
  const rows = Object.fromEntries(
    KEYS.flatMap((name) => {
      const held = name === key ? row : state.rows[name];
      return held === undefined ? [] : [[name, held]];
    }),
  );
  return { ...state, rows, due };
}

export function remove(name: string, state: State, keys: readonly Key[]): Step {
  const early = keys.find((key) => state.due.includes(key));
  const rows = Object.fromEntries(Object.entries(state.rows).filter(([key]) => !keys.includes(key as Key)));
  const next = { ...state, rows };
  return early === undefined
    ? { name, state: next }
    : { name, state: next, violation: `${early} is removed while wanted` };
}
