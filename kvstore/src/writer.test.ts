import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Clock, createLog, silentLog, systemClock, waitFor } from '@clustermesh/runtime';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import type { Etcd } from './types.ts';
import { startWriter } from './writer.ts';
import type { Writer, WriterOptions } from './writer-types.ts';

const log = process.env.CM_LOG_LEVEL === undefined ? silentLog() : createLog('test');
const eventually = (what: string, condition: () => unknown) =>
  waitFor(condition, { what, timeoutMs: 10_000, intervalMs: 10 });

async function contents(etcd: Etcd, prefix: string): Promise<Record<string, string>> {
  return Object.fromEntries((await etcd.range(prefix)).kvs.map((kv) => [kv.key, kv.value.toString()]));
}

interface Started {
  readonly writer: Writer;
  stop(): Promise<void>;
}

/** Also ends what a failed test left running. */
const ended = new AbortController();

/** Runs `before` before every transaction. */
function beforeTransactions(etcd: Etcd, before: () => Promise<void> | void): Etcd {
  return new Proxy(etcd, {
    get: (target, name: keyof Etcd) =>
      name !== 'txn'
        ? target[name]
        : async (...args: Parameters<Etcd['txn']>) => {
            await before();
            return target.txn(...args);
          },
  });
}

function write(etcd: Etcd, owned: string[], options: Partial<WriterOptions> = {}): Started {
  const stopping = new AbortController();
  const backoff = { minMs: 10, maxMs: 100 };
  const writer = startWriter({
    etcd,
    owned,
    log,
    signal: AbortSignal.any([stopping.signal, ended.signal]),
    auditIntervalMs: 0,
    backoff,
    ...options,
  });
  return {
    writer,
    stop: async () => {
      stopping.abort();
      await writer.done;
    },
  };
}

