/**
 * Numbers for the address ranges that policies name (wire-contract §2.1: scope 0x01, known to this node only). The range gets a row in
 * the ipcache, so that an address in it is known by the number of the longest range it lies in. A number stays with its range over
 * restarts: it is read back from the ipcache.
 */
import { formatPrefix, parsePrefix } from '@clustermesh/contract';

export const LOCAL_SCOPE = 0x01_00_00_00;
const LAST = 0x01_ff_ff_ff;

export const isLocalIdentity = (id: number): boolean => id >= LOCAL_SCOPE && id <= LAST;

export interface CidrNumbers {
  /** Counts a use. Undefined for the whole of a family: that is the world, which has a number. */
  acquire(text: string): { readonly id: number; readonly isNew: boolean } | undefined;
  /** The number, when that was the last use. */
  release(text: string): number | undefined;
  /** A number that the kernel knows from before. */
  restore(text: string, id: number): void;
  /** In use, by canonical text. */
  inUse(): ReadonlyMap<string, number>;
}

export function createCidrNumbers(): CidrNumbers {
  const uses = new Map<string, number>();
  const numbers = new Map<string, number>();
  const remembered = new Map<string, number>();
  const taken = new Set<number>();
  let next = LOCAL_SCOPE + 1;

  const canonical = (text: string): string | undefined => {
    const prefix = parsePrefix(text);
    return prefix === undefined || prefix.length === 0 ? undefined : formatPrefix(prefix);
  };

  function numberFor(prefix: string): number {
    const before = remembered.get(prefix);
    remembered.delete(prefix);
    if (before !== undefined) return before;
    while (taken.has(next)) next++;
    taken.add(next);
    return next;
  }

  return {
    acquire(text) {
      const prefix = canonical(text);
      if (prefix === undefined) return undefined;
      const known = numbers.get(prefix);
      uses.set(prefix, (uses.get(prefix) ?? 0) + 1);
      if (known !== undefined) return { id: known, isNew: false };
      const id = numberFor(prefix);
      numbers.set(prefix, id);
      return { id, isNew: true };
    },
    release(text) {
      const prefix = canonical(text);
      if (prefix === undefined) return undefined;
      const left = (uses.get(prefix) ?? 0) - 1;
      if (left > 0) {
        uses.set(prefix, left);
        return undefined;
      }
      const id = numbers.get(prefix);
      uses.delete(prefix);
      numbers.delete(prefix);
      // The number is not given to another range while packets may still be judged by it; 16 million are enough.
      if (id !== undefined) remembered.set(prefix, id);
      return id;
    },
    restore(text, id) {
      const prefix = canonical(text);
      if (prefix === undefined || taken.has(id)) return;
      remembered.set(prefix, id);
      taken.add(id);
    },
    inUse: () => numbers,
  };
}
