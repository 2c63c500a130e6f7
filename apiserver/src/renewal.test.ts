import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ensureClusterPki } from '@clustermesh/pki';
import { type Clock, silentLog, systemClock } from '@clustermesh/runtime';
import { startRenewal } from './renewal.ts';

const DAY_MS = 86_400_000;

test('certificates are renewed in time, by the leader only', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'cm-renewal-'));
  const abort = new AbortController();
  t.after(() => rmSync(dir, { recursive: true }));
  await ensureClusterPki({ dir, cluster: 'eu' });
  const server = () => readFileSync(join(dir, 'server.crt'), 'utf8');
  let wallMs = Date.now();
  let isLeading = false;
  const clock: Clock = { ...systemClock, wallMs: () => wallMs };
  const renewal = startRenewal({
    ...{ pkiDir: dir, cluster: 'eu', isLeading: () => isLeading },
    ...{ log: silentLog(), signal: abort.signal, clock },
  });
  const first = server();
  wallMs += 800 * DAY_MS;
  await renewal.check();
  assert.equal(server(), first, 'another replica leads');
  isLeading = true;
  await renewal.check();
  const second = server();
  assert.notEqual(second, first);
  wallMs += 300 * DAY_MS;
  await renewal.check();
  assert.equal(server(), second, 'nothing is due');
  abort.abort();
  await renewal.ended;
});
