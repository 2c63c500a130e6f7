/** Alternated pairs: neighbours in time suffer the same weather, so it is their ratio that is kept, and of those the median. */

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export type Measurement = () => number | Promise<number>;

/** What one contender made of each round. */
export type Rounds<Name extends string> = Readonly<Record<Name, readonly number[]>>;

/**
 * Each round runs every contender once, beginning with another one each time. One round before them is thrown away: caches fill,
 * connections are tracked, neighbours are resolved.
 */
export async function alternate<Name extends string>(
  rounds: number,
  contenders: Readonly<Record<Name, Measurement>>,
): Promise<Rounds<Name>> {
  const names = Object.keys(contenders) as Name[];
  const results = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<Name, number[]>;
  for (let round = -1; round < rounds; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + round + 1) % names.length]!;
      const value = await contenders[name]();
      if (round >= 0) results[name].push(value);
    }
  }
  return results;
}

export interface Compared {
  /** Medians. */
  readonly value: number;
  readonly baseline: number;
  /** Median of the ratios within each round. */
  readonly ratio: number;
}

export function compare(ours: readonly number[], theirs: readonly number[]): Compared {
  return {
    value: median(ours),
    baseline: median(theirs),
    ratio: median(ours.map((value, i) => value / theirs[i]!)),
  };
}
