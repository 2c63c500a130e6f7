/**
 * Is this the etcd that this node knew? A row that is absent from a complete list of a *known* store was removed; absent from a
 * store that was rebuilt or wiped it says nothing, because nobody has written it yet.
 *
 * The node leaves a mark in the store, a random value that its disk remembers, once all that it holds has been confirmed by that
 * store. A store without the mark is another one. (Cluster ids do not tell: an etcd rebuilt with equal flags has the same one. Nor
 * do revisions: the new store may have counted past the old one by the time anybody asks.)
 */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { storeMarkKey } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { atomicWrite } from '@clustermesh/runtime';

export interface StoreMemory {
  /** Does the etcd that answers now have this node's mark? Rejects when it cannot be asked. */
  isKnown(): Promise<boolean>;
  /**
   * All that this node holds was confirmed on this connection: from here on the store behind it is the known one. Pinned to the
   * connection, because the next one may lead to another etcd. Calls while one is under way share its outcome.
   */
  remember(connection: number): Promise<void>;
  isRemembered(connection: number): boolean;
}

const REQUEST_TIMEOUT_MS = 3_000;

export function createStoreMemory(options: {
  readonly etcd: Etcd;
  readonly node: string;
  readonly stateDir: string;
}): StoreMemory {
  const { etcd } = options;
  const path = join(options.stateDir, 'etcd-mark');
  const key = storeMarkKey(options.node);
  let mark = readMark(path);
  let markedConnection: number | undefined;
  let marking: Promise<void> | undefined;

  async function rememberOn(connection: number): Promise<void> {
    const call = { connection, timeoutMs: REQUEST_TIMEOUT_MS };
    const found = await etcd.get(key, call);
    if (mark === undefined || found?.value.toString() !== mark) {
      const fresh = randomUUID();
      // etcd first: a mark that only the disk knows would be looked for in vain for ever, one that only etcd knows is
      // replaced the next time.
      await etcd.put(key, fresh, call);
      atomicWrite(path, `${fresh}\n`);
      mark = fresh;
    }
    markedConnection = connection;
  }

  return {
    async isKnown() {
      if (mark === undefined) return false;
      const found = await etcd.get(key, { timeoutMs: REQUEST_TIMEOUT_MS });
      return found?.value.toString() === mark;
    },
    remember(connection) {
      if (markedConnection === connection) return Promise.resolve();
      // One at a time: of two, each would leave a mark of its own, and disk and store could be left with different ones.
      marking ??= rememberOn(connection).finally(() => {
        marking = undefined;
      });
      return marking;
    },
    isRemembered: (connection) => markedConnection === connection,
  };
}

function readMark(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim() || undefined;
  } catch {
    // No store is known: absence proves nothing. That errs on the side of keeping rows.
    return undefined;
  }
}
