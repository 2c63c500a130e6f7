/**
 * Changes at the sources, each timed from the beginning of its put to its sight on a watch of the target. All clocks are this
 * process's. The rates are those of the scale test: in an open loop, a slow mirror does not slow the sources down.
 */
import { setMaxListeners } from 'node:events';
import { FAMILIES, type Family } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import {
  countsOf,
  type Entry,
  endpointEntry,
  heartbeat,
  identityEntry,
  type MirrorShape,
  nodeEntry,
  prefixesOf,
} from './load.ts';
import type { Source } from './stage.ts';

/** Changes per second of one cluster of the scale test. */
const RATES = { nodes: 0.1, identities: 0.2, ip: 1 } as const;
export const changesPerSecond = ({ peers, worth }: MirrorShape): number =>
  peers * worth * Object.values(RATES).reduce((sum, rate) => sum + rate, 0);

const DRAIN_MS = 15_000;
const HEARTBEAT_MS = 30_000;

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export interface ChangeResult {
  readonly changes: number;
  /** Milliseconds, sorted. */
  readonly latencies: readonly number[];
  readonly lost: number;
}

export interface Changes {
  /** One change at a time, each begun when the one before has arrived: what a single change takes. */
  single(count: number): Promise<ChangeResult>;
  churn(seconds: number, onProgress: (text: string) => void): Promise<ChangeResult>;
  close(): void;
}

export async function openChanges(options: {
  readonly shape: MirrorShape;
  readonly sources: readonly Source[];
  readonly target: Etcd;
  /** Keys (of the mirror) that are gone at the sources, of runs before too. */
  readonly absent: Set<string>;
}): Promise<Changes> {
  const { shape, sources, target, absent } = options;
  const { nodes, identities, endpoints } = countsOf(shape);
  const stop = new AbortController();
  setMaxListeners(0, stop.signal);
  /** Target key → what it must hold (undefined: nothing), and since when. */
  const waiting = new Map<string, { readonly value: string | undefined; readonly sinceMs: number }>();
  let latencies: number[] = [];
  let arrived = () => {};
  let seed = 1;

  /** A small generator of its own: two runs make the same changes. */
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };

  const { header } = await target.getWithHeader('cilium/');
  await Promise.all(
    sources.flatMap(({ peer }) =>
      FAMILIES.map(
        (family) =>
          new Promise<void>((created, failed) => {
            const watch = target.watch({
              prefix: prefixesOf(peer, family).target,
              startRevision: header.revision + 1,
              signal: stop.signal,
              onCreated: () => created(),
              onEvents(events) {
                const now = performance.now();
                for (const { type, key, value } of events) {
                  const change = waiting.get(key);
                  if (change === undefined || (type === 'put' ? value.toString() : undefined) !== change.value)
                    continue;
                  waiting.delete(key);
                  latencies.push(now - change.sinceMs);
                  arrived();
                }
              },
            });
            watch.catch(failed); // A watch that breaks later shows as changes lost.
          }),
      ),
    ),
  );

  /**
   * A put or (a third of them) a delete of something that exists; what is absent comes back. Nodes only change: the endpoints of one
   * that is gone would rightly be refused.
   */
  const change = (family: Exclude<Family, 'services'>): void => {
    const { peer, etcd } = sources[random(sources.length)]!;
    const entry: Entry = {
      nodes: () => nodeEntry(shape, peer, random(nodes)),
      identities: () => identityEntry(peer, random(identities)),
      ip: () => endpointEntry(shape, peer, random(endpoints), random(identities)),
    }[family]();
    const prefixes = prefixesOf(peer, family);
    const key = prefixes.target + entry.key.slice(prefixes.source.length);
    // The one before has not arrived: which of both a watch shows could not be told.
    if (waiting.has(key)) return;
    // An identity that is put again is the same again, and no change.
    const remove = family !== 'nodes' && !absent.has(key) && (family === 'identities' || random(3) === 0);
    if (remove) absent.add(key);
    else absent.delete(key);
    waiting.set(key, { value: remove ? undefined : entry.value, sinceMs: performance.now() });
    (remove ? etcd.delete(entry.key) : etcd.put(entry.key, entry.value)).catch(() => {}); // counted as lost
  };

  const result = (changes: number): ChangeResult => {
    const lost = waiting.size;
    waiting.clear();
    const sorted = latencies.sort((a, b) => a - b);
    latencies = [];
    return { changes, latencies: sorted, lost };
  };

  const beat = setInterval(() => {
    const { key, value } = heartbeat();
    for (const { etcd } of sources) etcd.put(key, value).catch(() => {}); // the next one follows
  }, HEARTBEAT_MS);

  return {
    async single(count) {
      for (let i = 0; i < count; i++) {
        const seen = new Promise<void>((resolve) => {
          arrived = resolve;
        });
        change('ip');
        await Promise.race([seen, sleep(DRAIN_MS)]);
        // Not in step with anybody's timer.
        await sleep(5 + random(20));
      }
      return result(count);
    },
    async churn(seconds, onProgress) {
      const streams = (Object.keys(RATES) as (keyof typeof RATES)[]).map((family) => {
        const everyMs = 1000 / (RATES[family] * shape.peers * shape.worth);
        return { family, everyMs, dueMs: performance.now() + random(1000) * (everyMs / 1000) };
      });
      let changes = 0;
      const startMs = performance.now();
      let reportMs = startMs + 30_000;
      for (let now = startMs; now < startMs + seconds * 1000; now = performance.now()) {
        for (const stream of streams) {
          for (; stream.dueMs <= now; stream.dueMs += stream.everyMs) {
            change(stream.family);
            changes++;
          }
        }
        if (now >= reportMs) {
          reportMs += 30_000;
          onProgress(`${Math.round((now - startMs) / 1000)} s, ${changes} changes, ${waiting.size} on their way`);
        }
        await sleep(1);
      }
      const deadline = performance.now() + DRAIN_MS;
      while (waiting.size > 0 && performance.now() < deadline) await sleep(20);
      return result(changes);
    },
    close() {
      clearInterval(beat);
      stop.abort();
    },
  };
}
