import { createHash } from 'node:crypto';
import { nextOfItself, silentDifference, successors, wrongAtRest } from './properties.ts';
import { type Budget, initial, NO_BUDGET, type Rules, type State } from './state.ts';

export interface Found {
  readonly what: string;
  /** The steps that lead there. */
  readonly trace: readonly string[];
}

export interface Result {
  readonly states: number;
  readonly found: Found | undefined;
}

/** A state but for its budget, in little space: there are millions. */
function keyOf({ budget: _, ...state }: State): string {
  return createHash('md5').update(JSON.stringify(state)).digest('base64url');
}

/** Without further faults writer and reader come to rest, and then the rows are the desired ones. */
class Convergence {
  readonly #rules: Rules;
  /** States from which they do. */
  readonly #good = new Set<string>();

  constructor(rules: Rules) {
    this.#rules = rules;
  }

  wrongAfter(state: State, key: string): string | undefined {
    const way = new Set<string>();
    let current: State = { ...state, budget: NO_BUDGET };
    for (let at = key; !this.#good.has(at); at = keyOf(current)) {
      if (way.has(at)) return 'never at rest';
      way.add(at);
      const step = nextOfItself(current, this.#rules);
      const wrong = step === undefined ? wrongAtRest(current) : step.violation;
      if (wrong !== undefined) return wrong;
      if (step === undefined) break;
      current = step.state;
    }
    for (const at of way) this.#good.add(at);
    return undefined;
  }
}

/** With leases all is written and read before anything happens; without them, nothing. */
function start(budget: Budget, rules: Rules): State {
  let state = initial(budget);
  if (rules.layout === undefined) return state;
  const { bug: _, ...sound } = rules;
  for (let step = nextOfItself(state, sound); step !== undefined; step = nextOfItself(state, sound)) state = step.state;
  return state;
}

/** Breadth first, so that the first trace found is a shortest one. */
export function check(budget: Budget, rules: Rules = {}): Result {
  const from = new Map<string, { readonly parent: string | undefined; readonly name: string }>();
  const convergence = new Convergence(rules);
  let queue: { readonly id: string; readonly key: string; readonly state: State }[] = [];
  const visit = (state: State, parent: string | undefined, name: string) => {
    const key = keyOf(state);
    const id = `${key} ${Object.values(state.budget).join('')}`;
    if (from.has(id)) return;
    from.set(id, { parent, name });
    queue.push({ id, key, state });
  };
  const traceTo = (id: string): string[] => {
    const names: string[] = [];
    for (let at = from.get(id); at !== undefined; at = at.parent === undefined ? undefined : from.get(at.parent))
      names.push(at.name);
    return names.reverse();
  };
  visit(start(budget, rules), undefined, 'start');
  while (queue.length > 0) {
    const reached = queue;
    queue = [];
    for (const { id, key, state } of reached) {
      const wrong = silentDifference(state) ?? convergence.wrongAfter(state, key);
      if (wrong !== undefined) return { states: from.size, found: { what: wrong, trace: traceTo(id) } };
      for (const step of successors(state, rules)) {
        visit(step.state, id, step.name);
        if (step.violation !== undefined)
          return { states: from.size, found: { what: step.violation, trace: [...traceTo(id), step.name] } };
      }
    }
  }
  return { states: from.size, found: undefined };
}
