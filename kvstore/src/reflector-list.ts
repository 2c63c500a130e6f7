import type { Canary, ReflectorContext } from './reflector-context.ts';
import { checkLimits } from './reflector-limits.ts';
import { sizeOf } from './row-index.ts';
import type { Header, RowUpsert } from './types.ts';

export interface Listed {
  readonly header: Header;
  readonly canary: Canary | undefined;
}

/**
 * Brings the sink to what is there, page by page; only the whole list removes anything. Where there is a canary, and it was not
 * `seen` yet, it is asked for with the first page: undefined, and nothing is touched, if it is not there.
 */
export async function list(
  context: ReflectorContext,
  seen: Canary | undefined,
  session: AbortSignal,
): Promise<Listed | undefined> {
  const { options, index, progress } = context;
  const { etcd, prefix } = options;
  const beside = seen === undefined ? options.canaryKey : undefined;
  const steady = context.holdback?.steadySince(context.clock.nowMs());
  let canary = seen;
  let header: Header | undefined;
  let keys = 0;
  let bytes = 0;
  for await (const page of etcd.pages(prefix, { signal: session, connection: seen?.connection, beside })) {
    progress.alive();
    if (header === undefined) {
      ({ header } = page);
      if (beside !== undefined) {
        if (page.beside === undefined) return undefined;
        canary = { ...page.beside, connection: header.connection };
      }
      index.beginList();
      progress.setState({ name: 'listing', header });
    }
    keys += page.kvs.length;
    bytes += page.kvs.reduce((sum, kv) => sum + sizeOf(kv), 0);
    checkLimits(options, keys, bytes);
    const upserts = page.kvs.filter((kv) => kv.key.startsWith(prefix) && index.listed(kv));
    await applyList(context, upserts, [], header.revision);
    session.throwIfAborted();
  }
  // Only here is the list known to be whole.
  const removes = endList(context, header!, steady);
  await applyList(context, [], removes, header!.revision);
  session.throwIfAborted();
  return { header: header!, canary };
}

/** What a complete list removes: not what may only have lost its lease. `steady`: whether the writer was when the list began. */
function endList({ options, index, holdback, clock }: ReflectorContext, header: Header, steady: number | undefined) {
  if (holdback === undefined) return index.endList();
  const nowMs = clock.nowMs();
  const leased: string[] = [];
  const removes = index.endList((key, isLeased) => isLeased && leased.push(key) > 0);
  holdback.afterList(leased, steady, { revision: header.revision, epoch: options.etcd.epoch, nowMs });
  holdback.beginWatch(steady, nowMs);
  // Revisions of an etcd that was rebuilt since: what is put next has a lower one, and is news all the same.
  for (const key of holdback.held) if (index.revisionOf(key)! > header.revision) index.invalidate(key);
  return leased.length === 0 ? removes : [...removes, ...index.endList((key) => holdback.held.has(key))];
}

async function applyList(
  { options, index }: ReflectorContext,
  upserts: RowUpsert[],
  removes: string[],
  at: number,
): Promise<void> {
  if (upserts.length + removes.length === 0) return;
  try {
    await options.sink.apply({ upserts, removes, revision: at, kind: 'list' });
  } catch (error) {
    for (const { key } of upserts) index.invalidate(key);
    for (const key of removes) index.invalidate(key);
    throw error;
  }
}
