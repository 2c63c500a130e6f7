import type { Canary, ReflectorContext } from './reflector-context.ts';
import { childOf } from './signals.ts';
import type { WatchEvent } from './types.ts';

/** The canary as it is now; undefined if it is not there, or none is kept. */
export async function readCanary(
  { options, progress }: ReflectorContext,
  session: AbortSignal,
  connection?: number,
): Promise<Canary | undefined> {
  const { etcd, canaryKey } = options;
  if (canaryKey === undefined) return undefined;
  const { kv, header } = await etcd.getWithHeader(canaryKey, { signal: session, connection });
  progress.alive();
  return kv && { createRevision: kv.createRevision, connection: header.connection };
}

/** Undefined where none is kept. */
export async function waitForCanary(
  { options, progress }: ReflectorContext,
  session: AbortSignal,
): Promise<Canary | undefined> {
  const { etcd, canaryKey } = options;
  if (canaryKey === undefined) return undefined;
  const alive = () => progress.alive();
  const { kv, header } = await etcd.getWithHeader(canaryKey, { signal: session });
  alive();
  const { connection } = header;
  if (kv !== undefined) return { createRevision: kv.createRevision, connection };
  progress.setState({ name: 'waiting-for-canary' });
  const { controller: seen, release } = childOf(session);
  let put: WatchEvent | undefined;
  await etcd.watch({
    prefix: canaryKey,
    exact: true,
    startRevision: header.revision + 1,
    connection,
    signal: seen.signal,
    onCreated: alive,
    onProgress: alive,
    onEvents: (events) => {
      alive();
      put = events.findLast((event) => event.type === 'put') ?? put;
      if (put !== undefined) seen.abort();
    },
  });
  release();
  session.throwIfAborted();
  return { createRevision: put!.createRevision, connection };
}
