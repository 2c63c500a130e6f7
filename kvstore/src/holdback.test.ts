/** Deletes that may only be a lost lease: the traces that the model found, on a real etcd. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { Holdback } from './holdback.ts';
import { startReflector } from './reflector.ts';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import { memorySink } from './testing/memory-sink.ts';
import type { Etcd, ReflectorOptions, SinkBatch, WatchRequest } from './types.ts';

const eventually = (what: string, condition: () => unknown) =>
  waitFor(condition, { what, timeoutMs: 20_000, intervalMs: 10 });

describe('holdback', () => {
  const options = { silentAfterMs: 100, settleMs: 50, burst: 3 };
  let beatAt: number | undefined;
  const at = (nowMs: number) => ({ revision: 1, epoch: 1, nowMs });
  const start = (first: number | undefined) => {
    beatAt = first;
    return new Holdback({ ...options, lastHeartbeatAt: () => beatAt });
  };

  it('believes a writer that it has heard from the beginning, and one that was silent only after a while and another beat', () => {
    const holdback = start(0);
    assert.equal(holdback.wants(1, 1, 10), false);
    assert.equal(holdback.wants(1, 3, 10), true, 'a burst');
    assert.equal(holdback.wants(1, 1, 101), true, 'silence');
    beatAt = 110;
    assert.equal(holdback.wants(1, 1, 111), true, 'heard is not steady');
    assert.equal(holdback.wants(1, 1, 170), true, 'that beat may have been found by a list');
    beatAt = 170;
    assert.equal(holdback.wants(1, 1, 171), false);
    beatAt = undefined;
    assert.equal(holdback.wants(1, 1, 172), true, 'its own lease has ended');
  });

  it('notices a silence that nobody asked about by the beats on both sides of it', () => {
    const holdback = start(0);
    const since = holdback.steadySince(10);
    assert.notEqual(since, undefined);
    beatAt = 500;
    assert.equal(holdback.steadySince(510), undefined);
    beatAt = 570;
    assert.notEqual(holdback.steadySince(575), undefined);
    assert.notEqual(holdback.steadySince(575), since);
  });

  it('releases what has neither been held nor put again for a while, and only while its writer is steady', () => {
    const holdback = start(0);
    for (const key of ['a', 'b', 'c']) holdback.hold(key, at(10));
    beatAt = 40;
    assert.equal(holdback.mayRelease(50), false, 'too early');
    holdback.putAgain('a', 50);
    beatAt = 60;
    assert.equal(holdback.mayRelease(70), false, 'its writer is at it');
    assert.equal(holdback.mayRelease(100), true);
    assert.equal(holdback.mayRelease(161), false, 'silent');
  });

  it('a list that began while its writer was not steady is doubted, also when it is at the end', () => {
    const holdback = start(undefined);
    const steady = holdback.steadySince(0);
    beatAt = 10;
    holdback.steadySince(10);
    beatAt = 65;
    assert.notEqual(holdback.steadySince(66), undefined);
    holdback.afterList(['a'], steady, at(66));
    assert.deepEqual([...holdback.held], ['a']);
    holdback.beginWatch(steady, 66);
    assert.equal(holdback.steadySince(66), undefined);
  });
});

/** A client of which a test decides when watch events get through, and what happens at the end of a list. */
function staged(etcd: Etcd) {
  let held: (() => void)[] | undefined;
  let onListed: (() => Promise<unknown>) | undefined;
  const client: Etcd = Object.create(etcd, {
    watch: {
      value: (request: WatchRequest) =>
        etcd.watch({
          ...request,
          onEvents: (...args) => {
            if (held === undefined) request.onEvents(...args);
            else held.push(() => request.onEvents(...args));
          },
        }),
    },
    pages: {
      async *value(...args: Parameters<Etcd['pages']>) {
        yield* etcd.pages(...args);
        const act = onListed;
        onListed = undefined;
        await act?.();
      },
    },
  });
  return {
    client,
    holdWatch: () => (held ??= []),
    releaseWatch() {
      const events = held ?? [];
      held = undefined;
      for (const event of events) event();
    },
    /** Once: after the next complete list, before anything is concluded from it. */
    atNextList: (act: () => Promise<unknown>) => {
      onListed = act;
    },
    isListing: () => onListed === undefined,
  };
}

