import assert from 'node:assert/strict';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { certificateFacts, ensureClusterPki } from '@clustermesh/pki';
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

test('leaves are rotated on demand, by the leader, beside a renewal that is under way', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'cm-rotate-'));
  const abort = new AbortController();
  t.after(() => {
    abort.abort();
    rmSync(dir, { recursive: true });
  });
  await ensureClusterPki({ dir, cluster: 'eu', serverIps: ['10.0.0.7'], nodes: ['n1'] });
  const files = ['server.crt', 'admin.crt', 'local.crt', 'gate.crt', 'nodes/n1/node.crt'];
  const read = (file: string) => readFileSync(join(dir, file), 'utf8');
  const before = new Map(files.map((file) => [file, read(file)]));
  const ca = read('ca.crt');
  let isLeading = false;
  const renewal = startRenewal({
    ...{ pkiDir: dir, cluster: 'eu', isLeading: () => isLeading, otherLeader: () => 'replica-b' },
    ...{ log: silentLog(), signal: abort.signal },
  });
  await assert.rejects(renewal.rotateLeaves(), /does not lead, replica replica-b does/);
  for (const file of files) assert.equal(read(file), before.get(file), `${file}: refused, and nothing issued`);
  isLeading = true;
  const [first, second] = await Promise.all([renewal.rotateLeaves(), renewal.rotateLeaves(), renewal.check()]);
  for (const issued of [first, second])
    assert.deepEqual(issued.map(({ file }) => file).sort(), files.map((file) => join(dir, file)).sort());
  for (const file of files) {
    assert.notEqual(read(file), before.get(file), file);
    const [cert, key] = [new X509Certificate(read(file)), createPrivateKey(read(file.replace(/crt$/, 'key')))];
    assert.ok(cert.checkPrivateKey(key), `${file} and its key belong together`);
    assert.ok(cert.checkIssued(new X509Certificate(ca)), 'by the same CA');
  }
  assert.equal(read('ca.crt'), ca);
  assert.ok(certificateFacts(read('server.crt')).ips.includes('10.0.0.7'), 'with the addresses it had');
});
