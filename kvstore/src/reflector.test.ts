import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { createLog, silentLog, waitFor } from '@clustermesh/runtime';
import { startReflector } from './reflector.ts';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import { type MemorySink, memorySink } from './testing/memory-sink.ts';
import type { Etcd, Reflector, ReflectorOptions, Sink } from './types.ts';

const log = process.env.CM_LOG_LEVEL === undefined ? silentLog() : createLog('test');
const eventually = (what: string, condition: () => unknown) =>
  waitFor(condition, { what, timeoutMs: 10_000, intervalMs: 10 });

interface Started {
  readonly sink: MemorySink;
  readonly reflector: Reflector;
  stop(): Promise<void>;
}

/** Also ends what a failed test left running. */
const ended = new AbortController();

function reflect(etcd: Etcd, prefix: string, options: Partial<ReflectorOptions> = {}): Started {
  const stopping = new AbortController();
  const sink = memorySink();
  const reflector = startReflector({
    etcd,
    prefix,
    sink,
    log,
    signal: AbortSignal.any([stopping.signal, ended.signal]),
    backoff: { minMs: 10, maxMs: 100 },
    ...options,
  });
  return {
    sink,
    reflector,
    stop: async () => {
      stopping.abort();
      await reflector.done;
    },
  };
}

