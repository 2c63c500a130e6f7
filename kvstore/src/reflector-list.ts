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
        canary = { ...page.beside, epoch: etcd.epoch, connection: header.connection };
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
  const removes = index.endList(holdMissing(context, header!, canary));
  await applyList(context, [], removes, header!.revision);
  session.throwIfAborted();
  return { header: header!, canary };
}

/** Which rows a complete list may be missing without their being removed. */
function holdMissing({ options, holdback, clock }: ReflectorContext, header: Header, canary: Canary | undefined) {
  if (holdback === undefined) return undefined;
  const nowMs = clock.nowMs();
  const isSilent = holdback.isSilent(nowMs);
  const before = holdback.held.size > 0 && !holdback.mayRelease(nowMs, canary) ? new Set(holdback.held) : undefined;
  holdback.held.clear();
  return (key: string, leased: boolean) => {
    if (before?.has(key) === true) holdback.held.add(key);
    else if (leased && isSilent) holdback.hold(key, header.revision, options.etcd.epoch, nowMs);
    return holdback.held.has(key);
  };
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
