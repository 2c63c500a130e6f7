import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { startEtcd } from '@clustermesh/kvstore/testing';
import { createStoreMemory } from './store-memory.ts';

async function rig(t: TestContext) {
  const server = await startEtcd({ extraArgs: ['--initial-cluster-token', 'same'] });
  const stateDir = mkdtempSync(join(tmpdir(), 'cm-memory-'));
  t.after(async () => {
    await server.close();
    rmSync(stateDir, { recursive: true, force: true });
  });
  const etcd = server.client();
  const connect = async () => {
    await etcd.get('anything');
    return etcd.connection ?? 0;
  };
  return { server, connect, memory: () => createStoreMemory({ etcd, node: 'n1', stateDir }) };
}

test('a store is known once it was remembered, also to the next process', async (t) => {
  const r = await rig(t);
  const memory = r.memory();
  assert.equal(await memory.isKnown(), false);
  await memory.remember(await r.connect());
  assert.equal(await memory.isKnown(), true);
  assert.equal(await r.memory().isKnown(), true);
});

test('what is asked twice at once is done once: whoever dies in between leaves one mark, not two', async (t) => {
  const r = await rig(t);
  const memory = r.memory();
  const connection = await r.connect();
  const revision = async () => (await r.server.client().range('clustermesh/')).header.revision;
  const before = await revision();
  await Promise.all([memory.remember(connection), memory.remember(connection)]);
  await memory.remember(connection);
  assert.equal(await revision(), before + 1);
  assert.equal(await r.memory().isKnown(), true);
});

test('a restarted etcd is known, a wiped one is not, although its cluster id is the same', async (t) => {
  const r = await rig(t);
  const memory = r.memory();
  await memory.remember(await r.connect());
  await r.server.restart();
  assert.equal(await memory.isKnown(), true);
  await r.server.wipe();
  assert.equal(await memory.isKnown(), false);
  assert.equal(await r.memory().isKnown(), false);
  await memory.remember(await r.connect());
  assert.equal(await r.memory().isKnown(), true);
});

test('nothing is remembered of a store whose connection has gone: another may answer now', async (t) => {
  const r = await rig(t);
  const memory = r.memory();
  const connection = await r.connect();
  await r.server.wipe();
  await assert.rejects(memory.remember(connection));
  assert.equal(await memory.isKnown(), false);
});
