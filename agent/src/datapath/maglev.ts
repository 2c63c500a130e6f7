/**
 * Consistent lookup tables, after Maglev (Eisenbud et al., NSDI 2016, §3.4), with weights.
 *
 * A table says which backend a flow's hash leads to. It is made from the backends alone, without randomness or history: nodes that
 * know the same backends, of whatever cluster, have the same table, and a flow that comes in at another node finds its backend.
 *
 * Each backend has its own endless order of preference over the slots, and proposes one slot per turn; turns come as often as its
 * weight says. A slot belongs to who proposes it first, until each backend has the number of slots that is its due. Two things
 * differ from the paper, and make a removal move about half as many slots of the others:
 *   - a backend whose slot is taken waits for its next turn. In the paper it looks on until a slot is free, so that one slot more
 *     or less displaces everything behind it; here only who is near its due is displaced at all.
 *   - preferences are pseudo-random, not steps of equal width: two backends with similar steps meet again and again.
 */
import { createHash } from 'node:crypto';

export interface MaglevEntry {
  /** What makes the backend itself, spelled alike on every node: its preferences follow from it. */
  readonly id: string;
  /** An integer, 0 … 2^31-1; 0 gets no slot. Only the ratio to the others counts. */
  readonly weight: number;
}

/**
 * Slots by number of backends: at least 100 each, so that the removal of one moves at most 3.5 % of the others' flows; with few
 * backends, where chance weighs more, many more. Primes, so that no regularity of a hash's values falls on few slots. A service whose
 * size crosses a step gets another table altogether, so steps are rare: each is four times the one before.
 */
const LADDER = [4093, 16381, 65521, 262139, 1048573] as const;
const SLOTS_PER_BACKEND = 100;

/** One backend needs one slot only, none needs none. */
export function maglevSlots(backends: number): number {
  if (backends <= 1) return backends;
  return LADDER.find((slots) => slots >= backends * SLOTS_PER_BACKEND) ?? LADDER[LADDER.length - 1]!;
}

/** Slots due to each weight: exact to a slot; what rounding leaves goes to the largest fractions, the first of equal ones. */
export function quotas(weights: readonly number[], slots: number): number[] {
  const sum = weights.reduce((total, weight) => total + weight, 0);
  if (sum <= 0) return weights.map(() => 0);
  const shares = weights.map((weight) => (weight / sum) * slots);
  const due = shares.map(Math.floor);
  const left = slots - due.reduce((total, n) => total + n, 0);
  const byFraction = shares
    .map((share, i) => ({ i, fraction: share - Math.floor(share) }))
    .filter(({ i }) => weights[i]! > 0)
    .sort((a, b) => b.fraction - a.fraction || a.i - b.i);
  for (const { i } of byFraction.slice(0, left)) due[i]! += 1;
  return due;
}

/** Proposals between two pauses: a few milliseconds. */
const PROPOSALS_PER_SLICE = 100_000;

/** Backends of about one weight, which take their turns together. `credit` is the part of a turn that they have in hand. */
interface Peers {
  readonly weight: number;
  members: number[];
  credit: number;
}

/** The three highest bits: some turns more or less do no harm, what is due stays exact, and there are few groups of any weights. */
function roughly(weight: number): number {
  const dropped = Math.max(0, 29 - Math.clz32(weight));
  return (weight >> dropped) << dropped;
}

function byWeight(entries: readonly MaglevEntry[]): Peers[] {
  const groups = new Map<number, Peers>();
  entries.forEach((entry, i) => {
    const weight = roughly(entry.weight);
    const group = groups.get(weight) ?? { weight, members: [], credit: 0 };
    group.members.push(i);
    groups.set(weight, group);
  });
  return [...groups.values()].sort((a, b) => b.weight - a.weight);
}

/** Leaves out who has all that is due, and groups that become empty by it. */
function hungry(groups: readonly Peers[], due: Int32Array): Peers[] {
  for (const group of groups) group.members = group.members.filter((i) => due[i]! > 0);
  return groups.filter(({ members }) => members.length > 0);
}

/**
 * The backend of each slot, as an index of `entries`; empty if nobody has a weight. Entries come in the order that all nodes agree
 * on (cluster id, address, port): it decides between equals. Pauses after each slice of work, for the caller to let others run.
 */
export function* maglevSteps(entries: readonly MaglevEntry[], slots: number): Generator<void, Uint32Array> {
  const due = Int32Array.from(
    quotas(
      entries.map(({ weight }) => weight),
      slots,
    ),
  );
  let left = due.reduce((total, n) => total + n, 0);
  const table = new Int32Array(left).fill(-1);
  // State of xorshift32 (Marsaglia 2003): any number but 0, and all of them come.
  const state = Int32Array.from(entries, ({ id }) => createHash('sha256').update(id).digest().readInt32LE(0) || 1);

  let proposals = 0;
  let groups = hungry(byWeight(entries), due);
  while (left > 0) {
    let isAnyFull = false;
    const heaviest = groups[0]!.weight;
    for (const group of groups) {
      group.credit += group.weight / heaviest;
      if (group.credit < 1) continue;
      group.credit -= 1;
      for (const i of group.members) {
        let x = state[i]!;
        x ^= x << 13;
        x ^= x >>> 17;
        x ^= x << 5;
        state[i] = x;
        const slot = (x & 0x7fffffff) % slots;
        if (table[slot] !== -1 || due[i] === 0) continue;
        table[slot] = i;
        due[i]! -= 1;
        left--;
        isAnyFull ||= due[i] === 0;
      }
      proposals += group.members.length;
    }
    if (isAnyFull) groups = hungry(groups, due);
    if (proposals >= PROPOSALS_PER_SLICE) {
      proposals = 0;
      yield;
    }
  }
  return Uint32Array.from(table);
}

/** The same in one go. */
export function buildMaglev(entries: readonly MaglevEntry[], slots: number): Uint32Array {
  const steps = maglevSteps(entries, slots);
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
  }
}
