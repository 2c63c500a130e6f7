import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, utimesSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { createLog, type Log, waitFor } from '@clustermesh/runtime';
import { startRedisServer } from '../testing/redis-server.ts';
import { housekeeping } from './housekeeping.ts';
import { createPendingStore } from './pending.ts';
import { startSchedule } from './schedule.ts';

it('runs a task again and again, on the replica that leads and on no other, over a failure and an absent Redis', async (t) => {
  const redis = await startRedisServer();
  const warnings: string[] = [];
  const log = createLog('test');
  log.level = 'silent';
  log.child = (() => log) as unknown as Log['child'];
  log.warn = ((fields: { reason: string }) => warnings.push(fields.reason)) as Log['warn'];
  let leader = 'a';
  const runs: string[] = [];
  const replicas = ['a', 'b'].map((name) =>
    startSchedule({
      redis: redis.config,
      log,
      mayRun: () => leader === name,
      tasks: [
        {
          name: 'sweep',
          everyMs: 200,
          run: async () => {
            runs.push(name);
            if (runs.length === 2) throw new Error('no etcd');
            return undefined;
          },
        },
      ],
    }),
  );
  t.after(async () => {
    for (const replica of replicas) await replica.close();
    await redis.stop();
  });
  const more = (count: number) => {
    const wanted = runs.length + count;
    return waitFor(() => runs.length >= wanted, { what: `${count} more runs`, timeoutMs: 20_000 });
  };
  await more(4);
  assert.deepEqual([...new Set(runs)], ['a']);
  assert.deepEqual(warnings, ['no etcd'], 'told, and tried again at its next time');
  leader = 'b';
  await waitFor(() => runs.at(-1) === 'b', { what: 'the other to take over', timeoutMs: 20_000 });
  const since = runs.length;
  await more(3);
  assert.deepEqual([...new Set(runs.slice(since))], ['b']);
  await redis.kill();
  await redis.start();
  await more(2);
});

it('removes keys that nobody came back for, and leaves the others; says nothing when there is nothing', async (t) => {
  const stateDir = mkdtempSync(join(tmpdir(), 'cm-pending-'));
  t.after(() => rmSync(stateDir, { recursive: true }));
  const pending = createPendingStore({ stateDir, cluster: 'eu' });
  await Promise.all([pending.request('us'), pending.request('ap')]);
  const longAgo = new Date(Date.now() - 7_200_000);
  utimesSync(join(stateDir, 'pending/us'), longAgo, longAgo);
  const tasks = housekeeping({
    invites: { sweep: async () => 0 },
    operations: { sweepPending: () => pending.sweep(3_600_000) },
    renewPeers: async () => undefined,
    renewPeersEveryMs: 60_000,
    audit: async () => undefined,
  });
  const said = await Promise.all(tasks.map((task) => task.run()));
  assert.deepEqual(said, [
    undefined,
    undefined,
    undefined,
    'keys for connects that nobody went on with were removed: us',
  ]);
  assert.deepEqual([pending.isWaiting('us'), pending.isWaiting('ap')], [false, true]);
});
