/** Numbers of known nodes (who may send this node encapsulated traffic). Kept over restarts, never reused while held. */
import type { NodeRow } from '../datapath/types.ts';

export interface NodeIds {
  /** The number of a node address: the one it had, or the smallest that is free. */
  idOf(ip: string): number;
  restore(rows: Iterable<NodeRow>): void;
  release(ip: string): void;
}

const LAST_NODE_ID = 0xffff;

export function createNodeIds(): NodeIds {
  const ids = new Map<string, number>();
  const used = new Set<number>();
  let candidate = 1;

  return {
    idOf(ip) {
      const known = ids.get(ip);
      if (known !== undefined) return known;
      // 65 535 nodes are far beyond what one mesh may have; the loop ends because ids are released.
      while (used.has(candidate)) candidate = (candidate % LAST_NODE_ID) + 1;
      used.add(candidate);
      ids.set(ip, candidate);
      return candidate;
    },
    restore(rows) {
      for (const row of rows) {
        ids.set(row.ip, row.nodeId);
        used.add(row.nodeId);
      }
    },
    release(ip) {
      const id = ids.get(ip);
      if (id === undefined) return;
      ids.delete(ip);
      used.delete(id);
    },
  };
}
