/** The faults of the reliability list that concern replication through etcd, each against a real one behind a proxy that fails. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { decodeRange } from './decode.ts';
import { startElection } from './election.ts';
import { openEtcd } from './etcd.ts';
import { startReflector } from './reflector.ts';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import { memorySink } from './testing/memory-sink.ts';
import { startReplica } from './testing/replica.ts';
import type { Etcd, Sink, SinkBatch } from './types.ts';
import { startWriter } from './writer.ts';

const eventually = (what: string, condition: () => unknown, timeoutMs = 20_000) =>
  waitFor(condition, { what, timeoutMs, intervalMs: 10 });
const ended = new AbortController();
const reflect = (etcd: Etcd, prefix: string, sink: Sink, options: object = {}) =>
  startReflector({
    ...{ etcd, prefix, sink, log: silentLog(), signal: ended.signal, backoff: { minMs: 10, maxMs: 100 } },
    ...options,
  });

function startWriterProcess(server: EtcdServer, ...args: string[]) {
  const file = fileURLToPath(new URL('testing/writer-process.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', 'tsx', file, server.endpoint, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const says: string[] = [];
  child.stdout.on('data', (data: Buffer) => says.push(...data.toString().trim().split('\n')));
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const end = async () => {
    child.kill('SIGKILL');
    await exited;
  };
  ended.signal.addEventListener('abort', () => void end());
  return { child, says, end };
}

/** Keys as bytes, which a client that takes strings cannot write. */
async function putRaw(server: EtcdServer, key: Buffer, value: Buffer): Promise<void> {
  const body = JSON.stringify({ key: key.toString('base64'), value: value.toString('base64') });
  const response = await fetch(`${server.endpoint}/v3/kv/put`, { method: 'POST', body });
  assert.ok(response.ok, await response.text());
}

async function maintenance(server: EtcdServer, what: string, request: object = {}): Promise<object> {
  const response = await fetch(`${server.endpoint}/v3/maintenance/${what}`, {
    method: 'POST',
    body: JSON.stringify(request),
  });
  assert.ok(response.ok);
  return (await response.json()) as object;
}

interface Write {
  readonly key: string;
  readonly value: string;
  readonly revision: number;
}

/** Of a history: after the key of the election was taken by one, nothing of another is written until that takes it. */
function assertOneWriterPerTerm(history: readonly Write[], electionKey: string): void {
  let leader: string | undefined;
  let terms = 0;
  const inOrder = [...history].sort((a, b) => a.revision - b.revision);
  for (const { key, value } of inOrder) {
    if (key === electionKey) {
      leader = value === '' ? undefined : (JSON.parse(value) as { replica: string }).replica;
      terms++;
    } else assert.equal(value.split(' ')[0], leader, `${key} = ${value} while ${leader ?? 'nobody'} leads`);
  }
  assert.ok(terms >= 2, `${terms} changes of the election`);
}

