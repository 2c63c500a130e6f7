import { commit, deletion, groupOf, isAlive, revOf, storeOf } from './etcd.ts';
import {
  KEYS,
  type Key,
  type Name,
  type Op,
  type Rules,
  type State,
  type Step,
  type Values,
  type Writer,
} from './state.ts';

export function* writerSteps(state: State, rules: Rules): Generator<Step> {
  const { writer } = state;
  if (writer.presence !== 'well') return;
  const lost = Object.keys(writer.leases).filter((group) => !isAlive(state, writer.leases[group]!));
  for (const group of lost)
    yield { name: `writer finds its lease of ${group} lost`, state: putAgain(state, group, rules) };
  if (writer.pending === undefined) {
    const { rows } = storeOf(state);
    const pending = KEYS.filter((key) => {
      const [there, wanted] = [rows[key], writer.desired[key]];
      if (there?.value !== wanted) return true;
      if (there === undefined || rules.bug === 'keys-stay-on-foreign-leases') return false;
      return there.lease !== leaseOf(writer, rules, key);
    });
    yield { name: 'writer compares', state: { ...state, writer: { ...writer, pending, canaryDue: true } } };
    return;
  }
  yield* writeSteps(state, rules, writer.pending);
  const isFlushed = writer.pending.length === 0 || rules.bug === 'canary-before-flush';
  if (writer.canaryDue && (isFlushed || (rules.isForeign && writer.hasSynced))) {
    const written = put(state, rules, ['canary'], 'writer puts canary');
    if (written === undefined) return;
    const after = written.state.writer;
    yield {
      ...written,
      state: { ...written.state, writer: { ...after, canaryDue: false, ...(rules.isForeign && { hasSynced: true }) } },
    };
  }
}

function* writeSteps(state: State, rules: Rules, pending: readonly Key[]): Generator<Step> {
  const { writer } = state;
  const [key, ...rest] = pending;
  if (key === undefined) return;
  const { inOne, ...oneByOne } = writer;
  if (inOne !== true) {
    const written = put({ ...state, writer: { ...writer, pending: rest } }, rules, [key], `writer writes ${key}`);
    if (written !== undefined) yield written;
  }
  if (inOne === true || (rest.length > 0 && pending.every((name) => writer.desired[name] === undefined))) {
    const all = put(
      { ...state, writer: { ...oneByOne, pending: [] } },
      rules,
      pending,
      `writer writes ${pending} in one`,
    );
    if (all !== undefined) yield all;
  }
}

/** Undefined: a lease is not there any more, and etcd refuses. */
function put(state: State, rules: Rules, keys: readonly Name[], name: string): Step | undefined {
  let next = state;
  const ops: Op[] = [];
  for (const key of keys) {
    const value = key === 'canary' ? 1 : state.writer.desired[key];
    const group = groupOf(rules, key);
    if (value === undefined) ops.push(deletion(key));
    else if (group === undefined) ops.push({ key, value });
    else {
      if (next.writer.leases[group] === undefined) next = grant(next, group);
      const lease = next.writer.leases[group]!;
      if (!isAlive(next, lease)) return undefined;
      ops.push({ key, value, lease });
    }
  }
  return { name, state: commit(next, ops) };
}

function grant(state: State, group: string): State {
  const { etcd, writer } = state;
  const granted = etcd.granted + 1;
  return {
    ...state,
    etcd: { ...etcd, granted, leases: [...etcd.leases, granted] },
    writer: { ...writer, leases: { ...writer.leases, [group]: granted } },
  };
}

const leaseOf = (writer: Writer, rules: Rules, key: Key): number | undefined => {
  const group = groupOf(rules, key);
  return group === undefined ? undefined : writer.leases[group];
};

/** The keys of a lost lease are to be put again, and then the canary. */
function putAgain(state: State, group: string, rules: Rules): State {
  const { writer } = state;
  const { [group]: _, ...leases } = writer.leases;
  const keys = KEYS.filter((key) => groupOf(rules, key) === group && writer.desired[key] !== undefined);
  const isForgotten = rules.bug === 'lost-lease-not-put-again';
  const pending = writer.pending && [
    ...writer.pending.filter((key) => !keys.includes(key)),
    ...(isForgotten ? [] : keys),
  ];
  const canaryDue = writer.canaryDue || rules.bug !== 'lost-lease-without-canary';
  return { ...state, writer: { ...writer, leases, pending, canaryDue } };
}

/** Nothing is left to be written, and nothing of it has been lost. */
export function isSettled({ writer, etcd }: State): boolean {
  const isKept = Object.values(writer.leases).every((lease) => etcd.leases.includes(lease));
  return writer.presence === 'well' && writer.pending?.length === 0 && !writer.canaryDue && isKept;
}

/** The writer is wanted to have another value of a key, or none. */
export function change(state: State, key: Key, value: number | undefined): State {
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

/** Whoever comes back compares; a new process has no leases yet. */
export function* returns(state: State): Generator<Step> {
  const { writer } = state;
  if (writer.presence === 'well') return;
  const { hasSynced, ...back } = { ...writer, presence: 'well', pending: undefined } as const;
  yield { name: 'writer is back', state: { ...state, writer: { ...back, ...(hasSynced && { hasSynced }) } } };
  yield { name: 'writer is started again', state: { ...state, writer: { ...back, canaryDue: true, leases: {} } } };
}