describe('writer', { timeout: 60_000 }, () => {
  let server: EtcdServer;
  after(() => ended.abort());
  let etcd: Etcd;
  before(async () => {
    server = await startEtcd();
    etcd = server.client();
  });
  after(() => server.close());

  it('a flush resolves when everything set before it is in etcd', async () => {
    const { writer, stop } = write(etcd, ['flush/']);
    for (let i = 0; i < 1000; i++) writer.set(`flush/${i}`, `v${i}`);
    const { revision, failed } = await writer.flush();
    assert.equal(await etcd.count('flush/'), 1000);
    assert.equal(failed, 0);
    const newest = Math.max(...(await etcd.range('flush/')).kvs.map((kv) => kv.modRevision));
    assert.equal(revision, newest);
    assert.equal(writer.status().lastRevision.get('flush/'), newest);
    assert.equal(writer.status().pending, 0);
    await stop();
  });

  it('writes a key that changes often far less often, and an identical value never', async () => {
    const { writer, stop } = write(etcd, ['often/']);
    await writer.flush();
    for (let i = 0; i <= 500; i++) writer.set('often/a', String(i));
    await writer.flush();
    const { version, value } = (await etcd.get('often/a'))!;
    assert.equal(value.toString(), '500');
    assert.ok(version <= 2, `written ${version} times`);
    const before = (await etcd.get('often/a'))!.modRevision;
    writer.set('often/a', Buffer.from('500'));
    await writer.flush();
    assert.equal((await etcd.get('often/a'))!.modRevision, before);
    await stop();
  });

  it('does not write what an earlier process had written already', async () => {
    const first = write(etcd, ['again/']);
    first.writer.set('again/a', '1');
    first.writer.set('again/b', '1');
    await first.writer.flush();
    await first.stop();
    const second = write(etcd, ['again/']);
    second.writer.set('again/a', '1');
    second.writer.set('again/b', '2');
    await second.writer.flush();
    assert.equal(second.writer.status().written, 1);
    assert.equal((await etcd.get('again/a'))!.version, 1);
    await second.stop();
  });

  it('removes leftovers of an earlier process, but only once the desired set is declared complete', async () => {
    await etcd.put('left/over', 'old');
    await etcd.put('left/kept', 'old');
    await etcd.put('leftother/x', 'not under the prefix');
    const { writer, stop } = write(etcd, ['left/']);
    writer.set('left/kept', 'new');
    await writer.flush();
    assert.deepEqual(await contents(etcd, 'left/'), { 'left/kept': 'new', 'left/over': 'old' });
    writer.ready('left/');
    await writer.flush();
    assert.deepEqual(await contents(etcd, 'left/'), { 'left/kept': 'new' });
    assert.equal(await etcd.count('leftother/'), 1);
    await stop();
  });

  it('refuses to declare complete what it does not own', async () => {
    const { writer, stop } = write(etcd, ['mine/']);
    assert.throws(() => writer.ready('yours/'), { code: 'invalid-argument', message: /owns only mine\// });
    await stop();
  });

  it('replaces a prefix whole', async () => {
    const { writer, stop } = write(etcd, ['whole/']);
    writer.replace(
      'whole/x/',
      new Map([
        ['whole/x/a', '1'],
        ['whole/x/b', '1'],
      ]),
    );
    writer.set('whole/y', '1');
    await writer.flush();
    writer.replace('whole/x/', new Map([['whole/x/b', '2']]));
    await writer.flush();
    assert.deepEqual(await contents(etcd, 'whole/'), { 'whole/x/b': '2', 'whole/y': '1' });
    await stop();
  });

  it('deletes keys, also those that are outside of its prefixes and were written by an earlier process', async () => {
    await etcd.put('outside/a', 'old');
    const { writer, stop } = write(etcd, ['inside/']);
    writer.set('inside/a', '1');
    writer.delete('outside/a');
    await writer.flush();
    writer.delete('inside/a');
    writer.delete('inside/never-there');
    await writer.flush();
    assert.deepEqual(await contents(etcd, 'inside/'), {});
    assert.equal(await etcd.get('outside/a'), undefined);
    await stop();
  });

  it('the canary appears only after everything that was pending', async () => {
    const { writer, stop } = write(etcd, ['data/']);
    for (let i = 0; i < 2000; i++) writer.set(`data/${i}`, 'x');
    writer.canary('canary/data', () => 'now');
    for (let i = 2000; i < 2100; i++) writer.set(`data/${i}`, 'x');
    await eventually('the canary', () => etcd.get('canary/data'));
    const canary = (await etcd.get('canary/data'))!;
    const first = (await etcd.range('data/')).kvs.filter((kv) => kv.modRevision < canary.modRevision);
    assert.ok(first.length >= 2000, `${first.length} keys before the canary`);
    await stop();
  });

  it('a canary asked for in the middle of a pass waits for what was set before it', async () => {
    let transactions = 0;
    const busy = beforeTransactions(etcd, () => {
      if (++transactions !== 2) return;
      for (let i = 0; i < 50; i++) writer.set(`mid/late${i}`, 'x');
      writer.canary('canary/mid', () => 'now');
    });
    const { writer, stop } = write(busy, ['mid/']);
    for (let i = 0; i < 500; i++) writer.set(`mid/${i}`, 'x');
    await eventually('the canary', () => etcd.get('canary/mid'));
    const canary = (await etcd.get('canary/mid'))!;
    const earlier = (await etcd.range('mid/')).kvs.filter((kv) => kv.modRevision < canary.modRevision);
    assert.equal(earlier.length, 550);
    await stop();
  });

  it('names what is pending: what is on its way, what waits, and canaries', async () => {
    let pending: string[] = [];
    const busy = beforeTransactions(etcd, () => {
      if (pending.length > 0) return;
      writer.set('named/late', 'x');
      pending = [...writer.pendingKeys()].sort();
      assert.equal(writer.status().pending, pending.length);
    });
    const { writer, stop } = write(busy, ['named/']);
    writer.set('named/a', 'x');
    writer.canary('canary/named', () => 'now');
    await writer.flush();
    await writer.flush();
    assert.deepEqual(pending, ['canary/named', 'named/a', 'named/late']);
    assert.deepEqual([...writer.pendingKeys()], []);
    await stop();
  });

  it('writes the difference only to the etcd that it compared', async () => {
    await using empty = await startEtcd();
    const proxy = await server.proxy();
    const client = server.client({ endpoints: [proxy.endpoint] });
    await etcd.put('pinned/there', '1');
    let swapped = false;
    const swapping = beforeTransactions(client, async () => {
      if (swapped) return;
      swapped = true;
      proxy.cut();
      proxy.target = { host: '127.0.0.1', port: empty.port };
      proxy.heal();
      await eventually('the loss', () => !client.connected);
    });
    const { writer, stop } = write(swapping, ['pinned/']);
    writer.set('pinned/there', '1');
    writer.set('pinned/missing', '1');
    writer.canary('canary/pinned', () => 'now');
    const there = empty.client();
    await eventually('the canary', () => there.get('canary/pinned'));
    const canary = (await there.get('canary/pinned'))!;
    const earlier = (await there.range('pinned/')).kvs.filter((kv) => kv.modRevision < canary.createRevision);
    assert.equal(earlier.length, 2);
    await stop();
  });

  it('writes everything again after a wipe, and the canary last', async () => {
    await using wiped = await startEtcd();
    const client = wiped.client();
    const { writer, stop } = write(client, ['w/']);
    for (let i = 0; i < 300; i++) writer.set(`w/${i}`, 'x');
    let written = 0;
    writer.canary('canary/w', () => String(++written));
    await writer.flush();
    await wiped.wipe();
    await eventually('the canary in the new etcd', () => client.get('canary/w'));
    const { kvs } = await client.range('w/');
    assert.equal(kvs.length, 300);
    const canary = (await client.get('canary/w'))!;
    assert.ok(kvs.every((kv) => kv.modRevision < canary.modRevision));
    assert.ok(written >= 2);
    assert.equal(writer.status().lastRevision.get('w/'), Math.max(...kvs.map((kv) => kv.modRevision)));
    await stop();
  });

  it('never puts its canary into an empty etcd, wherever the replacement strikes', async () => {
    await using flaky = await startEtcd();
    const proxy = await flaky.proxy();
    const direct = flaky.client();
    const client = flaky.client({ endpoints: [proxy.endpoint] });
    const { writer, stop } = write(client, ['full/']);
    for (let i = 0; i < 500; i++) writer.set(`full/${i}`, 'x');
    writer.canary('canary/full', () => 'now');
    await writer.flush();
    for (let round = 0; round < 3; round++) {
      proxy.cut();
      await flaky.wipe();
      proxy.heal();
      await eventually('the canary', () => direct.get('canary/full'));
      const revision = (await direct.get('canary/full'))!.createRevision;
      const before = (await direct.range('full/')).kvs.filter((kv) => kv.createRevision < revision);
      assert.equal(before.length, 500);
    }
    await stop();
  });

  it('repairs what somebody else changed, deleted or added, at the next audit', async () => {
    const { writer, stop } = write(etcd, ['repair/'], { auditIntervalMs: 50 });
    writer.set('repair/changed', 'right');
    writer.set('repair/deleted', 'right');
    writer.ready('repair/');
    await writer.flush();
    await etcd.put('repair/changed', 'wrong');
    await etcd.delete('repair/deleted');
    await etcd.put('repair/added', 'wrong');
    await eventually('three repairs', () => writer.status().repairs >= 3);
    await writer.flush();
    assert.deepEqual(await contents(etcd, 'repair/'), { 'repair/changed': 'right', 'repair/deleted': 'right' });
    await stop();
  });

  it('writes while an audit lists, and takes nothing for foreign that it wrote meanwhile', async () => {
    let open = () => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    let lists = 0;
    // The second list (the audit) is read, then held.
    const slow = new Proxy(etcd, {
      get: (target, name: keyof Etcd) =>
        name !== 'pages'
          ? target[name]
          : async function* (...args: Parameters<Etcd['pages']>) {
              const isAudit = ++lists === 2;
              for await (const page of target.pages(...args)) {
                if (isAudit) await opened;
                yield page;
              }
            },
    });
    const { writer, stop } = write(slow, ['beside/'], { auditIntervalMs: 50 });
    for (const key of ['changed', 'deleted', 'untouched']) writer.set(`beside/${key}`, 'old');
    writer.ready('beside/');
    await writer.flush();
    await etcd.put('beside/untouched', 'wrong');
    await eventually('an audit', () => lists === 2);
    writer.set('beside/changed', 'new');
    writer.delete('beside/deleted');
    writer.set('beside/added', 'new');
    await writer.flush();
    const wanted = { 'beside/added': 'new', 'beside/changed': 'new' };
    assert.deepEqual(await contents(etcd, 'beside/'), { ...wanted, 'beside/untouched': 'wrong' });
    open();
    await eventually('the repair', async () => (await etcd.get('beside/untouched'))?.value.toString() === 'old');
    await writer.flush();
    assert.deepEqual(await contents(etcd, 'beside/'), { ...wanted, 'beside/untouched': 'old' });
    assert.equal(writer.status().repairs, 1);
    await stop();
  });

  it('one value that etcd refuses does not hold up the others, and the status names it', async () => {
    const { writer, stop } = write(etcd, ['poison/']);
    for (let i = 0; i < 50; i++) writer.set(`poison/a${i}`, 'x');
    writer.set('poison/huge', Buffer.alloc(2 << 20, 'x'));
    writer.set('poison/monstrous', Buffer.alloc(5 << 20, 'x'));
    for (let i = 0; i < 50; i++) writer.set(`poison/b${i}`, 'x');
    const { failed } = await writer.flush();
    assert.equal(failed, 2);
    assert.equal(await etcd.count('poison/'), 100);
    const { errors } = writer.status();
    assert.deepEqual(errors.map((error) => [error.key, error.code]).sort(), [
      ['poison/huge', 'etcd-too-large'],
      ['poison/monstrous', 'etcd-too-large'],
    ]);
    writer.set('poison/huge', 'small');
    await writer.flush();
    assert.equal((await etcd.get('poison/huge'))!.value.toString(), 'small');
    assert.equal(writer.status().errors.length, 1);
    await stop();
  });

  it('a lost connection in the middle loses nothing', async () => {
    const proxy = await server.proxy();
    const client = server.client({ endpoints: [proxy.endpoint], requestTimeoutMs: 500 });
    const { writer, stop } = write(client, ['storm/']);
    const expected: Record<string, string> = {};
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 200; i++) {
        const key = `storm/${(round * 37 + i) % 500}`;
        if ((round + i) % 5 === 0) {
          writer.delete(key);
          delete expected[key];
        } else {
          writer.set(key, `${round}`);
          expected[key] = `${round}`;
        }
      }
      await new Promise((resolve) => setImmediate(resolve));
      if (round % 4 === 1) proxy.cut();
      if (round % 4 === 3) proxy.heal();
    }
    proxy.heal();
    await writer.flush();
    assert.deepEqual(
      await contents(etcd, 'storm/'),
      Object.fromEntries(Object.entries(expected).sort(([a], [b]) => (a < b ? -1 : 1))),
    );
    await stop();
  });

  it('keys of a leased writer vanish after it is gone, and come back with it after a wipe', async () => {
    await using leased = await startEtcd();
    const client = leased.client();
    const { writer, stop } = write(client, ['alive/'], { lease: { ttlSeconds: 1 } });
    writer.set('alive/a', '1');
    await writer.flush();
    assert.notEqual((await client.get('alive/a'))!.lease, '0');
    await leased.wipe();
    await eventually('the key after the wipe', () => client.get('alive/a'));
    await stop();
    await eventually('the key to expire', async () => (await client.get('alive/a')) === undefined);
  });

  it('spreads its keys over as many leases as they need, and gives back those that are empty', async () => {
    const { writer, stop } = write(etcd, ['leases/'], { lease: { ttlSeconds: 600, maxKeysPerLease: 100 } });
    for (let i = 0; i < 1050; i++) writer.set(`leases/${i}`, 'x');
    await writer.flush();
    const perLease = new Map<string, number>();
    for (const kv of (await etcd.range('leases/')).kvs) perLease.set(kv.lease, (perLease.get(kv.lease) ?? 0) + 1);
    assert.equal(perLease.size, 11);
    assert.ok(!perLease.has('0') && [...perLease.values()].every((count) => count <= 100));
    assert.equal(writer.status().leases, 11);
    for (let i = 0; i < 1000; i++) writer.delete(`leases/${i}`);
    await writer.flush();
    assert.equal(await etcd.count('leases/'), 50);
    assert.equal(writer.status().leases, 1);
    for (let i = 0; i < 60; i++) writer.set(`leases/again${i}`, 'x');
    await writer.flush();
    assert.equal(writer.status().leases, 2, 'a slot that was given back is not counted twice');
    await stop();
  });

  it('puts the keys of a lost lease again, those of the others not, and the canary after them', async () => {
    let written = 0;
    const { writer, stop } = write(etcd, ['lost/'], { lease: { ttlSeconds: 1, maxKeysPerLease: 100 } });
    for (let i = 0; i < 250; i++) writer.set(`lost/${i}`, 'x');
    writer.canary('canary/lost', () => String(++written));
    await writer.flush();
    const { lease } = (await etcd.get('lost/0'))!;
    await server.expire(lease);
    await eventually('the keys of the lost lease', async () => (await etcd.count('lost/')) === 250);
    await eventually('the canary', () => written === 2);
    const { kvs } = await etcd.range('lost/');
    assert.equal(kvs.filter((kv) => kv.version === 1 && kv.lease !== lease).length, 250);
    const canary = (await etcd.get('canary/lost'))!;
    const again = kvs.filter((kv) => kv.createRevision > 0 && kv.modRevision < canary.modRevision);
    assert.equal(again.length, 250);
    assert.equal(writer.status().compares, 1, 'no compare was needed');
    await stop();
  });

  it('an unleased writer takes keys off the leases that an earlier, leased one left them on', async () => {
    const first = write(etcd, ['mode/'], { lease: { ttlSeconds: 600 } });
    first.writer.set('mode/a', '1');
    await first.writer.flush();
    await first.stop();
    const second = write(etcd, ['mode/']);
    second.writer.set('mode/a', '1');
    await second.writer.flush();
    assert.equal((await etcd.get('mode/a'))!.lease, '0');
    await second.stop();
  });

  it('a key that changes while its transaction waits for the rate is written as it is wanted then', async () => {
    let isChanged = false;
    let started: Writer | undefined;
    const clock: Clock = {
      ...systemClock,
      sleep(ms, signal) {
        // Batches of ten: the first is written, the second is made up and begins to wait.
        if (!isChanged && started?.status().written === 10) {
          isChanged = true;
          started.delete('late/12');
          started.set('late/13', 'new');
        }
        return systemClock.sleep(ms, signal);
      },
    };
    const rate = { keysPerSecond: 100, bootstrapKeysPerSecond: 100 };
    const { writer, stop } = write(etcd, ['late/'], { rate, clock });
    started = writer;
    for (let i = 0; i < 20; i++) writer.set(`late/${i}`, 'old');
    await writer.flush();
    assert.ok(isChanged);
    await writer.flush();
    const there = await contents(etcd, 'late/');
    assert.equal(there['late/12'], undefined);
    assert.equal(there['late/13'], 'new');
    assert.equal(Object.keys(there).length, 19);
    await stop();
  });

  it('keeps to its rate once everything has been written, and bootstraps faster', async () => {
    const rate = { keysPerSecond: 200 };
    const { writer, stop } = write(etcd, ['rate/'], { rate });
    // A mirror's writer has nothing to write before the peer has been listed: that is not its bootstrap.
    await writer.flush();
    for (let i = 0; i < 2000; i++) writer.set(`rate/${i}`, 'x');
    writer.ready('rate/');
    const since = performance.now();
    await writer.flush();
    const bootstrapMs = performance.now() - since;
    for (let i = 0; i < 200; i++) writer.set(`rate/${i}`, 'y');
    const again = performance.now();
    await writer.flush();
    const tookMs = performance.now() - again;
    assert.ok(tookMs >= 850, `200 keys at 200/s took ${tookMs} ms`);
    assert.ok(bootstrapMs < 5_000, `bootstrap took ${bootstrapMs} ms`);
    await stop();
  });

  it('what is set and declared complete while a pass is under way still goes out at the bootstrap rate', async () => {
    let isFirst = true;
    let started: Writer | undefined;
    const slow = beforeTransactions(etcd, () => {
      if (!isFirst || started === undefined) return;
      isFirst = false;
      for (let i = 0; i < 10; i++) started.set(`copy/rest-${i}`, 'x');
      started.ready('copy/');
    });
    const { writer, stop } = write(slow, ['copy/'], { rate: { keysPerSecond: 10 } });
    started = writer;
    writer.set('copy/first', 'x');
    await writer.flush();
    await writer.flush();
    const { kvs } = await etcd.range('copy/rest-');
    assert.equal(kvs.length, 10);
    assert.equal(
      new Set(kvs.map((kv) => kv.modRevision)).size,
      1,
      'in one transaction, not in those of the steady rate',
    );
    for (let i = 0; i < 3; i++) writer.set(`copy/rest-${i}`, 'y');
    await writer.flush();
    const after = (await etcd.range('copy/rest-')).kvs.filter((kv) => kv.value.toString() === 'y');
    assert.equal(new Set(after.map((kv) => kv.modRevision)).size, 3, 'what comes later keeps to the steady rate');
    await stop();
  });

  it('does not sit out its retry delay when the connection is back', async () => {
    await using away = await startEtcd();
    const client = away.client();
    await away.stop();
    const { writer, stop } = write(client, ['back/'], { backoff: { minMs: 60_000, maxMs: 60_000 } });
    writer.set('back/a', '1');
    await eventually('the failure', () => writer.status().lastError);
    await away.start();
    await client.get('anything'); // Another user of this client has got through.
    await eventually('the key', () => client.get('back/a'));
    await stop();
  });

  it('a writer whose fence does not hold writes nothing, and says so', async () => {
    await etcd.put('leader', 'other');
    const { writer, stop } = write(etcd, ['fenced/'], { fence: () => [{ key: 'leader', value: 'me' }] });
    writer.set('fenced/a', '1');
    await eventually('the refusal in the status', () =>
      /fence \(leader\) does not hold/.test(writer.status().lastError ?? ''),
    );
    assert.equal(await etcd.count('fenced/'), 0);
    await etcd.put('leader', 'me');
    await writer.flush();
    assert.equal(await etcd.count('fenced/'), 1);
    await stop();
  });

  it('starts while etcd is down, and catches up when it comes', async () => {
    await using late = await startEtcd();
    const client = late.client();
    await late.stop();
    const { writer, stop } = write(client, ['late/']);
    writer.set('late/a', '1');
    await eventually('the reason in the status', () => writer.status().lastError);
    assert.match(writer.status().lastError!, /connecting to etcd at http:\/\/127\.0\.0\.1:\d+: .*ECONNREFUSED/);
    assert.equal(writer.status().connected, false);
    await late.start();
    await writer.flush();
    assert.equal((await client.get('late/a'))!.value.toString(), '1');
    assert.equal(writer.status().connected, true);
    await stop();
  });

  it('a flush of a stopped writer rejects instead of hanging', async () => {
    const unreachable = server.client({ endpoints: ['http://127.0.0.1:1'] });
    const { writer, stop } = write(unreachable, ['never/']);
    const flushed = assert.rejects(writer.flush(), { code: 'cancelled' });
    await stop();
    await flushed;
  });
});
