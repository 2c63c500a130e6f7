import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startEtcd } from '@clustermesh/kvstore/testing';
import { systemClock, waitFor } from '@clustermesh/runtime';
import { watchKey } from './key-watch.ts';

test('every change of the key is told at once, also one while the etcd was away; its neighbours are not', async (t) => {
  await using server = await startEtcd();
  const etcd = server.client();
  const stop = new AbortController();
  t.after(() => stop.abort());
  let told = 0;
  const ended = watchKey({
    ...{ etcd, key: 'config/us', clock: systemClock, signal: stop.signal },
    // Only the watch can tell in time.
    maxIntervalMs: 600_000,
    onChange: () => {
      told++;
    },
  });
  const tellsAfter = async (what: string, act: () => Promise<unknown>) => {
    const before = told;
    await act();
    await waitFor(() => told > before, { what, timeoutMs: 30_000, intervalMs: 10 });
  };
  await waitFor(() => told === 1, { what: 'the beginning', timeoutMs: 30_000, intervalMs: 10 });
  await tellsAfter('a put', () => etcd.put('config/us', '1'));
  await tellsAfter('a delete', () => etcd.delete('config/us'));
  const before = told;
  // So many that some would have been told before the next change is.
  for (let i = 0; i < 20; i++) await etcd.put('config/us2', String(i));
  await tellsAfter('the next change', () => etcd.put('config/us', '2'));
  assert.equal(told, before + 1);
  await tellsAfter('an etcd that comes back', () => server.restart());
  await tellsAfter('a change after that', () => server.client().put('config/us', '3'));
  stop.abort();
  await ended;
});
