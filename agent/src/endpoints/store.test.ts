import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { silentLog } from '@clustermesh/runtime';
import { createEndpointStore, type StoredEndpoint } from './store.ts';

const endpoint: StoredEndpoint = {
  id: 'default.web-0.abc',
  namespace: 'default',
  pod: 'web-0',
  serviceAccount: 'default',
  labels: 'k8s:app=web;',
  interface: 'cmp1',
  hostMac: '02:00:00:00:00:01',
  podMac: '02:00:00:00:00:02',
  ipv4: '10.1.1.5',
  endpointId: 1,
  identity: 65_999,
};

function directory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'cm-store-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

test('endpoints come back from disk as they were saved, also one without an identity', (t) => {
  const dir = directory(t);
  const waiting = { ...endpoint, id: 'x', identity: null };
  createEndpointStore(dir, silentLog()).save([endpoint, waiting]);
  assert.deepEqual(createEndpointStore(dir, silentLog()).load(), { endpoints: [endpoint, waiting], complete: true });
  assert.equal(statSync(join(dir, 'endpoints.json')).mode & 0o777, 0o600);
});

test('without a file there are no endpoints, and that is not taken for the whole truth', (t) => {
  assert.deepEqual(createEndpointStore(directory(t), silentLog()).load(), { endpoints: [], complete: false });
});

for (const [what, content] of [
  ['half a file', '{"version":1,"endpoi'],
  ['another version', '{"version":2,"endpoints":[]}'],
] as const) {
  test(`${what} is set aside, not overwritten`, (t) => {
    const dir = directory(t);
    writeFileSync(join(dir, 'endpoints.json'), content);
    assert.deepEqual(createEndpointStore(dir, silentLog()).load(), { endpoints: [], complete: false });
    assert.deepEqual(readdirSync(dir), ['endpoints.json.unreadable']);
  });
}
