/** Waits for a mirror to be whole, and holds it against its sources. */
import { canaryKey, FAMILIES, peerKey, SYNCED_PREFIX } from '@clustermesh/contract';
import type { Etcd, KeyValue } from '@clustermesh/kvstore';
import { type MirrorShape, peerName, prefixesOf } from './load.ts';
import type { Source } from './stage.ts';

/** Resolves when every family of every peer has its canary at the target: it is written once all of it is there. */
export async function allMirrored(target: Etcd, { peers }: MirrorShape): Promise<void> {
  const missing = new Set<string>();
  for (let peer = 1; peer <= peers; peer++)
    for (const family of FAMILIES) missing.add(canaryKey(peerName(peer), family, 'cache'));
  const stop = new AbortController();
  await target.watch({
    prefix: SYNCED_PREFIX,
    startRevision: 1,
    signal: stop.signal,
    onEvents(events) {
      for (const { key } of events) missing.delete(key);
      if (missing.size === 0) stop.abort();
    },
  });
}

/** Keys whose copy is missing, different, or too many. */
export async function differences(target: Etcd, sources: readonly Source[]): Promise<number> {
  let differing = 0;
  for (const { peer, etcd } of sources) {
    for (const family of FAMILIES) {
      const { source, target: copy } = prefixesOf(peer, family);
      const nameOf = (prefix: string) => (kv: KeyValue) => [kv.key.slice(prefix.length), kv.value] as const;
      const wanted = new Map((await etcd.range(source)).kvs.map(nameOf(source)));
      for (const [name, value] of (await target.range(copy)).kvs.map(nameOf(copy))) {
        if (wanted.get(name)?.equals(value) === true) wanted.delete(name);
        else if (!wanted.has(name)) differing++;
      }
      differing += wanted.size;
    }
  }
  return differing;
}

export interface PeerRecord {
  readonly ready: boolean;
  readonly error?: string;
  readonly families: Readonly<Record<string, { readonly quarantined: number }>>;
}

export async function peerRecord(target: Etcd, peer: number): Promise<PeerRecord | undefined> {
  const kv = await target.get(peerKey(peerName(peer)));
  return kv === undefined ? undefined : (JSON.parse(kv.value.toString()) as PeerRecord);
}
