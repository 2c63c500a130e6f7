import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { MeshError } from '@clustermesh/contract';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { type ElectionOptions, startElection } from './election.ts';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import type { Etcd } from './types.ts';
import { startWriter } from './writer.ts';

const eventually = (what: string, condition: () => unknown) =>
  waitFor(condition, { what, timeoutMs: 10_000, intervalMs: 10 });
const ended = new AbortController();

function candidate(etcd: Etcd, key: string, replica: string, options: Partial<ElectionOptions> = {}) {
  const stopping = new AbortController();
  const signal = AbortSignal.any([stopping.signal, ended.signal]);
  const election = startElection({ etcd, key, replica, ttlSeconds: 1, log: silentLog(), signal, ...options });
  return {
    election,
    stop: async () => {
      stopping.abort();
      await election.done;
    },
  };
}

describe('election', { timeout: 60_000 }, () => {
  let server: EtcdServer;
  let etcd: Etcd;
  after(() => ended.abort());
  before(async () => {
    server = await startEtcd();
    etcd = server.client();
  });
  after(() => server.close());

  it('one of three candidates leads, and the others know who', async () => {
    const all = ['a', 'b', 'c'].map((name) => candidate(etcd, 'election/three', name));
    await eventually('a leader that all know', () => all.every(({ election }) => election.holder !== undefined));
    const leaders = all.filter(({ election }) => election.isLeading());
    assert.equal(leaders.length, 1);
    assert.deepEqual(new Set(all.map(({ election }) => election.holder)), new Set([leaders[0]!.election.holder]));
    for (const { election } of all) assert.equal(election.fence() !== undefined, election.isLeading());
    for (const { stop } of all) await stop();
    assert.equal(await etcd.get('election/three'), undefined, 'the last one has resigned');
  });

  it('a leader that resigns is followed at once, without waiting for its lease', async () => {
    const first = candidate(etcd, 'election/resign', 'a', { ttlSeconds: 600 });
    await eventually('the first leader', () => first.election.isLeading());
    const second = candidate(etcd, 'election/resign', 'b', { ttlSeconds: 600 });
    await eventually('the follower', () => second.election.status().state === 'following');
    await first.election.resign();
    await eventually('the second leader', () => second.election.isLeading());
    await second.stop();
  });

  it('a follower that is stopped while its campaign is under way gives back what it may have won', async () => {
    const key = 'election/undecided';
    const first = candidate(etcd, key, 'a', { ttlSeconds: 600 });
    await eventually('the first leader', () => first.election.isLeading());
    // etcd has decided, but the answer that it is won does not arrive.
    const slow = new Proxy(etcd, {
      get: (target, name) =>
        name !== 'txn'
          ? Reflect.get(target, name)
          : async (...[txn, call]: Parameters<Etcd['txn']>) => {
              const result = await target.txn(txn, call);
              if (result.succeeded && call?.signal !== undefined)
                await once(call.signal, 'abort').then(() => Promise.reject(new Error('no answer')));
              return result;
            },
    });
    const second = candidate(slow, key, 'b', { ttlSeconds: 600 });
    await eventually('the follower', () => second.election.status().state === 'following');
    await first.stop();
    await eventually('the campaign to be decided', async () => (await etcd.get(key))?.value.includes('"b"'));
    assert.equal(second.election.status().state, 'following');
    await second.stop();
    assert.equal(await etcd.get(key), undefined);
  });

  it('a leader that died without resigning is followed when its lease ends', async () => {
    const client = server.client();
    const first = candidate(client, 'election/died', 'a');
    await eventually('the first leader', () => first.election.isLeading());
    const second = candidate(etcd, 'election/died', 'b');
    await client.close(); // Nothing it does reaches etcd any more.
    await eventually('the second leader', () => second.election.isLeading());
    await first.stop();
    assert.ok(second.election.isLeading(), 'the end of the first changes nothing');
    await second.stop();
  });

  it('a replica that was killed succeeds itself at once, under another fence', async () => {
    const client = server.client();
    const before = candidate(client, 'election/self', 'a', { ttlSeconds: 600 });
    await eventually('the first leader', () => before.election.isLeading());
    const fence = before.election.fence()!;
    await client.close();
    const reborn = candidate(etcd, 'election/self', 'a', { ttlSeconds: 600 });
    await eventually('the second term', () => reborn.election.isLeading());
    const { succeeded } = await etcd.txn({ compare: fence, success: [{ put: 'self/stale', value: 'x' }] });
    assert.equal(succeeded, false);
    await before.stop();
    await reborn.stop();
  });

  it('is campaigned for again after a wipe, and a fence of before holds no more, whatever the revisions', async () => {
    await using wiped = await startEtcd();
    const { election, stop } = candidate(wiped.client(), 'election/wipe', 'a', { ttlSeconds: 600 });
    await eventually('the leader', () => election.isLeading());
    const fence = election.fence()!;
    await wiped.wipe();
    await eventually('the second term', () => election.status().terms === 2);
    const { succeeded } = await wiped.client().txn({ compare: fence, success: [{ put: 'x', value: 'x' }] });
    assert.equal(succeeded, false);
    await stop();
  });

  it('is campaigned for soon after a wipe, however long the new etcd is not ready and whatever the lease', async () => {
    await using wiped = await startEtcd();
    let isReady = true;
    let refusals = 0;
    const fence = () => {
      if (isReady) return [];
      refusals++;
      throw new MeshError({ code: 'conflict', message: 'users and roles are not in place yet' });
    };
    const { election, stop } = candidate(wiped.client(), 'election/soon', 'a', { fence, ttlSeconds: 600 });
    await eventually('the leader', () => election.isLeading());
    isReady = false;
    await wiped.wipe();
    // More than what a new connection and a new lease ask for, and than a delay that doubles lets through.
    await eventually('many looks', () => refusals >= 15);
    isReady = true;
    await eventually('the second term', () => election.status().terms === 2);
    await stop();
  });

  it('waits for an etcd that is not ready for writers', async () => {
    const ready = [{ key: 'bootstrapped', value: '1' }];
    const { election, stop } = candidate(etcd, 'election/fenced', 'a', { fence: () => ready, ttlSeconds: 600 });
    await eventually('the reason', () => /not ready/.test(election.status().reason ?? ''));
    assert.equal(await etcd.get('election/fenced'), undefined);
    await etcd.put('bootstrapped', '1');
    await eventually('the leader', () => election.isLeading());
    await stop();
  });

  it('a writer that stands by writes nothing, and everything once it leads', async () => {
    const [a, b] = [candidate(etcd, 'election/w', 'a'), candidate(etcd, 'election/w', 'b')];
    await eventually('a leader', () => a.election.isLeading() || b.election.isLeading());
    await eventually('a follower', () => a.election.holder !== undefined && b.election.holder !== undefined);
    const [leader, follower] = a.election.isLeading() ? [a, b] : [b, a];
    const write = (value: string, leadership: typeof leader.election) => {
      const backoff = { minMs: 10, maxMs: 5_000 };
      const common = { etcd, owned: ['led/'], log: silentLog(), signal: ended.signal, auditIntervalMs: 0, backoff };
      const writer = startWriter({ ...common, leadership });
      for (let i = 0; i < 250; i++) writer.set(`led/${i}`, value);
      writer.ready('led/');
      return writer;
    };
    const standby = write('standby', follower.election);
    await write('leader', leader.election).flush();
    assert.match(standby.status().lastError!, /standing by, [ab] leads/);
    assert.ok((await etcd.range('led/')).kvs.every((kv) => kv.value.toString() === 'leader'));
    await leader.election.resign();
    await standby.flush();
    assert.ok((await etcd.range('led/')).kvs.every((kv) => kv.value.toString() === 'standby'));
    await follower.stop();
  });
});
