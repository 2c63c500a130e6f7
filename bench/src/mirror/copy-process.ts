/**
 * The baseline, a process of its own as the apiserver is: pages from every source into transactions of 100 puts at the target, over
 * the same TLS and with the same client, nothing looked at and nothing remembered. Then every change that a watch shows is put, alone.
 */
import { FAMILIES, type Family } from '@clustermesh/contract';
import { type Etcd, openEtcd } from '@clustermesh/kvstore';
import { silentLog } from '@clustermesh/runtime';
import { prefixesOf } from './load.ts';
import type { Tls } from './stage.ts';

export interface CopySettings {
  readonly sources: readonly { readonly peer: number; readonly endpoint: string }[];
  readonly target: string;
  readonly reader: Tls;
  readonly admin: Tls;
}

export type FromCopy = { readonly type: 'copied'; readonly keys: number } | { readonly type: 'following' };

const OPERATIONS = 100;
const settings = JSON.parse(process.argv[2]!) as CopySettings;
const send = (message: FromCopy) => void process.send!(message);
const open = (endpoint: string, tls: Tls) =>
  openEtcd({ endpoints: [endpoint], ...tls, log: silentLog(), requestTimeoutMs: 120_000 });
const target = open(settings.target, settings.admin);
let keys = 0;

async function copy(source: Etcd, peer: number, family: Family): Promise<number> {
  const { source: from, target: to } = prefixesOf(peer, family);
  let revision = 0;
  for await (const { kvs, header } of source.pages(from)) {
    ({ revision } = header);
    for (let i = 0; i < kvs.length; i += OPERATIONS) {
      const batch = kvs.slice(i, i + OPERATIONS);
      await target.txn({ success: batch.map(({ key, value }) => ({ put: to + key.slice(from.length), value })) });
    }
    keys += kvs.length;
  }
  return revision;
}

function follow(source: Etcd, peer: number, family: Family, startRevision: number): Promise<void> {
  const { source: prefix, target: to } = prefixesOf(peer, family);
  return new Promise((created, failed) => {
    const watch = source.watch({
      prefix,
      startRevision,
      signal: new AbortController().signal,
      onCreated: () => created(),
      onEvents(events) {
        for (const { type, key, value } of events) {
          const name = to + key.slice(prefix.length);
          const done = type === 'put' ? target.put(name, value) : target.delete(name);
          done.catch(failed);
        }
      },
    });
    watch.catch(failed);
  });
}

const sources = settings.sources.map(({ peer, endpoint }) => ({ peer, etcd: open(endpoint, settings.reader) }));
const listed = await Promise.all(
  sources.map(async ({ peer, etcd }) => {
    const revisions = new Map<Family, number>();
    for (const family of FAMILIES) revisions.set(family, await copy(etcd, peer, family));
    return { peer, etcd, revisions };
  }),
);
send({ type: 'copied', keys });
await Promise.all(
  listed.flatMap(({ peer, etcd, revisions }) =>
    [...revisions].map(([family, revision]) => follow(etcd, peer, family, revision + 1)),
  ),
);
send({ type: 'following' });
