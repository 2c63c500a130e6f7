import { MeshError } from '@clustermesh/contract';
import { readCanary } from './reflector-canary.ts';
import type { Canary, ReflectorContext } from './reflector-context.ts';
import { type Anchor, hashOf } from './row-index.ts';
import type { Header } from './types.ts';

/** Where a watch could go on, and what etcd must still show for it to be the etcd of before. */
export interface Cursor {
  readonly revision: number;
  readonly clusterId: string;
  readonly epoch: number;
  readonly anchor: Anchor;
  readonly canaryCreatedAt: number | undefined;
  /** Since when a leased writer had been steady; undefined: it was not. */
  readonly steady: number | undefined;
}

export interface ResumePoint {
  readonly header: Header;
  readonly canary: Canary | undefined;
}

/**
 * Equal cluster ids do not prove that this is the etcd of before (rebuilt with equal flags it has the same one, and its revision may
 * have overtaken ours): it must also show the row that was changed last exactly as it was at our revision, and a canary that has not
 * been created anew. Even so the session becomes synced only when a complete list has shown the same rows (`verify`).
 *
 * Undefined: a list it must be. Throws when etcd could not be asked.
 */
export async function findResumePoint(
  context: ReflectorContext,
  from: Cursor,
  session: AbortSignal,
): Promise<ResumePoint | undefined> {
  const { options, progress } = context;
  const { etcd, prefix, log } = options;
  try {
    const { key, modRevision, hash } = from.anchor;
    const { kv, header } = await etcd.getWithHeader(key, { signal: session, revision: from.revision });
    progress.alive();
    const isSame =
      header.clusterId === from.clusterId &&
      etcd.epoch === from.epoch &&
      kv?.modRevision === modRevision &&
      hashOf(kv.value) === hash;
    if (!isSame) return undefined;
    const canary = await readCanary(context, session, header.connection);
    if (canary?.createRevision !== from.canaryCreatedAt) return undefined;
    context.holdback?.beginWatch(from.steady, context.clock.nowMs());
    log.debug({ prefix, revision: from.revision }, 'going on from the last revision');
    return { header: { ...header, revision: from.revision }, canary };
  } catch (error) {
    if (error instanceof MeshError && error.code === 'etcd-compacted') return undefined;
    throw error;
  }
}
