import type { Clock } from '@clustermesh/runtime';
import type { RowIndex } from './row-index.ts';
import type { Etcd, Header, KeyValue } from './types.ts';

export interface Audit {
  /** Of the list; undefined if nothing could be listed. */
  readonly header: Header;
  /** Rows that are newer, or other, in etcd. */
  readonly changed: readonly KeyValue[];
  /** Keys that etcd has no more, with what was held back from removal among them. */
  readonly gone: readonly string[];
  /** How many of the keys that were held it did not show, those that events have explained since among them. */
  readonly missing: number;
}

const POLL_MS = 50;

/**
 * Compares what is held with a complete list, while a watch goes on. A difference counts only if no event explains it within
 * `graceMs`: the watch may merely be late. `touched` gathers the keys of the events that come meanwhile.
 */
export async function audit(options: {
  readonly etcd: Etcd;
  readonly prefix: string;
  readonly index: RowIndex;
  readonly connection: number;
  readonly touched: ReadonlySet<string>;
  readonly graceMs: number;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}): Promise<Audit> {
  const { etcd, prefix, index, touched, clock, signal } = options;
  const listed = new Set<string>();
  let changed: KeyValue[] = [];
  let header: Header | undefined;
  for await (const page of etcd.pages(prefix, { signal, connection: options.connection })) {
    ({ header } = page);
    for (const kv of page.kvs) {
      listed.add(kv.key);
      if (kv.key.startsWith(prefix) && index.differs(kv)) changed.push(kv);
    }
  }
  signal.throwIfAborted();
  const at = header!.revision;
  let gone = [...index.keys()].filter((key) => !listed.has(key) && index.revisionOf(key)! <= at);
  const missing = gone.length;
  for (const until = clock.nowMs() + options.graceMs; changed.length + gone.length > 0; ) {
    changed = changed.filter((kv) => !touched.has(kv.key) && index.differs(kv));
    gone = gone.filter((key) => !touched.has(key) && (index.revisionOf(key) ?? Number.POSITIVE_INFINITY) <= at);
    if (clock.nowMs() >= until) break;
    await clock.sleep(POLL_MS, signal);
    signal.throwIfAborted();
  }
  return { header: header!, changed, gone, missing };
}