describe('a reader of leased rows', { timeout: 120_000 }, () => {
  let server: EtcdServer;
  let direct: Etcd;
  let heardAt: number | undefined;
  let beating: NodeJS.Timeout | undefined;
  const beat = () => {
    heardAt = performance.now();
    beating ??= setInterval(() => {
      heardAt = performance.now();
    }, 10);
  };
  const fallSilent = () => {
    clearInterval(beating);
    beating = undefined;
    heardAt = undefined;
  };
  before(async () => {
    server = await startEtcd();
    direct = server.client();
  });
  after(async () => {
    fallSilent();
    await server.close();
  });

  let count = 0;
  /** 20 rows on a lease, read, their writer being heard. */
  async function setUp(options: Partial<ReflectorOptions> & { burst?: number } = {}) {
    const prefix = `held${count++}/`;
    const lease = await direct.lease({ ttlSeconds: 600 });
    const keys = Array.from({ length: 20 }, (_, i) => `${prefix}${i}`);
    const putAll = (on?: string) => Promise.all(keys.map((key) => direct.put(key, 'x', on ? { lease: on } : {})));
    await putAll(lease.id);
    beat();
    const etcd = server.client();
    const stage = staged(etcd);
    const sink = memorySink();
    const stop = new AbortController();
    const reflector = startReflector({
      ...{ etcd: stage.client, prefix, sink, log: silentLog(), signal: stop.signal, backoff: { minMs: 10, maxMs: 50 } },
      holdDeletes: { lastHeartbeatAt: () => heardAt, settleMs: 2_000, burst: options.burst ?? 10 },
      ...options,
    });
    await reflector.waitSynced();
    return {
      ...{ prefix, lease, keys, putAll, etcd, stage, sink, reflector },
      async [Symbol.asyncDispose]() {
        stop.abort();
        await reflector.done;
        await etcd.close();
        await lease.close({ revoke: false });
      },
    };
  }

  it('loses nothing when it lists while a lost lease of a live writer is not put again yet', async () => {
    await using reader = await setUp({ resume: false });
    const { sink, reflector, etcd, putAll } = reader;
    etcd.reconnect('test');
    reader.stage.holdWatch();
    await server.expire(reader.lease.id);
    await eventually('another session', () => reflector.status().reconnects > 0 && reflector.status().synced);
    reader.stage.releaseWatch();
    assert.equal(reflector.status().held, 20);
    await putAll();
    await eventually('all to be there again', () => reflector.status().held === 0);
    assert.deepEqual(sink.removed, []);
  });

  it('loses nothing by a list that was made in silence, and ends when the writer is heard', async () => {
    await using reader = await setUp({ resume: false, burst: 100 });
    const { sink, reflector, etcd, stage } = reader;
    fallSilent();
    stage.holdWatch();
    stage.atNextList(async () => beat());
    await server.expire(reader.lease.id);
    etcd.reconnect('test');
    await eventually('the list', () => stage.isListing() && reflector.status().synced && reflector.status().held > 0);
    stage.releaseWatch();
    await reader.putAll();
    await eventually('all to be there again', () => reflector.status().held === 0);
    assert.deepEqual(sink.removed, []);
  });

  it('a canary is no proof that the rows have been put again', async () => {
    const canaryKey = `synced${count}/`;
    await direct.put(canaryKey, 'then');
    await using reader = await setUp({ canaryKey });
    const { sink, reflector } = reader;
    await server.expire(reader.lease.id);
    await eventually('the rows being held', () => reflector.status().held === 20);
    // As Cilium's writer does that was cut off: the canary first, then one row after the other.
    await direct.put(canaryKey, 'now');
    for (const key of reader.keys) {
      await direct.put(key, 'x');
      // The pace of the writer, over several of the reader's looks (every 500 ms): nothing is waited for.
      await new Promise((resolve) => setTimeout(resolve, 60));
    }
    await eventually('all to be there again', () => reflector.status().held === 0);
    assert.deepEqual(sink.removed, []);
  });

  it('what is held while the list of a release is made stays held, and goes later', async () => {
    await using reader = await setUp();
    const { sink, reflector, stage, prefix } = reader;
    const other = await direct.lease({ ttlSeconds: 600 });
    const more = Array.from({ length: 20 }, (_, i) => `${prefix}more${i}`);
    for (const key of more) await direct.put(key, 'x', { lease: other.id });
    await eventually('all rows', () => sink.rows.size === 40);
    stage.atNextList(async () => {
      await server.expire(other.id);
      await eventually('both being held', () => reflector.status().held === 40);
    });
    await server.expire(reader.lease.id);
    await eventually('what was held first to go', () => sink.removed.length >= 20);
    // Neither lease is anybody's: all is really gone, and in the end the reader says so.
    await eventually('the others to go', () => sink.rows.size === 0);
    assert.equal(reflector.status().held, 0);
    await other.close({ revoke: false });
  });

  it('a row that is put right after the list of a release is not taken for a replay', async () => {
    await using reader = await setUp();
    const { sink, stage } = reader;
    const [key] = reader.keys as [string];
    await server.expire(reader.lease.id);
    stage.atNextList(async () => {
      stage.holdWatch();
      await direct.put(key, 'again');
    });
    await eventually('the removal', () => sink.removed.includes(key));
    stage.releaseWatch();
    await eventually('the row', () => sink.rows.get(key) === 'again');
  });

  it('loses nothing by a resync that sees the end of a lease before the watch does', async () => {
    await using reader = await setUp({ resyncIntervalMs: 200 });
    const { sink, reflector, stage } = reader;
    stage.holdWatch();
    await server.expire(reader.lease.id);
    await eventually('the resync', () => reflector.status().held === 20 || sink.removed.length > 0);
    await reader.putAll();
    stage.releaseWatch();
    await eventually('all to be there again', () => reflector.status().held === 0);
    assert.deepEqual(sink.removed, []);
  });

  it('a leased row that the sink refused is still one: it is held', async () => {
    let isRefusing = false;
    let refused = 0;
    const inner = memorySink();
    const sink = {
      apply(batch: SinkBatch) {
        if (isRefusing && batch.kind === 'watch') {
          refused++;
          throw new Error('refused');
        }
        inner.apply(batch);
      },
    };
    await using reader = await setUp({ sink, burst: 100, resume: false });
    const { reflector } = reader;
    isRefusing = true;
    fallSilent();
    await direct.put(reader.keys[0]!, 'other', { lease: reader.lease.id });
    // Of the sink, not of the status: that forgets it with the next list, some milliseconds later.
    await eventually('the refusal', () => refused > 0);
    await server.expire(reader.lease.id);
    await eventually('the rows being held', () => reflector.status().held === 20);
    assert.deepEqual(inner.removed, []);
  });

  it('rows that are held across a rebuilt etcd are replaced by what is put there, whatever its revision', async () => {
    await using peer = await startEtcd({ sameClusterId: true });
    const client = peer.client();
    const lease = await client.lease({ ttlSeconds: 600 });
    for (let i = 0; i < 30; i++) await client.put('rebuilt/a', `${i}`, { lease: lease.id });
    await client.put('synced', 'then');
    beat();
    const sink = memorySink();
    const stop = new AbortController();
    const reflector = startReflector({
      ...{ etcd: client, prefix: 'rebuilt/', canaryKey: 'synced', sink, log: silentLog(), signal: stop.signal },
      ...{
        backoff: { minMs: 10, maxMs: 50 },
        holdDeletes: { lastHeartbeatAt: () => heardAt, burst: 1, settleMs: 2_000 },
      },
    });
    await reflector.waitSynced();
    await peer.wipe();
    // The canary first, as Cilium's writer may.
    await eventually('the canary', () =>
      client.put('synced', 'now').then(
        () => true,
        () => false,
      ),
    );
    await eventually('the row being held', () => reflector.status().synced && reflector.status().held === 1);
    await client.put('rebuilt/a', 'new');
    await eventually('the row of the new etcd', () => sink.rows.get('rebuilt/a') === 'new');
    assert.deepEqual(sink.removed, []);
    stop.abort();
    await reflector.done;
    await lease.close({ revoke: false });
  });
});
