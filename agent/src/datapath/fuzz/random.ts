/** Random numbers that a seed gives again: mulberry32. */
export interface Random {
  /** 0 ≤ n < limit. */
  below(limit: number): number;
  oneOf<T>(values: readonly T[]): T;
  chance(share: number): boolean;
  bytes(length: number): Buffer;
}

export function seeded(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (limit: number): number => Math.floor(next() * limit);
  return {
    below,
    oneOf: (values) => values[below(values.length)]!,
    chance: (share) => next() < share,
    bytes(length) {
      const bytes = Buffer.alloc(length);
      for (let i = 0; i < length; i++) bytes[i] = below(256);
      return bytes;
    },
  };
}
