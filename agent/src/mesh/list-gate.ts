/**
 * Lets a few lists of one etcd go on at a time. A mesh has a thousand prefixes; asked for all at once, their pages would lie in
 * memory together and be taken in no faster.
 */
import type { Etcd } from '@clustermesh/kvstore';

export function limitLists(etcd: Etcd, atOnce = 16): Etcd {
  let free = atOnce;
  const waiting: (() => void)[] = [];

  async function* pages(...args: Parameters<Etcd['pages']>): ReturnType<Etcd['pages']> {
    if (free > 0) free--;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    try {
      yield* etcd.pages(...args);
    } finally {
      const next = waiting.shift();
      // The place goes from hand to hand.
      if (next === undefined) free++;
      else next();
    }
  }
  return Object.create(etcd, { pages: { value: pages } }) as Etcd;
}
