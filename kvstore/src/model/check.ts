import {
  type Bug,
  initial,
  KEYS,
  readerSteps,
  type State,
  type Step,
  storeAt,
  successors,
  writerSteps,
} from './protocol.ts';

export interface Found {
  readonly what: string;
  /** The steps that lead there. */
  readonly trace: readonly string[];
}

export interface Result {
  readonly states: number;
  readonly found: Found | undefined;
}

const QUIET = { changes: 0, disconnects: 0, compactions: 0, rebuilds: 0 };

/** Synced, connected, and nothing on its way: then the rows are etcd's, or the difference is a silent one. */
function silentDifference(state: State): string | undefined {
  const { reader, etcd } = state;
  if (reader.at !== 'watching' || !reader.verified || reader.next <= etcd.history.length) return undefined;
  const { rows } = storeAt(state, etcd.history.length);
  const key = KEYS.find((name) => rows[name]?.value !== state.rows[name]?.value);
  return key === undefined
    ? undefined
    : `synced, with ${key} = ${state.rows[key]?.value} where etcd has ${rows[key]?.value}`;
}

/** Without further faults writer and reader come to rest, and then the rows are the desired ones. */
function doesNotConverge(state: State, bug: Bug | undefined): string | undefined {
  let current: State = { ...state, budget: QUIET };
  for (let steps = 0; steps < 100; steps++) {
    const step: Step | undefined = writerSteps(current, bug).next().value ?? readerSteps(current, bug).next().value;
    if (step === undefined) {
      const key = KEYS.find((name) => current.rows[name]?.value !== current.writer.desired[name]);
      const isSynced = current.reader.at === 'watching' && current.reader.verified;
      if (key === undefined && isSynced) return undefined;
      return `at rest (${current.reader.at}) with ${key ?? 'all rows'}: ${JSON.stringify(current.rows)}`;
    }
    if (step.violation !== undefined) return step.violation;
    current = step.state;
  }
  return 'never at rest';
}

/** Breadth first, so that the first trace found is a shortest one. */
export function check(budget: State['budget'], bug?: Bug): Result {
  const start = initial(budget);
  const from = new Map<string, { readonly parent: string | undefined; readonly name: string }>();
  const queue: { readonly key: string; readonly state: State }[] = [];
  const visit = (state: State, parent: string | undefined, name: string) => {
    const key = JSON.stringify(state);
    if (!from.has(key)) {
      from.set(key, { parent, name });
      queue.push({ key, state });
    }
  };
  const traceTo = (key: string): string[] => {
    const names: string[] = [];
    for (let at = from.get(key); at !== undefined; at = at.parent === undefined ? undefined : from.get(at.parent))
      names.push(at.name);
    return names.reverse();
  };
  visit(start, undefined, 'start');
  for (let at = 0; at < queue.length; at++) {
    const { key, state } = queue[at]!;
    queue[at] = undefined as never;
    const wrong = silentDifference(state) ?? doesNotConverge(state, bug);
    if (wrong !== undefined) return { states: from.size, found: { what: wrong, trace: traceTo(key) } };
    for (const step of successors(state, bug)) {
      visit(step.state, key, step.name);
      if (step.violation !== undefined)
        return { states: from.size, found: { what: step.violation, trace: [...traceTo(key), step.name] } };
    }
  }
  return { states: from.size, found: undefined };
}
