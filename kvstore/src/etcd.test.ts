import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { MeshError } from '@clustermesh/contract';
import { waitFor } from '@clustermesh/runtime';
import { Server, ServerCredentials, type ServerDuplexStream, status } from '@grpc/grpc-js';
import { openEtcd } from './etcd.ts';
import { rpc } from './proto.ts';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import type { Etcd, EtcdEvent, WatchEvent } from './types.ts';

const eventually = (what: string, condition: () => unknown) =>
  waitFor(condition, { what, timeoutMs: 60_000, intervalMs: 10 });

describe('etcd client', { timeout: 300_000 }, () => {
  let server: EtcdServer;
  let etcd: Etcd;
  before(async () => {
    server = await startEtcd();
    etcd = server.client();
  });
  after(() => server.close());

  it('puts, reads and deletes keys and prefixes', async () => {
    await etcd.put('crud/a', 'one');
    await etcd.put('crud/b', Buffer.from([0, 255]));
    assert.equal((await etcd.get('crud/a'))!.value.toString(), 'one');
    assert.deepEqual([...(await etcd.get('crud/b'))!.value], [0, 255]);
    assert.equal(await etcd.get('crud/c'), undefined);
    assert.equal(await etcd.delete('crud/a'), true);
    assert.equal(await etcd.delete('crud/a'), false);
    assert.equal(await etcd.count('crud/'), 1);
    assert.equal(await etcd.deletePrefix('crud/'), 1);
    assert.deepEqual((await etcd.range('crud/')).kvs, []);
  });

  it('runs the branch of a transaction that its compares choose', async () => {
    const { revision } = await etcd.put('txn/a', 'one');
    const yes = await etcd.txn({
      compare: [
        { key: 'txn/a', modRevision: revision },
        { key: 'txn/a', value: 'one' },
        { key: 'txn/b', absent: true },
      ],
      success: [{ put: 'txn/b', value: 'two' }, { get: 'txn/a' }],
    });
    assert.ok(yes.succeeded);
    assert.equal(yes.gets[0]!.value.toString(), 'one');
    for (const compare of [
      { key: 'txn/a', modRevision: revision + 1 },
      { key: 'txn/a', createRevision: revision + 1 },
      { key: 'txn/a', value: 'other' },
      { key: 'txn/a', absent: true as const },
    ]) {
      const no = await etcd.txn({ compare: [compare], success: [{ delete: 'txn/a' }], failure: [{ get: 'txn/b' }] });
      assert.equal(no.succeeded, false, JSON.stringify(compare));
      assert.equal(no.gets[0]!.value.toString(), 'two');
    }
    assert.ok(await etcd.get('txn/a'));
    await etcd.txn({ success: [{ deletePrefix: 'txn/' }] });
    assert.equal(await etcd.count('txn/'), 0);
  });

  it('two clients that race to allocate one label set end with one number', async () => {
    const clients = [server.client(), server.client()];
    for (let round = 0; round < 20; round++) {
      const results = await Promise.all(
        clients.map(async (client, who) => {
          const number = String(1000 * (who + 1) + round);
          const label = `ids/value/app=shop${round}`;
          const entries = new Map([
            [`ids/id/${number}`, `app=shop${round}`],
            [label, number],
          ]);
          const { created, existing } = await client.createOnly(entries);
          return created ? number : existing[1]!.value.toString();
        }),
      );
      assert.equal(results[0], results[1]);
    }
    assert.equal(await etcd.count('ids/id/'), 20);
  });

  it('a key is read beside the first page, as of one revision, whether it is there or not', async () => {
    const rows = Array.from({ length: 300 }, (_, i) => `beside/rows/${String(i).padStart(3, '0')}`);
    for (const chunk of [rows.slice(0, 100), rows.slice(100, 200), rows.slice(200)])
      await etcd.txn({ success: chunk.map((put) => ({ put, value: put })) });
    async function list(beside: string) {
      const pages = [];
      for await (const page of etcd.pages('beside/rows/', { beside })) pages.push(page);
      return pages;
    }
    const missing = await list('beside/canary');
    assert.deepEqual([missing.length, missing[0]!.beside], [2, undefined]);
    const { revision } = await etcd.put('beside/canary', 'synced');
    const pages = await list('beside/canary');
    assert.deepEqual(
      pages.flatMap(({ kvs }) => kvs.map(({ key, value }) => [key, value.toString()])),
      rows.map((row) => [row, row]),
    );
    assert.deepEqual([pages[0]!.beside?.modRevision, pages[0]!.beside?.value.toString()], [revision, 'synced']);
    assert.deepEqual(
      pages.map(({ header }) => [header.revision, header.clusterId]),
      pages.map(() => [revision, etcd.clusterId]),
    );
    const [empty] = await list('beside/none');
    assert.deepEqual([empty!.kvs.length, empty!.beside], [256, undefined]);
  });

  it('a watch delivers whole revisions in order, and only its prefix', async () => {
    const { revision } = await etcd.put('watch/start', '');
    const stop = new AbortController();
    const seen: WatchEvent[] = [];
    const other: WatchEvent[] = [];
    const watches = [
      etcd.watch({
        prefix: 'watch/a',
        startRevision: revision,
        signal: stop.signal,
        onEvents: (events) => seen.push(...events),
      }),
      etcd.watch({
        prefix: 'watch/a',
        exact: true,
        startRevision: revision,
        signal: stop.signal,
        onEvents: (events) => other.push(...events),
      }),
    ];
    for (let i = 0; i < 50; i++)
      await etcd.txn({
        success: [
          { put: `watch/a${i}`, value: 'x' },
          { put: `watch/b${i}`, value: 'x' },
        ],
      });
    await etcd.delete('watch/a7');
    await etcd.put('watch/a', 'exact');
    await eventually('all events', () => seen.length === 52 && other.length === 1);
    assert.ok(seen.every((event, i) => i === 0 || event.modRevision > seen[i - 1]!.modRevision));
    assert.deepEqual([seen.at(-2)!.type, seen.at(-2)!.key], ['delete', 'watch/a7']);
    stop.abort();
    await Promise.all(watches);
  });

  it('a watch that falls far behind gets big revisions in parts, none missing', async () => {
    const { revision } = await etcd.put('big/start', '');
    const value = Buffer.alloc(200 << 10, 'x');
    for (let i = 0; i < 60; i++) await etcd.put(`big/${i}`, value);
    const stop = new AbortController();
    let count = 0;
    const watch = etcd.watch({
      prefix: 'big/',
      startRevision: revision + 1,
      signal: stop.signal,
      onEvents: (events) => (count += events.length),
    });
    await eventually('12 MB of events', () => count === 60);
    stop.abort();
    await watch;
    await etcd.deletePrefix('big/');
  });

  it('says which etcd answers, and that another one does after a rebuild', async () => {
    await using own = await startEtcd();
    const client = own.client();
    const events: EtcdEvent[] = [];
    client.onEvent((event) => events.push(event));
    await client.put('a', '1');
    const first = client.clusterId;
    await own.restart();
    await client.put('a', '1');
    assert.equal(client.clusterId, first);
    assert.equal(client.epoch, 0);
    await own.wipe();
    await client.put('a', '1');
    assert.notEqual(client.clusterId, first);
    assert.equal(client.epoch, 1);
    assert.deepEqual(
      events.map((event) => (event.type === 'connected' ? event.clusterChanged : event.type)),
      [false, 'disconnected', false, 'disconnected', true],
    );
  });

  it('notices an etcd that was rebuilt with the same cluster id by its revision', async () => {
    await using own = await startEtcd({ extraArgs: ['--initial-cluster-token', 'always-the-same'] });
    const client = own.client();
    for (let i = 0; i < 5; i++) await client.put('a', String(i));
    const first = client.clusterId;
    await own.wipe();
    await client.get('a');
    assert.equal(client.clusterId, first);
    assert.equal(client.epoch, 1);
  });

  it('fails over to the next endpoint, and names all of them when none answers', async () => {
    const client = server.client({ endpoints: ['http://127.0.0.1:1', server.endpoint, 'http://127.0.0.1:2'] });
    await client.put('endpoint', 'x');
    const nowhere = server.client({ endpoints: ['http://127.0.0.1:1', 'http://127.0.0.1:2'] });
    await assert.rejects(nowhere.get('a'), (error: MeshError) => {
      assert.equal(error.code, 'etcd-unreachable');
      assert.ok(error.retryable);
      assert.match(error.message, /127\.0\.0\.1:1.*ECONNREFUSED/);
      assert.match(error.message, /127\.0\.0\.1:2.*ECONNREFUSED/);
      return true;
    });
  });

  it('a request into a black hole ends in bounded time, and ends the connection for all', async () => {
    const proxy = await server.proxy();
    const client = server.client({ endpoints: [proxy.endpoint], requestTimeoutMs: 300 });
    await client.put('hole', '1');
    const stop = new AbortController();
    const watch = client.watch({ prefix: 'hole', startRevision: 1, signal: stop.signal, onEvents: () => {} });
    const broken = assert.rejects(watch, { code: 'etcd-timeout', retryable: true });
    proxy.blackhole();
    const startedAt = performance.now();
    await assert.rejects(client.get('hole'), {
      code: 'etcd-timeout',
      message: /reading hole: no answer from .* within 300 ms/,
    });
    assert.ok(performance.now() - startedAt < 2000);
    await broken;
    proxy.heal();
    assert.equal((await client.get('hole'))!.value.toString(), '1');
  });

  it('a host that accepts and never speaks is given up within the connect time-out', async () => {
    const proxy = await server.proxy();
    proxy.blackhole();
    const client = server.client({ endpoints: [proxy.endpoint], connectTimeoutMs: 200, requestTimeoutMs: 200 });
    await assert.rejects(
      client.get('a'),
      (error: MeshError) => error.code === 'etcd-unreachable' || error.code === 'etcd-timeout',
    );
  });

  it('a cancelled request ends at once', async () => {
    server.pause();
    const stop = new AbortController();
    const request = etcd.get('a', { signal: stop.signal });
    setImmediate(() => stop.abort());
    await assert.rejects(request, { code: 'cancelled' });
    server.resume();
    await etcd.get('a');
  });

  it('a hundred lost connections leave no socket and no stream behind', async () => {
    const proxy = await server.proxy();
    const client = server.client({ endpoints: [proxy.endpoint], requestTimeoutMs: 100, connectTimeoutMs: 100 });
    const sockets = () => readdirSync('/proc/self/fd').length;
    const stop = new AbortController();
    // Such short limits pass now and then on a busy machine, cut or not: the next try counts.
    const answer = () => eventually('an answer', () => client.get('a').then(() => true));
    const lose = async (how: () => void) => {
      await answer();
      const watch = client.watch({ prefix: 'a', startRevision: 0, signal: stop.signal, onEvents: () => {} });
      const lost = assert.rejects(watch);
      await answer();
      how();
      await client.get('a').catch(() => {});
      proxy.heal();
      await lost;
    };
    await lose(() => proxy.cut());
    const before = sockets();
    for (let i = 0; i < 60; i++) await lose(() => client.reconnect('test'));
    for (let i = 0; i < 30; i++) await lose(() => proxy.cut());
    for (let i = 0; i < 10; i++) await lose(() => proxy.blackhole());
    await answer();
    await eventually('the proxy to have one connection', () => proxy.connections === 1);
    await eventually(`${before} open files again`, () => sockets() <= before + 2);
  });

  it('refuses too big a value with the reason, and goes on', async () => {
    await assert.rejects(etcd.put('big', Buffer.alloc(2 << 20)), { code: 'etcd-too-large', hint: /1\.5 MiB/ });
    await etcd.put('small', 'x');
  });

  it('a lease lives as long as it is kept, and is granted anew when it was lost', async () => {
    await using own = await startEtcd();
    const client = own.client();
    const regranted: string[] = [];
    const lease = await client.lease({ ttlSeconds: 5, onRegranted: (id) => regranted.push(id) });
    const before = lease.id;
    await client.put('leased', 'x', { lease: lease.id });
    const left = async () => {
      const response = await fetch(`${own.endpoint}/v3/lease/timetolive`, {
        method: 'POST',
        body: JSON.stringify({ ID: lease.id }),
      });
      return Number(((await response.json()) as { TTL?: string }).TTL ?? -1);
    };
    // Its time goes down by itself; only a keepalive can bring it up again.
    await eventually('its time to pass', async () => (await left()) <= 3);
    await eventually('a keepalive', async () => (await left()) >= 4);
    assert.ok(await client.get('leased'));
    await own.wipe();
    await eventually('another lease', () => regranted.length === 1);
    assert.equal(lease.id, regranted[0]);
    assert.notEqual(lease.id, before);
    await client.put('leased', 'x', { lease: lease.id });
    await lease.close();
    assert.equal(await client.get('leased'), undefined);
  });

  it('a keepalive whose stream etcd ends without an answer is made again', async () => {
    const fake = new Server();
    let keepalives = 0;
    const header = { cluster_id: '1', revision: '1' };
    fake.addService(
      { grant: rpc('Lease.LeaseGrant'), keepAlive: rpc('Lease.LeaseKeepAlive') },
      {
        grant: (_: unknown, answer: (error: null, response: object) => void) =>
          answer(null, { header, ID: '7', TTL: '60' }),
        keepAlive: (call: ServerDuplexStream<unknown, unknown>) => {
          keepalives++;
          call.on('data', () => call.end());
        },
      },
    );
    const port = await promisify(fake.bindAsync.bind(fake))('127.0.0.1:0', ServerCredentials.createInsecure());
    const client = server.client({ endpoints: [`http://127.0.0.1:${port}`] });
    const lease = await client.lease({ ttlSeconds: 60 });
    await eventually('another keepalive', () => keepalives > 1);
    await lease.close({ revoke: false });
    fake.forceShutdown();
  });

  it('asks for a leader on every watch, so that a cut-off member refuses it instead of staying silent', async () => {
    const fake = new Server();
    const asked = new Promise<unknown>((resolve) => {
      fake.addService(
        { watch: rpc('Watch.Watch') },
        {
          watch: (call: ServerDuplexStream<unknown, unknown>) => {
            resolve(call.metadata.get('hasleader'));
            call.emit('error', { code: status.UNAVAILABLE, details: 'etcdserver: no leader' });
          },
        },
      );
    });
    const bound = promisify(fake.bindAsync.bind(fake));
    const port = await bound('127.0.0.1:0', ServerCredentials.createInsecure());
    const client = server.client({ endpoints: [`http://127.0.0.1:${port}`] });
    const watch = client.watch({
      prefix: 'a',
      startRevision: 1,
      signal: AbortSignal.timeout(5000),
      onEvents: () => {},
    });
    await assert.rejects(watch, { code: 'etcd-unreachable', message: /no leader/, retryable: true });
    assert.deepEqual(await asked, ['true']);
    fake.forceShutdown();
  });

  it('tells the status of the server', async () => {
    const answer = await etcd.status();
    assert.match(answer.version, /^3\./);
    assert.equal(answer.clusterId, etcd.clusterId);
  });

  it('refuses endpoints that it cannot use, before connecting', () => {
    const log = {} as never;
    assert.throws(() => openEtcd({ endpoints: [], log }), { code: 'invalid-config' });
    assert.throws(() => openEtcd({ endpoints: ['127.0.0.1:2379'], log }), {
      code: 'invalid-config',
      message: /"127\.0\.0\.1:2379" is not of the form/,
    });
    assert.throws(() => openEtcd({ endpoints: ['https://a:1'], log }), { code: 'invalid-config', message: /caFile/ });
  });

  it('a closed client fails at once instead of hanging', async () => {
    const client = server.client();
    await client.get('a');
    await client.close();
    await assert.rejects(client.get('a'), MeshError);
  });
});
