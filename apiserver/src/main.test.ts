import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ensureClusterPki } from '@clustermesh/pki';
import { repoRoot, waitFor } from '@clustermesh/runtime';
import { stringify } from 'yaml';

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

interface Daemon {
  readonly child: ChildProcess;
  readonly output: () => string;
  readonly ended: Promise<number | null>;
}

function run(t: TestContext, config: object, root: string): Daemon {
  const file = join(root, 'apiserver.yaml');
  writeFileSync(file, stringify(config));
  const main = join(repoRoot(), 'apiserver', 'src', 'main.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', main, '--config', file], {
    cwd: repoRoot(),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  child.stdout.on('data', (data) => (text += data));
  child.stderr.on('data', (data) => (text += data));
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  t.after(() => child.kill('SIGKILL'));
  return { child, output: () => text, ended };
}

async function fixture(t: TestContext): Promise<{ root: string; port: number; config: Record<string, unknown> }> {
  const root = mkdtempSync(join(tmpdir(), 'cm-apiserver-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const [port, nobody] = [await freePort(), await freePort()];
  const pki = join(root, 'pki');
  const config = {
    cluster: { name: 'eu', id: 1, serviceCIDR: '10.96.0.0/16', podCIDR: '10.1.0.0/16' },
    etcd: {
      endpoints: [`https://127.0.0.1:${nobody}`],
      caFile: join(pki, 'ca.crt'),
      certFile: join(pki, 'admin.crt'),
      keyFile: join(pki, 'admin.key'),
    },
    advertise: { endpoints: ['https://eu.mesh.cilium.io:2379'] },
    pki: { dir: pki },
    manifestsDir: join(root, 'manifests'),
    peersDir: join(root, 'clustermesh'),
    usersFile: join(root, 'users.yaml'),
    stateDir: join(root, 'state'),
    redis: { path: join(root, 'redis.sock') },
    admin: { socket: join(root, 'apiserver.sock') },
    http: { port },
  };
  return { root, port, config };
}

const get = async (port: number, path: string) => {
  const response = await fetch(`http://127.0.0.1:${port}${path}`);
  return { status: response.status, text: await response.text() };
};

test('starts with etcd and Redis down, says what is missing, and ends cleanly', async (t) => {
  const { root, port, config } = await fixture(t);
  await ensureClusterPki({ dir: join(root, 'pki'), cluster: 'eu' });
  mkdirSync(join(root, 'manifests'));
  writeFileSync(
    join(root, 'manifests', 'bad.yaml'),
    'apiVersion: v1\nkind: Service\nmetadata: { name: x }\nspec: {}\n',
  );
  const daemon = run(t, config, root);
  await waitFor(async () => (await get(port, '/healthz')).status === 200, { what: 'healthz', timeoutMs: 15_000 });
  const ready = await waitFor(
    async () => {
      const answer = await get(port, '/readyz');
      return /ECONNREFUSED|unreachable|refused/i.test(answer.text) ? answer : undefined;
    },
    { what: 'the reason in readyz', timeoutMs: 10_000 },
  );
  assert.equal(ready.status, 500);
  assert.match(ready.text, /^NotReady: etcd: /);
  const metrics = (await get(port, '/metrics')).text;
  assert.match(metrics, /^cilium_kvstoremesh_remote_clusters 0$/m);
  assert.match(metrics, /^clustermesh_apiserver_etcd_connected 0$/m);
  assert.match(metrics, /^clustermesh_apiserver_problems 1$/m);
  daemon.child.kill('SIGTERM');
  assert.equal(await daemon.ended, 0, daemon.output());
  for (const line of daemon.output().trim().split('\n')) JSON.parse(line);
});

test('a bad config is refused with every field that is wrong', async (t) => {
  const { root, config } = await fixture(t);
  const daemon = run(
    t,
    {
      ...config,
      cluster: { name: 'EU', id: 300, serviceCIDR: '10.96.0.0', podCIDR: '10.1.0.0/16', podCIDRv6: 'fe80::/64' },
      http: { port: 'x' },
      typo: 1,
    },
    root,
  );
  assert.equal(await daemon.ended, 1);
  for (const field of ['cluster.serviceCIDR', 'cluster.podCIDRv6', 'http.port', 'typo'])
    assert.match(daemon.output(), new RegExp(field.replace('.', '\\.')));
});
