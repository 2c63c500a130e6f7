import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HEARTBEAT_KEY } from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { connect, shopManifest, startCluster } from './testing/control-plane.ts';

const HOUR_MS = 3_600_000;

test('F18 the wall clock jumps ahead and back: heartbeats go on, nobody is taken for dead, nothing is written anew', async (t) => {
  let offsetMs = 0;
  const clock = { ...systemClock, wallMs: () => Date.now() + offsetMs };
  const us = await startCluster(t, { name: 'us', id: 2 });
  const eu = await startCluster(t, { name: 'eu', id: 1, clock });
  us.manifest('shop.yaml', shopManifest(['10.2.0.7']));
  await connect(eu, us);
  const peer = () => eu.plane.mirror.peers().find(({ cluster }) => cluster === 'us');
  await eu.eventually('the copy of us', () => peer()?.connected && peer()?.ready);
  const copies = async () => {
    const { kvs } = await eu.admin.range('cilium/cache/');
    return kvs.map(({ key, modRevision }) => `${key} ${modRevision}`);
  };
  const before = await copies();
  assert.ok(
    before.some((copy) => copy.startsWith('cilium/cache/services/v1/us/')),
    before.join('\n'),
  );
  const heartbeat = async () => (await eu.admin.range(HEARTBEAT_KEY)).kvs[0]?.modRevision ?? 0;
  for (const jumpMs of [HOUR_MS, -5 * 60_000, -48 * HOUR_MS, 48 * HOUR_MS]) {
    offsetMs += jumpMs;
    for (let beat = 0, last = await heartbeat(); beat < 2; beat++) {
      await eu.eventually(`a heartbeat after a jump of ${jumpMs} ms`, async () => (await heartbeat()) > last);
      last = await heartbeat();
      assert.deepEqual([peer()?.connected, peer()?.ready, peer()?.error ?? ''], [true, true, '']);
    }
  }
  assert.deepEqual(await copies(), before);
});
