import type { Event, Key, Name, Op, Row, Rows, Rules, State } from './state.ts';

export const revOf = (state: State) => state.etcd.history.length;

export interface Store {
  readonly rows: Rows;
  readonly canary?: Row & { readonly created: number };
}

/** What a read at a revision shows. */
export function storeAt(state: State, rev: number): Store {
  const rows: Partial<Record<Key, Row>> = {};
  let canary: Store['canary'];
  for (const event of state.etcd.history) {
    if (event.rev > rev) break;
    for (const { key, value, lease } of event.ops) {
      if (key === 'canary')
        canary = value === 0 ? undefined : { value, mod: event.rev, lease, created: canary?.created ?? event.rev };
      else if (value === 0) delete rows[key];
      else rows[key] = { value, mod: event.rev, lease };
    }
  }
  return canary === undefined ? { rows } : { rows, canary };
}

export const storeOf = (state: State): Store => storeAt(state, revOf(state));

export function commit(state: State, ops: readonly Op[]): State {
  const event = { rev: revOf(state) + 1, ops };
  return { ...state, etcd: { ...state.etcd, history: [...state.etcd.history, event] } };
}

export function isAlive(state: State, lease: number): boolean {
  return state.etcd.leases.includes(lease);
}

/** The next event that a watch of the rows from `next` on has to send. */
export function nextEvent(state: State, next: number): Event | undefined {
  return state.etcd.history.find(({ rev, ops }) => rev >= next && ops.some(({ key }) => key !== 'canary'));
}

/** A lease ends, and what hangs on it goes at one revision. */
export function endLease(state: State, lease: number): State {
  const { rows, canary } = storeOf(state);
  const ops: Op[] = (Object.keys(rows) as Key[]).filter((key) => rows[key]?.lease === lease).map(deletion);
  if (canary?.lease === lease) ops.push(deletion('canary'));
  const leases = state.etcd.leases.filter((other) => other !== lease);
  const ended = { ...state, etcd: { ...state.etcd, leases } };
  return ops.length === 0 ? ended : commit(ended, ops);
}

export const deletion = (key: Name): Op => ({ key, value: 0 });

/** The lease that a key hangs on is that of its group. */
export function groupOf({ layout }: Rules, key: Name): string | undefined {
  if (layout === undefined) return undefined;
  if (layout === 'three') return key;
  return layout === 'two' && key === 'canary' ? key : 'rows';
}
