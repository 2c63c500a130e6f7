import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Registry } from 'prom-client';
import { serveHttp } from './http.ts';

const PATHS = ['/healthz', '/readyz', '/metrics'] as const;

test('beyond loopback nobody is told anything but that the process lives, unless with the token', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'cm-http-'));
  const tokenFile = join(dir, 'token');
  const common = { port: 0, registry: new Registry(), notReady: () => 'the peer us is away' };
  const [local, open, guarded] = await Promise.all([
    serveHttp({ ...common, host: '127.0.0.1' }),
    serveHttp({ ...common, host: '0.0.0.0' }),
    serveHttp({ ...common, host: '0.0.0.0', tokenFile }),
  ]);
  t.after(async () => {
    await Promise.all([local.close(), open.close(), guarded.close()]);
    rmSync(dir, { recursive: true });
  });
  const statuses = ({ port }: { readonly port: number }, authorization?: string) =>
    Promise.all(
      PATHS.map(async (path) => {
        const headers = authorization === undefined ? {} : { authorization };
        const response = await fetch(`http://127.0.0.1:${port}${path}`, { headers });
        const text = await response.text();
        if (response.status === 401) assert.doesNotMatch(text, /us is away/);
        return response.status;
      }),
    );
  const [everything, onlyLife] = [
    [200, 500, 200],
    [200, 401, 401],
  ];
  assert.deepEqual(await statuses(local), everything);
  assert.deepEqual(await statuses(open), onlyLife);
  assert.deepEqual(await statuses(open, 'Bearer undefined'), onlyLife);
  assert.deepEqual(await statuses(guarded, 'Bearer secret'), onlyLife, 'its file is not there yet');
  writeFileSync(tokenFile, '');
  assert.deepEqual(await statuses(guarded, 'Bearer '), onlyLife, 'an empty one is none');
  writeFileSync(tokenFile, 'secret\n');
  assert.deepEqual(await statuses(guarded, 'Bearer secret'), everything);
  for (const wrong of [undefined, 'Bearer', 'Bearer secre', 'Bearer secrets', 'secret', 'Basic secret'])
    assert.deepEqual(await statuses(guarded, wrong), onlyLife, wrong);
});
