/**
 * Is this the etcd that this node knew? A row that is absent from a complete list of a *known* store was removed; absent from a
 * store that was rebuilt or wiped it says nothing, because nobody has written it yet. The store is remembered on disk once
 * everything in it has been applied, so that the answer also holds for an agent that was down while etcd was wiped.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Etcd } from '@clustermesh/kvstore';
import { atomicWrite } from '@clustermesh/runtime';
import { z } from 'zod';

const schema = z.object({ clusterId: z.string(), revision: z.number() });

export interface StoreMemory {
  /** True if the store has this id and has not gone backwards since it was remembered. */
  isKnown(clusterId: string | undefined, revision: number): boolean;
  remember(clusterId: string, revision: number): void;
}

export function createStoreMemory(stateDir: string): StoreMemory {
  const path = join(stateDir, 'etcd.json');
  let known: z.infer<typeof schema> | undefined;
  try {
    known = schema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch {
    // Absent or unreadable: no store is known, so absence proves nothing. That errs on the side of keeping rows.
  }
  return {
    isKnown: (clusterId, revision) =>
      known !== undefined && known.clusterId === clusterId && revision >= known.revision,
    remember(clusterId, revision) {
      if (known?.clusterId === clusterId && known.revision === revision) return;
      known = { clusterId, revision };
      atomicWrite(path, `${JSON.stringify(known)}\n`);
    },
  };
}

export interface ListJudge {
  /** For a list that is being applied: does absence from it mean removal? */
  isSameStore(revision: number): boolean;
  /** The list was complete. */
  listed(): void;
  /** The last complete list was of the etcd that answers now. */
  isCurrent(): boolean;
}

/** One per reflector: compares with the store of its own last complete list, or with what the disk remembers. */
export function createListJudge(etcd: Etcd, memory: StoreMemory): ListJudge {
  let listedEpoch: number | undefined;
  return {
    isSameStore: (revision) =>
      listedEpoch === undefined ? memory.isKnown(etcd.clusterId, revision) : listedEpoch === etcd.epoch,
    listed() {
      listedEpoch = etcd.epoch;
    },
    isCurrent: () => listedEpoch === etcd.epoch,
  };
}