describe('faults', { timeout: 300_000 }, () => {
  let server: EtcdServer;
  let direct: Etcd;
  before(async () => {
    server = await startEtcd();
    direct = server.client();
  });
  after(() => ended.abort());
  after(() => server.close());

  /** Everything that is ever written under these prefixes, as etcd accepted it. */
  async function record(prefixes: readonly string[]): Promise<Write[]> {
    const history: Write[] = [];
    const { revision } = await direct.status();
    for (const prefix of prefixes) {
      await new Promise<void>((resolve, reject) => {
        const watch = server.client().watch({
          prefix,
          startRevision: revision + 1,
          signal: ended.signal,
          onCreated: () => resolve(),
          onEvents: (events) => {
            for (const { key, value, modRevision } of events)
              history.push({ key, value: value.toString(), revision: modRevision });
          },
        });
        watch.catch(reject);
      });
    }
    return history;
  }

  it('F05 300 ms round trips and 5 % loss: the sync completes, and nobody takes the link for dead', async () => {
    const client = { requestTimeoutMs: 10_000, connectTimeoutMs: 5_000, progressIntervalMs: 1_000 };
    await using pair = await startReplica(server, { prefix: 'f05/', client });
    for (const link of Object.values(pair.links)) link.slow({ delayMs: 150, loss: 0.05, stallMs: 300 });
    for (let i = 0; i < 1500; i++) pair.set(String(i), 'x'.repeat(200));
    await pair.converged(60_000);
    for (let i = 0; i < 1500; i += 3) pair.set(String(i), 'y');
    for (let i = 1; i < 1500; i += 3) pair.delete(String(i));
    await pair.converged(60_000);
    assert.equal(pair.reflector.status().reconnects, 0);
    assert.equal(pair.writer.status().compares, 1);
  });

  it('F06 compaction, while disconnected or while watching: missed deletes are applied, nothing is ever empty', async () => {
    await using pair = await startReplica(server, { prefix: 'f06/' });
    for (let i = 0; i < 300; i++) pair.set(String(i), 'x');
    await pair.converged();
    let fewest = pair.sink.rows.size;
    const apply = pair.sink.apply.bind(pair.sink);
    pair.sink.apply = (batch) => {
      apply(batch);
      fewest = Math.min(fewest, pair.sink.rows.size);
    };
    pair.links.reader.cut();
    for (let i = 0; i < 100; i++) pair.delete(String(i));
    await pair.writer.flush();
    await direct.compact((await direct.put('f06-other', 'x')).revision);
    pair.links.reader.heal();
    await pair.converged();
    assert.equal(pair.reflector.status().resumes, 0, 'there was nothing to go on from');
    const { reconnects } = pair.reflector.status();
    for (let round = 0; round < 5; round++) {
      for (let i = 100; i < 300; i++) pair.set(String(i), `${round}`);
      await pair.writer.flush();
      await direct.compact((await direct.status()).revision);
    }
    await pair.converged();
    assert.equal(pair.reflector.status().reconnects, reconnects, 'a watch that keeps up does not mind');
    assert.equal(fewest, 200);
  });

  it('F06 a watch that is behind when what it has to send is compacted away: listed again, nothing is missed', async () => {
    // A silence that is taken for a lost connection would be another fault.
    const client = { progressIntervalMs: 120_000, requestTimeoutMs: 120_000 };
    // etcd before 3.4.31 may forget to say that a watch was compacted (etcd#17529): then only a list tells.
    const reader = { resyncIntervalMs: 500 };
    await using pair = await startReplica(server, { prefix: 'f06-behind/', client, reader });
    for (let i = 0; i < 100; i++) pair.set(String(i), 'x');
    await pair.converged();
    pair.links.reader.hold();
    // More than sockets, and more revisions than etcd's own queue of a watch, hold.
    for (let round = 0; round < 10; round++)
      await Promise.all(
        Array.from({ length: 60 }, () => direct.put('f06-behind/ballast', Buffer.alloc(64 << 10, `${round}`))),
      );
    await direct.delete('f06-behind/ballast');
    for (let i = 0; i < 50; i++) pair.delete(String(i));
    await pair.writer.flush();
    await direct.compact((await direct.put('f06-other', 'x')).revision);
    pair.links.reader.heal();
    await pair.converged(60_000);
    const { reconnects, repairs, resumes } = pair.reflector.status();
    assert.ok(reconnects === 1 || repairs > 0, 'listed again, or found by a resync');
    assert.equal(resumes, 0);
    await direct.deletePrefix('f06-behind/');
  });

  for (const sameClusterId of [false, true]) {
    it(`F07 an etcd rebuilt empty (${sameClusterId ? 'the same' : 'another'} cluster id): no row goes before its writer is back`, async () => {
      await using rebuilt = await startEtcd({ sameClusterId });
      await using pair = await startReplica(rebuilt, { prefix: 'f07/' });
      for (let i = 0; i < 300; i++) pair.set(String(i), 'x');
      await pair.converged();
      pair.links.writer.cut();
      await rebuilt.wipe();
      await eventually('meeting the empty etcd', () => pair.reflector.status().state === 'waiting-for-canary');
      assert.equal(pair.sink.rows.size, 300);
      assert.equal(pair.reflector.status().synced, false);
      for (let i = 0; i < 150; i++) pair.delete(String(i));
      pair.links.writer.heal();
      await pair.converged();
      assert.equal(pair.reflector.status().resumes, 0, 'the cursor of before is void');
    });
  }

  it('F08 a restart in the middle of a first sync: a part is never taken for the whole', async () => {
    await using restarted = await startEtcd();
    const rate = { keysPerSecond: 5_000, bootstrapKeysPerSecond: 5_000 };
    await using pair = await startReplica(restarted, { prefix: 'f08/', writer: { rate } });
    const seen: number[] = [];
    pair.sink.synced = () => void seen.push(pair.sink.rows.size);
    for (let i = 0; i < 3000; i++) pair.set(String(i), 'x'.repeat(100));
    await eventually('a part of the keys', async () => (await restarted.client().count('f08/')) > 500);
    await restarted.restart();
    await eventually(
      'more of them',
      async () =>
        (await restarted
          .client()
          .count('f08/')
          .catch(() => 0)) > 1500,
    );
    await restarted.wipe();
    await pair.converged();
    pair.etcd.reconnect('test');
    await restarted.restart();
    await pair.converged();
    assert.ok(seen.length > 0 && seen.every((rows) => rows === 3000), `synced with ${seen.join(', ')} rows`);
  });

  it('F09 a leader that was stopped for longer than its lease, and goes on: nothing of it is accepted any more', async () => {
    const [prefix, key] = ['f09/', 'election/f09'];
    const history = await record([prefix, key]);
    const first = startWriterProcess(server, 'first', prefix, key);
    await eventually('the first leader', () => first.says.includes('leading'));
    const second = startWriterProcess(server, 'second', prefix, key);
    await eventually('the follower', () => second.says.includes('following'));
    await eventually('writes of the first', () => history.some((event) => event.value.startsWith('first')));
    first.child.kill('SIGSTOP');
    await eventually('the second leader', () => second.says.includes('leading'));
    await eventually('writes of the second', () => history.at(-1)!.value.startsWith('second'));
    const { length } = history;
    first.child.kill('SIGCONT');
    await eventually('the first to see it', () => first.says.at(-1) === 'following');
    await eventually('more writes', () => history.length > length + 200);
    await Promise.all([first.end(), second.end()]);
    assertOneWriterPerTerm(history, key);
  });

  it('F44 two writers of one cluster, cut off in turn: one writes at a time, and the fence decides', async () => {
    const [prefix, key] = ['f44/', 'election/f44'];
    const history = await record([prefix, key]);
    const stop = new AbortController();
    const common = { log: silentLog(), signal: AbortSignal.any([stop.signal, ended.signal]) };
    const sides = await Promise.all(
      ['a', 'b'].map(async (name) => {
        const link = await server.proxy();
        const client = { endpoints: [link.endpoint], requestTimeoutMs: 400, connectTimeoutMs: 300 };
        const etcd = server.client(client);
        const election = startElection({ ...common, etcd, key, replica: name, ttlSeconds: 1 });
        const backoff = { minMs: 10, maxMs: 50 };
        const writer = startWriter({
          ...common,
          etcd,
          owned: [prefix],
          leadership: election,
          backoff,
          auditIntervalMs: 0,
        });
        return { name, link, election, writer };
      }),
    );
    let count = 0;
    const writing = setInterval(() => {
      for (const { name, writer } of sides)
        for (let i = 0; i < 20; i++) writer.set(`${prefix}${i}`, `${name} ${count++}`);
    }, 3);
    common.signal.addEventListener('abort', () => clearInterval(writing));
    for (let round = 0; round < 3; round++) {
      await eventually('a leader that writes', () => {
        const leader = sides.find(({ election }) => election.isLeading());
        return leader !== undefined && history.at(-1)?.value.startsWith(`${leader.name} `);
      });
      const leader = sides.find(({ election }) => election.isLeading())!;
      const other = sides.find((side) => side !== leader)!;
      // Half open: it cannot tell, and goes on believing.
      leader.link.blackhole();
      await eventually('the other to lead', () => other.election.isLeading());
      await eventually('writes of the other', () => history.at(-1)!.value.startsWith(`${other.name} `));
      assert.ok(leader.election.isLeading(), 'belief is not what protects');
      leader.link.heal();
      await eventually('the first to follow', () => leader.election.status().state === 'following');
    }
    stop.abort();
    await Promise.all(sides.flatMap(({ election, writer }) => [election.done, writer.done]));
    assertOneWriterPerTerm(history, key);
  });

  for (const mode of ['leased', 'unleased'] as const) {
    for (const fate of ['dead', 'cut off from its etcd'] as const) {
      it(`F10 a writer that is ${fate} for longer than any lease (${mode}): readers lose nothing`, async () => {
        let heardAt: number | undefined;
        const heartbeatKey = `beat-${mode}-${fate}`;
        const prefix = `f10-${mode}-${fate}/`;
        const lease = { ttlSeconds: 1, maxKeysPerLease: 100 };
        const holdDeletes = { lastHeartbeatAt: () => heardAt, silentAfterMs: 1_000, settleMs: 500 };
        const options = { prefix, writer: mode === 'leased' ? { lease } : {}, reader: { holdDeletes } };
        await using pair = await startReplica(server, options);
        const stopBeating = new AbortController();
        const beats = startWriter({
          ...{ etcd: server.client({ endpoints: [pair.links.writer.endpoint] }), owned: [heartbeatKey] },
          ...{
            log: silentLog(),
            signal: AbortSignal.any([stopBeating.signal, ended.signal]),
            lease: { ttlSeconds: 1 },
          },
        });
        const beating = setInterval(() => beats.set(heartbeatKey, String(performance.now())), 50);
        ended.signal.addEventListener('abort', () => clearInterval(beating));
        const hearing = {
          apply({ upserts }: SinkBatch) {
            if (upserts.length > 0) heardAt = performance.now();
          },
        };
        reflect(server.client(), heartbeatKey, hearing);

        for (let i = 0; i < 250; i++) pair.set(String(i), 'x');
        await pair.converged();
        await eventually('the heartbeat', () => heardAt);
        if (fate === 'dead') {
          clearInterval(beating);
          stopBeating.abort();
          await Promise.all([pair.stopWriter(), beats.done]);
        } else pair.links.writer.blackhole();
        await eventually('the end of the heartbeat', async () => (await direct.get(heartbeatKey)) === undefined);
        if (mode === 'leased')
          await eventually('the end of the leases', async () => (await direct.count(prefix)) === 0);
        // However the reader looks at it: watching, listing again, cut off.
        pair.etcd.reconnect('test');
        await eventually('another session', () => pair.reflector.status().reconnects > 0);
        assert.equal(pair.sink.rows.size, 250);
        assert.deepEqual(pair.sink.removed, []);

        if (fate !== 'dead') {
          pair.links.writer.heal();
          pair.delete('0');
          await pair.converged();
          assert.equal(pair.reflector.status().held, 0);
        }
        clearInterval(beating);
        stopBeating.abort();
        await beats.done;
      });
    }
  }

  it('F10 a lease that ends although its writer is well: put again, and a reader that holds back never loses a row', async () => {
    const heard = { lastHeartbeatAt: () => performance.now(), settleMs: 200 };
    for (const holdDeletes of [undefined, heard]) {
      const prefix = `f10-${holdDeletes === undefined ? 'plain' : 'held'}/`;
      const lease = { ttlSeconds: 1, maxKeysPerLease: 100 };
      await using pair = await startReplica(server, { prefix, writer: { lease }, reader: { holdDeletes } });
      for (let i = 0; i < 250; i++) pair.set(String(i), 'x');
      await eventually('all rows', () => pair.sink.rows.size === 250);
      await server.expire((await direct.get(`${prefix}0`))!.lease);
      await eventually('the keys in etcd again', async () => (await direct.count(prefix)) === 250);
      if (holdDeletes !== undefined) await pair.converged();
      await eventually('all rows again', () => pair.sink.rows.size === 250);
      assert.equal(pair.sink.removed.length, holdDeletes === undefined ? 100 : 0);
    }
  });

  it('F11 a slow consumer and 100 000 events: what waits is bounded, then it is listed again', async () => {
    let waiting: (() => void) | undefined;
    const inner = memorySink();
    let isSlow = false;
    let largest = 0;
    const sink: Sink = {
      async apply(batch: SinkBatch) {
        largest = Math.max(largest, batch.kind === 'watch' ? batch.upserts.length : 0);
        if (isSlow && batch.kind === 'watch') await new Promise<void>((resolve) => (waiting = resolve));
        inner.apply(batch);
      },
    };
    const reflector = reflect(server.client(), 'f11/', sink, { maxQueuedKeys: 2_000 });
    await reflector.waitSynced();
    isSlow = true;
    const put = (i: number, value: string) =>
      direct.txn({ success: Array.from({ length: 100 }, (_, k) => ({ put: `f11/${(i + k) % 20_000}`, value })) });
    for (let i = 0; i < 100_000; i += 100) await put(i, `${i}`);
    await eventually('giving up on the session', () => !reflector.status().synced);
    assert.match(reflector.status().lastError!, /more than 2000 keys wait for a slow consumer/);
    isSlow = false;
    waiting?.();
    await eventually('all rows', () => reflector.status().synced && inner.rows.size === 20_000);
    assert.ok(largest <= 4_000, `a batch of ${largest}`);
    const { kvs } = await direct.range('f11/');
    assert.deepEqual(inner.contents(), Object.fromEntries(kvs.map((kv) => [kv.key, kv.value.toString()])));
    await direct.deletePrefix('f11/');
  });

  it('F12 a watch starved by big answers to another: its age shows it, and nothing is lost', async () => {
    const link = await server.proxy();
    const etcd = server.client({ endpoints: [link.endpoint], progressIntervalMs: 5_000, requestTimeoutMs: 20_000 });
    const [big, small] = [memorySink(), memorySink()];
    const [bigOne, smallOne] = [reflect(etcd, 'f12-big/', big), reflect(etcd, 'f12-small/', small)];
    await Promise.all([bigOne.waitSynced(), smallOne.waitSynced()]);
    link.slow({ bytesPerSecond: 2 << 20 });
    for (let i = 0; i < 6; i++) await direct.put(`f12-big/${i}`, Buffer.alloc(1 << 20, 'x'));
    await direct.put('f12-small/a', '1');
    let oldest = 0;
    await eventually('the small row behind the big ones', () => {
      oldest = Math.max(oldest, performance.now() - smallOne.status().lastProofOfLifeAt!);
      return small.rows.has('f12-small/a');
    });
    assert.ok(oldest > 1_000, `the delay shows: ${Math.round(oldest)} ms without a sign of life`);
    assert.equal(big.rows.size, 6);
    assert.equal(smallOne.status().reconnects, 0);
  });

  it('F13 duplicate, reordered and replayed events change nothing', async () => {
    const real = server.client();
    const echoing = new Proxy(real, {
      get: (target, name: keyof Etcd) =>
        name !== 'watch'
          ? target[name]
          : (request: Parameters<Etcd['watch']>[0]) => {
              const past: Parameters<typeof request.onEvents>[] = [];
              return target.watch({
                ...request,
                onEvents(...args) {
                  past.push(args);
                  request.onEvents(...args);
                  request.onEvents(...args);
                  for (const old of past.toReversed()) request.onEvents(...old);
                },
              });
            },
    });
    const sink = memorySink();
    const reflector = reflect(echoing, 'f13/', sink);
    await reflector.waitSynced();
    for (let i = 0; i < 40; i++) {
      if (i % 3 === 2) await direct.delete(`f13/${i % 5}`);
      else await direct.put(`f13/${i % 5}`, String(i));
    }
    await direct.put('f13/end', 'x');
    await eventually('the end', () => sink.rows.has('f13/end'));
    const { kvs } = await direct.range('f13/');
    assert.deepEqual(sink.contents(), Object.fromEntries(kvs.map((kv) => [kv.key, kv.value.toString()])));
    const upserts = sink.batches.flatMap((batch) => batch.upserts.map((row) => `${row.key}@${row.modRevision}`));
    assert.equal(new Set(upserts).size, upserts.length, 'nothing is applied twice');
  });

  it('F14 deleted and created again within one batch: the last word counts, and no lease slot leaks', async () => {
    const lease = { ttlSeconds: 600, maxKeysPerLease: 50 };
    await using pair = await startReplica(server, { prefix: 'f14/', writer: { lease } });
    for (let round = 0; round < 30; round++) {
      for (let i = 0; i < 50; i++) {
        pair.set(String(i), `${round}`);
        pair.delete(String(i));
        if ((i + round) % 2 === 0) pair.set(String(i), `${round} again`);
      }
      if (round % 10 === 5) pair.links.reader.cut();
      if (round % 10 === 8) pair.links.reader.heal();
      await pair.writer.flush();
    }
    await pair.converged();
    assert.ok(pair.writer.status().leases <= 2, `${pair.writer.status().leases} leases for 25 keys and a canary`);
  });

  it('F22 keys that are no UTF-8, with NUL, or huge: listed, paged and watched past, the rest intact', async () => {
    const nasty = [
      Buffer.from([0xff, 0xfe]),
      Buffer.from('a\0b'),
      Buffer.from('../../etc'),
      Buffer.from('𝄞'),
      Buffer.from([0xc3]),
    ];
    for (let i = 0; i < 300; i++) await direct.put(`f22/k${String(i).padStart(3, '0')}`, 'x');
    // The 256th key, behind which the second page begins, and a good one that its text (U+FFFD) would skip.
    await putRaw(server, Buffer.concat([Buffer.from('f22/k252'), Buffer.from([0xc3])]), Buffer.from('bad'));
    await direct.put('f22/k252é', 'x');
    for (const name of nasty) await putRaw(server, Buffer.concat([Buffer.from('f22/'), name]), Buffer.from([0xff, 0]));
    await putRaw(server, Buffer.from(`f22/${'long'.repeat(100_000)}`), Buffer.from('x'));
    const sink = memorySink();
    const reflector = reflect(server.client(), 'f22/', sink);
    await reflector.waitSynced();
    const good = () => [...sink.rows.keys()].filter((key) => /^f22\/k\d{3}$/.test(key)).length;
    assert.equal(good(), 300);
    assert.ok(sink.rows.has('f22/k252é'), 'listed behind a bad key');
    assert.ok(sink.rows.has('f22/a\0b') && sink.rows.has('f22/../../etc') && sink.rows.has('f22/𝄞'));
    await putRaw(server, Buffer.concat([Buffer.from('f22/'), Buffer.from([0xff, 1])]), Buffer.from('bad'));
    await direct.put('f22/k300', 'x');
    await eventually('a good row behind a bad one', () => good() === 301);
  });

  it('F23 a value that etcd cannot hold is refused with the reason, never cut, and holds up nothing', async () => {
    await using pair = await startReplica(server, { prefix: 'f23/' });
    for (let i = 0; i < 20; i++) pair.set(String(i), 'x'.repeat(1 << 20));
    await pair.converged();
    pair.writer.set('f23/huge', 'x'.repeat(1.6 * (1 << 20)));
    pair.set('small', 'x');
    const { failed } = await pair.writer.flush();
    assert.equal(failed, 1);
    const [refused] = pair.writer.status().errors;
    assert.equal(refused!.key, 'f23/huge');
    assert.match(refused!.reason, /too large/);
    await pair.converged();
    pair.writer.delete('f23/huge');
    await pair.converged();
    assert.deepEqual(pair.writer.status().errors, []);
    await direct.deletePrefix('f23/');
  });

  it('F24 a hostile server that sends what was not asked for: not handed on, and it cannot keep us listing for ever', async () => {
    const real = server.client();
    await direct.put('f24/mine', '1');
    const row = {
      key: 'f24x/yours',
      value: Buffer.from('x'),
      createRevision: 1,
      modRevision: 1,
      version: 1,
      lease: '0',
    };
    const hostile = new Proxy(real, {
      get: (target, name: keyof Etcd) => {
        if (name === 'pages')
          return async function* (...args: Parameters<Etcd['pages']>) {
            for await (const page of target.pages(...args)) yield { ...page, kvs: [row, ...page.kvs] };
          };
        if (name === 'watch')
          return (request: Parameters<Etcd['watch']>[0]) =>
            target.watch({
              ...request,
              onEvents: (events, header, complete) =>
                request.onEvents([{ ...events[0]!, key: 'f24x/other' }, ...events], header, complete),
            });
        return target[name];
      },
    });
    const sink = memorySink();
    const reflector = reflect(hostile, 'f24/', sink, { resyncIntervalMs: 30 });
    await reflector.waitSynced();
    await direct.put('f24/mine', '2');
    await eventually('the change', () => sink.rows.get('f24/mine') === '2');
    assert.deepEqual(sink.contents(), { 'f24/mine': '2' });
    assert.equal(reflector.status().repairs, 0);
  });

  it('F25 a hostile volume: taken in up to the quota, the reason is readable, what was applied stays', async () => {
    for (let i = 0; i < 100_000; i += 100)
      await direct.txn({ success: Array.from({ length: 100 }, (_, k) => ({ put: `f25/${i + k}`, value: 'x' })) });
    const sink = memorySink();
    const limits = { maxKeys: 10_000, maxBytes: 10 << 20, retryMs: 50 };
    const reflector = reflect(server.client(), 'f25/', sink, { limits });
    await eventually('the quota', () => reflector.status().state === 'over-limit');
    assert.match(reflector.status().lastError!, /more than the 10000 keys allowed; what was applied stays/);
    const { reconnects } = reflector.status();
    await eventually('several looks at it', () => reflector.status().reconnects > reconnects + 3);
    assert.ok(sink.rows.size > 0 && sink.rows.size <= 10_000, `${sink.rows.size} rows`);
    assert.equal(sink.batches.flatMap((batch) => batch.upserts).length, sink.rows.size, 'nothing is taken in twice');
    assert.deepEqual(sink.removed, []);
    await direct.deletePrefix('f25/');
    await eventually('being within the quota', () => reflector.status().synced && sink.rows.size === 0);
  });

  it('F31 etcd without space: readers go on, the writer says why, deletes still go through, and all resumes', async () => {
    await using full = await startEtcd({ extraArgs: ['--quota-backend-bytes', String(4 << 20)] });
    await using pair = await startReplica(full, { prefix: 'f31/' });
    for (let i = 0; i < 50; i++) pair.set(String(i), 'x');
    await pair.converged();
    const admin = full.client();
    const fill = async () => {
      for (let i = 0; ; i++) await admin.put(`ballast/${i}`, Buffer.alloc(256 << 10, 'x'));
    };
    await assert.rejects(fill(), { code: 'exhausted', hint: /space quota is used up/ });
    for (let i = 50; i < 60; i++) pair.set(String(i), 'x');
    pair.delete('0');
    await eventually('the reason', () => /database space exceeded/.test(pair.writer.status().lastError ?? ''));
    await eventually('the delete at the reader', () => !pair.sink.rows.has('f31/0'));
    assert.equal(pair.reflector.status().synced, true);
    assert.equal(pair.sink.rows.size, 49);
    assert.ok(pair.writer.status().pending >= 10);

    await admin.deletePrefix('ballast/');
    await admin.compact((await admin.status()).revision);
    await maintenance(full, 'defragment');
    const { alarms } = (await maintenance(full, 'alarm', { action: 'GET' })) as { alarms: object[] };
    for (const alarm of alarms) await maintenance(full, 'alarm', { ...alarm, action: 'DEACTIVATE' });
    await pair.converged();

    await full.stop();
    await eventually('noticing that etcd is lost', () => !pair.reflector.status().synced);
    assert.equal(pair.sink.rows.size, 59);
    pair.set('60', 'x');
    await full.start();
    await pair.converged();
  });

  it('F33 another version: fields that are not known are passed over in messages, and kept in values', async () => {
    const value = Buffer.from('{"name":"n","fromTheFuture":{"a":[1,2]}}');
    await direct.put('f33/a', value);
    const sink = memorySink();
    await reflect(server.client(), 'f33/', sink).waitSynced();
    assert.equal(sink.rows.get('f33/a'), value.toString());
    // Fields 99 (varint), 100 (bytes), 101 (fixed 64) and 102 (fixed 32) of no etcd of today, around a row.
    const unknown = Buffer.from([0x98, 6, 5, 0xa2, 6, 2, 1, 2, 0xa9, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0xb5, 6, 0, 0, 0, 0]);
    const kv = Buffer.concat([unknown, Buffer.from([10, 1, 0x61, 24, 7]), unknown]);
    const { kvs } = decodeRange(Buffer.concat([unknown, Buffer.from([18, kv.length]), kv, unknown]));
    assert.deepEqual(
      kvs.map(({ key, modRevision }) => [key, modRevision]),
      [['a', 7]],
    );
  });

  it('F34 some peers cannot be reached at the start: the others are served, and the status says which wait and why', async () => {
    const hole = await server.proxy();
    hole.blackhole();
    await direct.put('f34/a', '1');
    const client = (endpoint: string) => {
      const etcd = openEtcd({ endpoints: [endpoint], log: silentLog(), connectTimeoutMs: 300, requestTimeoutMs: 300 });
      ended.signal.addEventListener('abort', () => void etcd.close());
      return etcd;
    };
    const [refused, silent, well] = ['http://127.0.0.1:1', hole.endpoint, server.endpoint].map((endpoint) =>
      reflect(client(endpoint), 'f34/', memorySink()),
    );
    await well!.waitSynced();
    await eventually('two reasons', () => refused!.status().lastError && silent!.status().lastError);
    assert.match(refused!.status().lastError!, /connecting to etcd at http:\/\/127\.0\.0\.1:1: .*ECONNREFUSED/);
    assert.match(silent!.status().lastError!, /no answer|nothing received/);
    assert.equal(well!.status().synced, true);
    assert.equal(silent!.status().everSynced, false);
    hole.heal();
    await eventually('the one that is back', () => silent!.status().synced);
  });
});
