import { type Canary, type ReflectorContext, toUpsert } from './reflector-context.ts';
import { checkLimits } from './reflector-limits.ts';
import { sizeOf } from './row-index.ts';
import type { Header, RowUpsert } from './types.ts';

/** Brings the sink to what is there, page by page; only the whole list removes anything. Returns its header. */
export async function list(
  context: ReflectorContext,
  canary: Canary | undefined,
  session: AbortSignal,
): Promise<Header> {
  const { options, index, progress } = context;
  const { etcd, prefix } = options;
  progress.setState({ name: 'listing', header: undefined });
  index.beginList();
  let header: Header | undefined;
  let keys = 0;
  let bytes = 0;
  for await (const page of etcd.pages(prefix, { signal: session, connection: canary?.connection })) {
    progress.alive();
    const isFirst = header === undefined;
    ({ header } = page);
    if (isFirst) progress.setState({ name: 'listing', header });
    keys += page.kvs.length;
    bytes += page.kvs.reduce((sum, kv) => sum + sizeOf(kv), 0);
    checkLimits(options, keys, bytes);
    const upserts = page.kvs.filter((kv) => kv.key.startsWith(prefix) && index.listed(kv)).map(toUpsert);
    await applyList(context, upserts, [], header.revision);
    session.throwIfAborted();
  }
  // Only here is the list known to be whole.
  const removes = index.endList(holdMissing(context, header!, canary));
  await applyList(context, [], removes, header!.revision);
  session.throwIfAborted();
  return header!;
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
