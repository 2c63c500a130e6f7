/**
 * List and watch of one prefix, as Cilium's readers do it (wire-contract §1.11, §1.13):
 *
 *   list ──pages of 256, all at page 1's revision──► watch from revision + 1
 *    ▲                                                 │  │
 *    └──── error, or compacted: deletes are found ─────┘  └── closed without an error: watched again after
 *          by comparing the new list                          50 ms, from the last answer's revision + 1
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { status as grpcStatus, type ServiceError } from '@grpc/grpc-js';
import { ClusterChanged, type EtcdClient, type KeyValue, prefixEnd } from './client.ts';
import type { Report } from './report.ts';

export const PAGE_SIZE = 256;
const REWATCH_MS = 50;
const RETRY_MS = { min: 50, max: 2_000 };

export interface FollowOptions {
  readonly client: EtcdClient;
  readonly report: Report;
  readonly prefix: string;
  readonly signal: AbortSignal;
  /** Key → mod_revision of what is held. Survives the session: rows of before stay, as stale ones, until a new list is complete. */
  readonly known: Map<string, number>;
  onUpsert(kv: KeyValue): void;
  /** `from`: an event, or the comparison of two lists. */
  onDelete(key: string, from: 'watch' | 'list'): void;
  onPage?(): void;
  /** After every complete list. */
  onListed(revision: number): void;
}

function isGrpc(error: unknown, ...codes: number[]): error is ServiceError {
  return error instanceof Error && 'code' in error && codes.includes(Number(error.code));
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** All pages under a prefix; `revision` 0 is now. */
export async function list(
  options: Pick<FollowOptions, 'client' | 'report' | 'prefix' | 'onPage'>,
  revision = 0,
): Promise<{ readonly kvs: readonly KeyValue[]; readonly revision: number }> {
  const { client, report, prefix } = options;
  const end = prefixEnd(prefix);
  const kvs: KeyValue[] = [];
  let pinned = revision;
  let key = prefix;
  for (;;) {
    const page = await client.range({ key, end, limit: PAGE_SIZE, revision: pinned });
    options.onPage?.();
    if (pinned === 0) pinned = page.header.revision;
    if (page.kvs.length > PAGE_SIZE)
      report.violation('page', prefix, `${page.kvs.length} keys in a page of ${PAGE_SIZE}`);
    for (const kv of page.kvs) {
      const before = kvs.at(-1);
      // Bytes, as etcd compares.
      if (before !== undefined && Buffer.compare(Buffer.from(before.key), Buffer.from(kv.key)) >= 0)
        report.violation('order', kv.key, `comes after ${before.key} in the list`, kv.modRevision);
      if (!kv.key.startsWith(prefix)) report.violation('page', kv.key, `is not under ${prefix}`, kv.modRevision);
      if (kv.modRevision > pinned)
        report.violation(
          'page',
          kv.key,
          `is newer than the revision ${pinned} that the list is pinned to`,
          kv.modRevision,
        );
      kvs.push(kv);
    }
    const last = page.kvs.at(-1);
    if (!page.more || last === undefined) return { kvs, revision: pinned };
    key = `${last.key}\0`;
  }
}

/**
 * Runs until the signal; after a lost connection it lists again. Ends early when it may not read, and throws ClusterChanged when
 * another etcd answered: then the whole session is void, canaries included.
 */
export async function follow(options: FollowOptions): Promise<void> {
  const { client, report, prefix, signal, known } = options;
  const epoch = client.epoch;
  let retryMs = RETRY_MS.min;
  let isFirst = true;
  while (!signal.aborted) {
    try {
      const listed = await list(options);
      const present = new Set(listed.kvs.map((kv) => kv.key));
      for (const key of [...known.keys()]) {
        if (present.has(key)) continue;
        known.delete(key);
        options.onDelete(key, 'list');
      }
      for (const kv of listed.kvs) {
        const before = known.get(kv.key);
        known.set(kv.key, kv.modRevision);
        // Revisions of the session before may be those of another etcd.
        if (isFirst || before !== kv.modRevision) options.onUpsert(kv);
      }
      isFirst = false;
      options.onListed(listed.revision);
      retryMs = RETRY_MS.min;
      await watchFrom(options, listed.revision + 1);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ClusterChanged || client.epoch !== epoch) throw error;
      if (isGrpc(error, grpcStatus.PERMISSION_DENIED, grpcStatus.UNAUTHENTICATED)) {
        report.violation('permission', prefix, `may not be read: ${error.details}`);
        return;
      }
      report.restart(prefix, messageOf(error));
      await sleep(retryMs, undefined, { signal }).catch(() => {});
      retryMs = Math.min(retryMs * 2, RETRY_MS.max);
    }
  }
}

class Relist extends Error {}

async function watchFrom(options: FollowOptions, startRevision: number): Promise<void> {
  const { client, report, prefix, signal, known } = options;
  let next = startRevision;
  while (!signal.aborted) {
    let relist: string | undefined;
    await client.watch({ key: prefix, end: prefixEnd(prefix), startRevision: next, signal }, (answer) => {
      if (answer.canceled) {
        relist = answer.compactRevision > 0 ? `compacted up to ${answer.compactRevision}` : answer.reason || 'canceled';
        return false;
      }
      if (answer.fragment) report.violation('watch', prefix, 'a fragment, which was not asked for');
      let last = 0;
      for (const { type, kv } of answer.events) {
        const at = kv.modRevision;
        if (at < next)
          report.violation(
            'watch',
            kv.key,
            `event of a revision that an earlier header (${next - 1}) said was past`,
            at,
          );
        if (at < last)
          report.violation('watch', kv.key, `event of an earlier revision than the one before it (${last})`, at);
        if (at > answer.header.revision)
          report.violation('watch', kv.key, `event beyond its header's revision ${answer.header.revision}`, at);
        last = at;
        if (type === 'DELETE') {
          if (!known.delete(kv.key)) report.violation('watch', kv.key, 'deleted, but it was not there', at);
          else options.onDelete(kv.key, 'watch');
          continue;
        }
        const isNew = kv.createRevision === kv.modRevision;
        if (isNew === known.has(kv.key))
          report.violation(
            'watch',
            kv.key,
            isNew ? 'created, but it was there already' : 'modified, but it was not there',
            at,
          );
        known.set(kv.key, at);
        options.onUpsert(kv);
      }
      // Not the last event's revision: a reader trusts the header, and so must be able to.
      if (!answer.created) next = answer.header.revision + 1;
      return true;
    });
    if (signal.aborted) return;
    if (relist !== undefined) throw new Relist(relist);
    report.restart(prefix, 'watch closed without an error');
    await sleep(REWATCH_MS, undefined, { signal }).catch(() => {});
  }
}