describe('reflector', { timeout: 60_000 }, () => {
  let server: EtcdServer;
  after(() => ended.abort());
  before(async () => {
    server = await startEtcd();
  });
  after(() => server.close());

  it('shows what was there and follows what changes', async () => {
    const etcd = server.client();
    await etcd.put('follow/a', '1');
    await etcd.put('followed', 'not under the prefix');
    const { sink, reflector, stop } = reflect(etcd, 'follow/');
    await reflector.waitSynced();
    assert.deepEqual(sink.contents(), { 'follow/a': '1' });
    await etcd.put('follow/b', '2');
    const last = await etcd.put('follow/a', '3');
    await etcd.delete('follow/b');
    await eventually('the changes', () => sink.removed.length === 1 && sink.rows.get('follow/a') === '3');
    const status = reflector.status();
    assert.equal(status.state, 'watching');
    assert.ok(status.synced && status.everSynced);
    assert.ok(status.dataRevision > last.revision, 'the delete counts as a change');
    await stop();
    assert.equal(reflector.status().state, 'closed');
  });

  it('lists thousands of keys in pages of one revision, with few requests', async () => {
    const etcd = server.client();
    const total = 20_000;
    for (let i = 0; i < total; i += 100) {
      const success = Array.from({ length: 100 }, (_, k) => ({
        put: `many/${String(i + k).padStart(6, '0')}`,
        value: 'x'.repeat(100),
      }));
      await etcd.txn({ success });
    }
    const { sink, reflector, stop } = reflect(etcd, 'many/');
    await reflector.waitSynced();
    assert.equal(sink.rows.size, total);
    assert.equal(reflector.status().count, total);
    const lists = sink.batches.filter((batch) => batch.kind === 'list');
    assert.equal(new Set(lists.map((batch) => batch.revision)).size, 1);
    assert.ok(lists.length <= 10, `${lists.length} pages`);
    await stop();
    await etcd.deletePrefix('many/');
  });

  it('lists values far bigger than a page was thought to hold', async () => {
    const etcd = server.client();
    for (let i = 0; i < 300; i++) await etcd.put(`grow/a${String(i).padStart(3, '0')}`, 'x');
    const big = Buffer.alloc(1 << 20, 'y');
    for (let i = 0; i < 40; i++) await etcd.put(`grow/b${i}`, big);
    const rows = (await etcd.range('grow/')).kvs;
    assert.equal(rows.length, 340);
    assert.ok(rows.at(-1)!.value.equals(big));
    await etcd.deletePrefix('grow/');
  });

  it('lists only once the canary is there', async () => {
    const etcd = server.client();
    await etcd.put('gated/a', '1');
    const { sink, reflector, stop } = reflect(etcd, 'gated/', { canaryKey: 'synced/gated' });
    await eventually('waiting for the canary', () => reflector.status().state === 'waiting-for-canary');
    await etcd.put('gated/b', '2');
    assert.equal(sink.batches.length, 0);
    await etcd.put('synced/gated', 'now');
    await reflector.waitSynced();
    assert.deepEqual(sink.contents(), { 'gated/a': '1', 'gated/b': '2' });
    await stop();
  });

  it('ignores the deletion of the canary while it watches', async () => {
    const etcd = server.client();
    await etcd.put('synced/ignored', 'now');
    await etcd.put('ignored/a', '1');
    const { sink, reflector, stop } = reflect(etcd, 'ignored/', { canaryKey: 'synced/ignored' });
    await reflector.waitSynced();
    await etcd.delete('synced/ignored');
    await etcd.put('ignored/b', '2');
    await eventually('the row written after the deletion', () => sink.rows.has('ignored/b'));
    assert.equal(reflector.status().state, 'watching');
    assert.equal(sink.rows.size, 2);
    await stop();
  });

  it('applies deletes that happened while it was cut off, and nothing else is removed', async () => {
    const proxy = await server.proxy();
    const direct = server.client();
    const etcd = server.client({ endpoints: [proxy.endpoint] });
    for (const name of ['a', 'b', 'c']) await direct.put(`missed/${name}`, name);
    const { sink, reflector, stop } = reflect(etcd, 'missed/');
    await reflector.waitSynced();
    proxy.cut();
    await eventually('noticing the cut', () => !reflector.status().synced);
    assert.ok(reflector.status().everSynced);
    assert.equal(sink.rows.size, 3, 'rows are kept while they are stale');
    await direct.delete('missed/b');
    await direct.put('missed/c', 'changed');
    await direct.put('missed/d', 'd');
    proxy.heal();
    await eventually('the list after the cut', () => reflector.status().synced);
    assert.deepEqual(sink.contents(), { 'missed/a': 'a', 'missed/c': 'changed', 'missed/d': 'd' });
    assert.deepEqual(sink.removed, ['missed/b']);
    const again = sink.batches.filter((batch) => batch.upserts.some((row) => row.key === 'missed/a'));
    assert.equal(again.length, 1, 'an unchanged row is not applied again');
    await stop();
  });

  it('goes on from its last revision after a cut, and is synced when a list has shown the same', async () => {
    const proxy = await server.proxy();
    const direct = server.client();
    const etcd = server.client({ endpoints: [proxy.endpoint] });
    for (const name of ['a', 'b', 'c']) await direct.put(`resume/${name}`, name);
    await direct.put('synced/resume', 'then');
    const { sink, reflector, stop } = reflect(etcd, 'resume/', { canaryKey: 'synced/resume' });
    await reflector.waitSynced();
    for (let round = 1; round <= 3; round++) {
      proxy.cut();
      await eventually('noticing the cut', () => !reflector.status().synced);
      await direct.put('resume/a', `${round}`);
      await direct.delete('resume/b');
      const { revision } = await direct.put('resume/b', `${round}`);
      await direct.put('synced/resume', `${round}`);
      proxy.heal();
      await eventually('being synced again', () => reflector.status().synced);
      assert.equal(reflector.status().resumes, round);
      assert.ok(reflector.status().dataRevision >= revision);
      assert.deepEqual(sink.contents(), { 'resume/a': `${round}`, 'resume/b': `${round}`, 'resume/c': 'c' });
    }
    assert.equal(sink.batches.filter((batch) => batch.kind === 'list').length, 1, 'the rows came from the watch');
    assert.equal(sink.syncs.length, 4);
    await stop();
  });

  it('is synced after a resume only when its sink has taken what was missed, and not when a list has shown the same', async () => {
    const proxy = await server.proxy();
    const direct = server.client();
    const client = server.client({ endpoints: [proxy.endpoint] });
    let lists = 0;
    const counted: Etcd = Object.create(client, {
      pages: {
        value: async function* (...args: Parameters<Etcd['pages']>) {
          yield* client.pages(...args);
          lists++;
        },
      },
    });
    await direct.put('behind/a', '0');
    const sink = memorySink();
    let isSlow = false;
    let release = () => {};
    const slow: Sink = {
      ...sink,
      async apply(batch) {
        if (isSlow)
          await new Promise<void>((resolve) => {
            release = resolve;
          });
        sink.apply(batch);
      },
    };
    const { reflector, stop } = reflect(counted, 'behind/', { sink: slow });
    await reflector.waitSynced();
    proxy.cut();
    await eventually('noticing the cut', () => !reflector.status().synced);
    await direct.put('behind/a', '1');
    const { revision } = await direct.put('behind/b', '1');
    isSlow = true;
    proxy.heal();
    await eventually('a list that shows the same', () => lists === 2);
    // The list is over for whoever asked for it long before so many answers have come.
    for (let i = 0; i < 20; i++) await counted.get('behind/a');
    const { synced, dataRevision } = reflector.status();
    assert.deepEqual([synced, dataRevision < revision, sink.syncs.length], [false, true, 1]);
    isSlow = false;
    release();
    await eventually('being synced', () => reflector.status().synced);
    assert.deepEqual(sink.contents(), { 'behind/a': '1', 'behind/b': '1' });
    assert.deepEqual([reflector.status().resumes, sink.syncs.length], [1, 2]);
    await stop();
  });

  it('lists anew in an etcd that was rebuilt with the same cluster id and is further on than it ever was', async () => {
    await using rebuilt = await startEtcd({ sameClusterId: true });
    const proxy = await rebuilt.proxy();
    const direct = rebuilt.client();
    const etcd = rebuilt.client({ endpoints: [proxy.endpoint] });
    for (const name of ['a', 'b', 'c']) await direct.put(`same/${name}`, name);
    const { sink, reflector, stop } = reflect(etcd, 'same/');
    await reflector.waitSynced();
    const before = reflector.status();
    proxy.cut();
    await rebuilt.wipe();
    for (let i = 0; i < 20; i++) await direct.put('other', String(i));
    await direct.put('same/b', 'b');
    proxy.heal();
    await eventually('the list of the new etcd', () => reflector.status().synced);
    assert.equal(reflector.status().clusterId, before.clusterId);
    assert.ok(reflector.status().revision > before.revision);
    assert.deepEqual(sink.contents(), { 'same/b': 'b' });
    assert.equal(reflector.status().resumes, 0);
    await stop();
  });

  it('is not synced by a resume that lost something: the list that follows finds it', async () => {
    const proxy = await server.proxy();
    const direct = server.client();
    const real = server.client({ endpoints: [proxy.endpoint] });
    for (const name of ['a', 'b', 'c']) await direct.put(`lossy/${name}`, '1');
    let watches = 0;
    // A server that loses what happened while the watch was away.
    const lossy = new Proxy(real, {
      get: (target, name: keyof Etcd) =>
        name === 'watch'
          ? (request: Parameters<Etcd['watch']>[0]) =>
              target.watch(++watches === 2 ? { ...request, onEvents: () => {} } : request)
          : target[name],
    });
    const { sink, reflector, stop } = reflect(lossy, 'lossy/');
    await reflector.waitSynced();
    proxy.cut();
    await eventually('noticing the cut', () => !reflector.status().synced);
    await direct.delete('lossy/a');
    await direct.put('lossy/b', '2');
    proxy.heal();
    await eventually('verifying', () => reflector.status().state === 'verifying');
    await eventually('being synced again', () => reflector.status().synced);
    assert.deepEqual(sink.contents(), { 'lossy/b': '2', 'lossy/c': '1' });
    assert.equal(reflector.status().resumes, 0);
    await stop();
  });

  it('a revision that is sent in parts counts when its last part has come', async () => {
    const etcd = server.client();
    const long = 'k'.repeat(200);
    for (let i = 0; i < 12_000; i += 100) {
      const success = Array.from({ length: 100 }, (_, k) => ({ put: `parts/${long}${i + k}`, value: 'x' }));
      await etcd.txn({ success });
    }
    const { sink, reflector, stop } = reflect(etcd, 'parts/');
    await reflector.waitSynced();
    const early: number[] = [];
    const apply = sink.apply.bind(sink);
    sink.apply = (batch) => {
      apply(batch);
      if (sink.rows.size > 0) early.push(Math.max(batch.revision, reflector.status().dataRevision));
    };
    await etcd.deletePrefix('parts/');
    // Not the sink alone: a session that had to be resumed on the way claims nothing before a list has shown the same.
    await eventually('the end of it', () => sink.rows.size === 0 && reflector.status().synced);
    const last = sink.batches.at(-1)!;
    assert.ok(early.length > 0, 'etcd sends so much in parts');
    assert.ok(early.every((revision) => revision < last.revision));
    assert.equal(reflector.status().dataRevision, last.revision);
    await stop();
  });

  it('claims a revision that was cut off between its parts only when the resumed session is verified', async () => {
    const proxy = await server.proxy();
    const direct = server.client();
    const etcd = server.client({ endpoints: [proxy.endpoint] });
    const long = 'k'.repeat(200);
    for (let i = 0; i < 12_000; i += 100) {
      const success = Array.from({ length: 100 }, (_, k) => ({ put: `torn/${long}${i + k}`, value: 'x' }));
      await direct.txn({ success });
    }
    await direct.put('torn/z', 'the row that was changed last, and is deleted last: by it the session is resumed');
    // A list that the verification waits for until it may go on.
    let verifying: (() => void) | undefined;
    let isTorn = false;
    const held = new Proxy(etcd, {
      get: (target, name: keyof Etcd) =>
        name !== 'pages'
          ? target[name]
          : async function* (...args: Parameters<Etcd['pages']>) {
              if (isTorn) await new Promise<void>((resolve) => (verifying = resolve));
              yield* target.pages(...args);
            },
    });
    const { sink, reflector, stop } = reflect(held, 'torn/');
    await reflector.waitSynced();
    const before = reflector.status().dataRevision;
    const apply = sink.apply.bind(sink);
    sink.apply = (batch) => {
      apply(batch);
      if (isTorn || sink.rows.size === 0) return;
      isTorn = true;
      proxy.cut();
    };
    await direct.deletePrefix('torn/');
    await eventually('the cut between the parts', () => isTorn && !reflector.status().synced);
    assert.ok(sink.rows.size > 0 && sink.rows.size < 12_001, `${sink.rows.size} rows`);
    proxy.heal();
    await eventually('the rest', () => sink.rows.size === 0 && verifying !== undefined);
    assert.equal(reflector.status().state, 'verifying');
    assert.equal(reflector.status().dataRevision, before, 'what a resumed watch brings is not claimed yet');
    verifying!();
    await eventually('being synced again', () => reflector.status().synced);
    const status = reflector.status();
    assert.deepEqual([status.resumes, status.dataRevision > before], [1, true]);
    await stop();
  });

  it('stops at its limit of keys or bytes, says so, keeps what it has, and goes on when it fits again', async () => {
    const etcd = server.client();
    for (let i = 0; i < 20; i++) await etcd.put(`limit/${i}`, 'x'.repeat(100));
    for (const limits of [{ maxKeys: 30 }, { maxBytes: 30 * 109 }]) {
      const { sink, reflector, stop } = reflect(etcd, 'limit/', { limits: { ...limits, retryMs: 20 } });
      await reflector.waitSynced();
      for (let i = 20; i < 60; i++) await etcd.put(`limit/${i}`, 'x'.repeat(100));
      await eventually('the limit', () => reflector.status().state === 'over-limit');
      assert.match(reflector.status().lastError!, /reading limit\/: there are more than the \d+ (keys|bytes) allowed/);
      assert.equal(reflector.status().synced, false);
      const { size } = sink.rows;
      assert.ok(size >= 30 && size <= 60, `${size} rows`);
      assert.deepEqual(sink.removed, []);
      const fresh = reflect(etcd, 'limit/', { limits: { ...limits, retryMs: 20 } });
      await eventually('the limit in a first list', () => fresh.reflector.status().state === 'over-limit');
      await fresh.stop();
      for (let i = 20; i < 60; i++) await etcd.delete(`limit/${i}`);
      await eventually('all rows', () => reflector.status().synced && sink.rows.size === 20);
      assert.equal(
        reflector.status().bytes,
        [...sink.rows].reduce((sum, [key, value]) => sum + key.length + value.length, 0),
      );
      await stop();
    }
  });

  it('keeps the rows of a leased writer that falls silent, until it is heard and has written everything again', async () => {
    await using peer = await startEtcd();
    const etcd = peer.client();
    let heardAt: number | undefined = performance.now();
    const lease = await etcd.lease({ ttlSeconds: 600 });
    for (const name of ['a', 'b', 'c']) await etcd.put(`leased/${name}`, name, { lease: lease.id });
    await etcd.put('leased/unleased', 'u');
    await etcd.put('synced/leased', 'then', { lease: lease.id });
    const holdDeletes = { lastHeartbeatAt: () => heardAt, silentAfterMs: 1_000, settleMs: 600 };
    const options = { canaryKey: 'synced/leased', holdDeletes };
    const { sink, reflector, stop } = reflect(etcd, 'leased/', options);
    await reflector.waitSynced();
    await eventually('silence', () => performance.now() - heardAt! > 1_050);
    await peer.expire(lease.id);
    await etcd.delete('leased/unleased');
    await eventually('the delete of what had no lease', () => sink.removed.length === 1);
    assert.deepEqual(sink.contents(), { 'leased/a': 'a', 'leased/b': 'b', 'leased/c': 'c' });
    assert.equal(reflector.status().held, 3);

    // The canary has gone with the lease: a session that begins now waits, and removes nothing.
    etcd.reconnect('test');
    await eventually('waiting for the canary', () => reflector.status().state === 'waiting-for-canary');
    const beating = setInterval(() => {
      heardAt = performance.now();
    }, 10);
    await etcd.put('leased/b', 'again');
    await etcd.put('synced/leased', 'now');
    await eventually('the rows of the writer that is back', () => sink.rows.get('leased/b') === 'again');
    await eventually('the removal of the others', () => sink.rows.size === 1);
    assert.equal(reflector.status().held, 0);
    clearInterval(beating);
    await stop();
    await lease.close({ revoke: false });
  });

  it('a live writer that lost a lease is waited for: what it puts again was never removed', async () => {
    await using peer = await startEtcd();
    const etcd = peer.client();
    const lease = await etcd.lease({ ttlSeconds: 600 });
    const keys = Array.from({ length: 20 }, (_, i) => `burst/${i}`);
    for (const key of keys) await etcd.put(key, 'x', { lease: lease.id });
    let heardAt = performance.now();
    const beating = setInterval(() => {
      heardAt = performance.now();
    }, 10);
    const holdDeletes = { lastHeartbeatAt: () => heardAt, settleMs: 300 };
    const { sink, reflector, stop } = reflect(etcd, 'burst/', { holdDeletes });
    await reflector.waitSynced();
    await peer.expire(lease.id);
    await eventually('the rows being held', () => reflector.status().held === 20);
    for (const key of keys.slice(1)) await etcd.put(key, 'x');
    await eventually('what is really gone', () => sink.rows.size === 19);
    assert.deepEqual(sink.removed, ['burst/0']);
    await etcd.delete('burst/1');
    await eventually('an ordinary delete at once', () => sink.rows.size === 18);
    clearInterval(beating);
    await stop();
    await lease.close({ revoke: false });
  });

  it('lists again when its revision was compacted away while it was cut off', async () => {
    const proxy = await server.proxy();
    const direct = server.client();
    const etcd = server.client({ endpoints: [proxy.endpoint] });
    await direct.put('compact/a', '1');
    await direct.put('compact/b', '1');
    const { sink, reflector, stop } = reflect(etcd, 'compact/');
    await reflector.waitSynced();
    proxy.cut();
    await direct.delete('compact/a');
    const { revision } = await direct.put('compact/b', '2');
    await direct.compact(revision);
    proxy.heal();
    await eventually(
      'the list after the compaction',
      () => reflector.status().synced && sink.rows.get('compact/b') === '2',
    );
    assert.deepEqual(sink.contents(), { 'compact/b': '2' });
    await stop();
  });

  it('a watch from a compacted revision ends with that reason', async () => {
    const etcd = server.client();
    await etcd.put('gone/a', '1');
    const { revision } = await etcd.put('gone/a', '2');
    await etcd.compact(revision);
    const watch = etcd.watch({
      prefix: 'gone/',
      startRevision: 1,
      signal: new AbortController().signal,
      onEvents: () => {},
    });
    await assert.rejects(watch, { code: 'etcd-compacted' });
  });

  it('keeps all rows of an etcd that was rebuilt empty until its canary is back', async () => {
    await using rebuilt = await startEtcd();
    const etcd = rebuilt.client();
    await etcd.put('peer/a', '1');
    await etcd.put('peer/b', '2');
    await etcd.put('peer-synced', 'then');
    const { sink, reflector, stop } = reflect(etcd, 'peer/', { canaryKey: 'peer-synced' });
    await reflector.waitSynced();
    const before = reflector.status().clusterId;
    await rebuilt.wipe();
    await eventually('meeting the empty etcd', () => reflector.status().state === 'waiting-for-canary');
    await etcd.put('peer/b', '2');
    assert.deepEqual(sink.contents(), { 'peer/a': '1', 'peer/b': '2' });
    assert.deepEqual(sink.removed, []);
    await etcd.put('peer-synced', 'now');
    await eventually('the list of the new etcd', () => reflector.status().synced);
    assert.deepEqual(sink.contents(), { 'peer/b': '2' });
    assert.notEqual(reflector.status().clusterId, before);
    await stop();
  });

  it('never lists an etcd that took the place of the one that showed the canary', async () => {
    await using empty = await startEtcd();
    const proxy = await server.proxy();
    const etcd = server.client({ endpoints: [proxy.endpoint] });
    await server.client().put('swap/a', '1');
    await server.client().put('synced/swap', 'now');
    let swap = false;
    const swapped = new Proxy(etcd, {
      get: (target, name: keyof Etcd) =>
        name !== 'pages'
          ? target[name]
          : async function* (...args: Parameters<Etcd['pages']>) {
              if (swap) {
                swap = false;
                proxy.cut();
                proxy.target = { host: '127.0.0.1', port: empty.port };
                proxy.heal();
                await eventually('the loss', () => !etcd.connected);
              }
              yield* target.pages(...args);
            },
    });
    const { sink, reflector, stop } = reflect(swapped, 'swap/', { canaryKey: 'synced/swap' });
    await reflector.waitSynced();
    swap = true;
    etcd.reconnect('test');
    await eventually('meeting the empty etcd', () => reflector.status().state === 'waiting-for-canary');
    assert.deepEqual(sink.contents(), { 'swap/a': '1' });
    await stop();
  });

  it('notices a half-open connection by silence, and recovers', async () => {
    const proxy = await server.proxy();
    const etcd = server.client({ endpoints: [proxy.endpoint], progressIntervalMs: 100, requestTimeoutMs: 500 });
    const { sink, reflector, stop } = reflect(etcd, 'half/');
    await reflector.waitSynced();
    const atSync = reflector.status().lastProofOfLifeAt!;
    await eventually('a sign of life without any event', () => reflector.status().lastProofOfLifeAt! > atSync);
    proxy.blackhole();
    await eventually('noticing the silence', () => !reflector.status().synced);
    assert.match(reflector.status().lastError!, /no sign of life|nothing received/);
    await server.client().put('half/a', '1');
    proxy.heal();
    await eventually('what was written meanwhile', () => sink.rows.has('half/a'));
    await stop();
  });

  it('notices a paused etcd, and recovers when it goes on', async () => {
    await using paused = await startEtcd();
    const etcd = paused.client({ progressIntervalMs: 100, requestTimeoutMs: 500 });
    await etcd.put('pause/a', '1');
    const { sink, reflector, stop } = reflect(etcd, 'pause/');
    await reflector.waitSynced();
    paused.pause();
    await eventually('noticing the pause', () => !reflector.status().synced);
    assert.equal(sink.rows.size, 1);
    paused.resume();
    await eventually('going on', () => reflector.status().synced);
    await stop();
  });

  it('gathers changes by key while the sink is slow, and lists again when too many wait', async () => {
    const etcd = server.client();
    let release: (() => void) | undefined;
    let block = false;
    const inner = memorySink();
    const slow: Sink = {
      async apply(batch) {
        if (block && batch.kind === 'watch') await new Promise<void>((resolve) => (release = resolve));
        inner.apply(batch);
      },
    };
    const { reflector, stop } = reflect(etcd, 'slow/', { sink: slow, maxQueuedKeys: 50 });
    await reflector.waitSynced();
    block = true;
    await etcd.put('slow/first', '0');
    await eventually('the sink to be busy', () => release !== undefined);
    for (let i = 1; i <= 20; i++) await etcd.put('slow/same', String(i));
    block = false;
    release!();
    await eventually('the gathered change', () => inner.rows.get('slow/same') === '20');
    assert.ok(inner.batches.length < 10, 'twenty changes of one key are not twenty batches');
    assert.equal(reflector.status().reconnects, 0);

    block = true;
    release = undefined;
    await etcd.put('slow/first', '1');
    await eventually('the sink to be busy again', () => release !== undefined);
    for (let i = 0; i < 100; i++) await etcd.put(`slow/k${i}`, 'x');
    await eventually('giving up the session', () => !reflector.status().synced);
    block = false;
    release!();
    await eventually('the list', () => reflector.status().synced && inner.rows.size === 102);
    await stop();
  });

  it('a resync repairs what the watch lost, and says so', async () => {
    const real = server.client();
    for (const name of ['a', 'b', 'c']) await real.put(`audit/${name}`, '1');
    // A watch that swallows events, as broken servers have done.
    const deaf = new Proxy(real, {
      get: (target, name: keyof Etcd) =>
        name === 'watch'
          ? (request: Parameters<Etcd['watch']>[0]) => target.watch({ ...request, onEvents: () => {} })
          : target[name],
    });
    const { sink, reflector, stop } = reflect(deaf, 'audit/', { resyncIntervalMs: 50 });
    await reflector.waitSynced();
    await real.delete('audit/a');
    await real.put('audit/b', '2');
    await eventually('the repair', () => reflector.status().repairs === 2);
    assert.deepEqual(sink.contents(), { 'audit/b': '2', 'audit/c': '1' });
    await stop();
  });

  it('an error of the sink ends the session, and the row is applied by the next list', async () => {
    const etcd = server.client();
    const inner = memorySink();
    let fail = false;
    const sink: Sink = {
      apply(batch) {
        if (fail) throw new Error('the table is full');
        inner.apply(batch);
      },
    };
    const { reflector, stop } = reflect(etcd, 'broken/', { sink });
    await reflector.waitSynced();
    fail = true;
    await etcd.put('broken/a', '1');
    await eventually('the failure in the status', () => reflector.status().lastError === 'the table is full');
    fail = false;
    await eventually('the row', () => inner.rows.get('broken/a') === '1');
    await stop();
  });
});
