import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { BOOTSTRAP_KEY, INVITES_PREFIX, type MeshError } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import type { InviteRefused } from '@clustermesh/pki';
import { type Clock, createLog, silentLog, systemClock } from '@clustermesh/runtime';
import { createGuard, JOIN_GUARD } from './guard.ts';
import { createInvites, type Invites } from './invites.ts';

const own = { cluster: 'eu', clusterId: 1, caPin: 'ab'.repeat(32) };
const request = { peer: 'us', requestDigest: 'cd'.repeat(32), source: '192.0.2.9' };

describe('invitations in etcd', () => {
  let server: EtcdServer;
  let etcd: Etcd;
  let wallMs: number;
  let nowMs: number;
  const clock: Clock = { ...systemClock, wallMs: () => wallMs, nowMs: () => nowMs };
  const invites = (overrides: Partial<Parameters<typeof createInvites>[0]> = {}): Invites =>
    createInvites({
      etcd,
      own: () => own,
      endpoints: ['192.0.2.1:9882'],
      fence: () => [{ key: BOOTSTRAP_KEY, value: '1' }],
      log: silentLog(),
      clock,
      ...overrides,
    });
  const refused = (reason: InviteRefused['reason']) => (error: InviteRefused) => error.reason === reason;

  before(async () => {
    server = await startEtcd();
    etcd = server.client();
  });
  after(() => server.close());
  beforeEach(async () => {
    wallMs = Date.parse('2030-01-01T00:00:00Z');
    nowMs = 0;
    await etcd.deletePrefix('clustermesh/');
    await etcd.put(BOOTSTRAP_KEY, '1');
  });

  it('are redeemed once among any number that try at once, at any replica', async () => {
    const { token } = await invites().create();
    const attempts = Array.from({ length: 8 }, (_, index) =>
      invites().redeem({ ...request, token: token.reveal(), peer: `peer-${index}` }),
    );
    const results = await Promise.allSettled(attempts);
    const lost = results.filter((result) => result.status === 'rejected');
    assert.equal(lost.length, 7);
    for (const { reason } of lost) assert.equal((reason as InviteRefused).reason, 'used');
  });

  it('answer the same request again until it is finished, and nobody after', async () => {
    const store = invites();
    const { token, facts } = await store.create();
    const redeem = () => store.redeem({ ...request, token: token.reveal() });
    assert.equal((await redeem()).isRepetition, false);
    assert.equal((await redeem()).isRepetition, true);
    await store.finish(facts.id);
    await store.finish(facts.id);
    await assert.rejects(redeem(), refused('replayed'));
    await assert.rejects(store.redeem({ ...request, peer: 'asia', token: token.reveal() }), refused('used'));
  });

  it('are refused expired, taken back, after a rotation of the CA, and after etcd was lost', async () => {
    const store = invites();
    const { token, facts } = await store.create();
    const redeem = (from = store) => from.redeem({ ...request, token: token.reveal() });
    await assert.rejects(redeem(invites({ own: () => ({ ...own, caPin: 'ef'.repeat(32) }) })), refused('wrong-ca'));
    wallMs += 15 * 60_000;
    await assert.rejects(redeem(), refused('expired'));
    wallMs -= 15 * 60_000;
    await store.revoke(facts.id);
    await assert.rejects(redeem(invites()), refused('revoked'));
    await etcd.deletePrefix(INVITES_PREFIX);
    await assert.rejects(redeem(invites()), refused('unknown'));
  });

  it('are not made in an etcd that is not set up, and not without an address to join at', async () => {
    await etcd.delete(BOOTSTRAP_KEY);
    await assert.rejects(invites().create(), { code: 'etcd-unreachable' });
    await assert.rejects(invites({ endpoints: [] }).create(), { code: 'invalid-config' });
  });

  it('lock out a source that fails again and again, for longer each time, and nobody else', async () => {
    const store = invites({ guard: createGuard('redeeming', JOIN_GUARD, clock) });
    const { token } = await store.create();
    const fail = () => store.redeem({ ...request, token: 'cm1.a.b.c' });
    const exhausted = (wait: string) => (error: MeshError) =>
      error.code === 'exhausted' && error.hint === `try again in ${wait}`;
    for (let i = 0; i < JOIN_GUARD.failures; i++) await assert.rejects(fail(), { code: 'invalid-argument' });
    await assert.rejects(store.redeem({ ...request, token: token.reveal() }), exhausted('60 s'));
    nowMs += JOIN_GUARD.lockMs;
    for (let i = 0; i < JOIN_GUARD.failures; i++) await assert.rejects(fail(), { code: /invalid-argument|exhausted/ });
    await assert.rejects(store.redeem({ ...request, token: token.reveal() }), exhausted('120 s'));
    await store.redeem({ ...request, source: '192.0.2.10', token: token.reveal() });
  });

  it('bound the attempts of all sources together', () => {
    const guard = createGuard('redeeming', { ...JOIN_GUARD, attempts: 3 }, clock);
    for (const source of ['a', 'b', 'c']) guard.admit(source);
    assert.throws(() => guard.admit('d'), /too many attempts of all together/);
    nowMs += JOIN_GUARD.windowMs;
    guard.admit('d');
  });

  it('remember a bounded number of sources', () => {
    const guard = createGuard('redeeming', { ...JOIN_GUARD, failures: 1, maxSources: 10 }, clock);
    for (let i = 0; i < 100; i++) guard.failed(`source-${i}`);
    assert.equal(guard.locked(), 10);
  });

  it('leave neither secret nor token in etcd or in the log', async () => {
    const lines: string[] = [];
    const log = createLog('test', { write: (line: string) => void lines.push(line) });
    const store = invites({ log });
    const { token } = await store.create();
    const [, , secret] = token.reveal().split('.');
    await store.redeem({ ...request, token: token.reveal() });
    await assert.rejects(store.redeem({ ...request, peer: 'asia', token: token.reveal() }));
    await assert.rejects(store.redeem({ ...request, token: token.reveal().slice(0, -4) }));
    const stored = (await etcd.range('clustermesh/')).kvs.map((kv) => kv.value.toString());
    assert.ok(lines.length >= 4 && stored.length >= 2);
    for (const text of [...lines, ...stored]) assert.ok(!text.includes(secret!), text);
  });

  it('are swept a day after they ended', async () => {
    const store = invites();
    await store.create();
    wallMs += 24 * 3_600_000;
    assert.equal(await store.sweep(), 0);
    wallMs += 15 * 60_000;
    assert.equal(await store.sweep(), 1);
    assert.deepEqual(await store.list(), []);
  });
});
