import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chownSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { AdminMethods } from '@clustermesh/contract';
import { dialRpc, repoRoot, waitFor } from '@clustermesh/runtime';
import { stringify } from 'yaml';
import { freePort, startTestCluster } from './testing/apiserver-process.ts';

/** The kernel's overflow user: it owns nothing. */
const UID = 65534;
/** As deploy/systemd runs them: another user, no capability, and no way to any. */
const UNPRIVILEGED = [
  ...['setpriv', `--reuid=${UID}`, `--regid=${UID}`, '--clear-groups', '--no-new-privs'],
  ...['--bounding-set=-all', '--inh-caps=-all', '--ambient-caps=-all', '--'],
];
const TIMEOUT_MS = 60_000;

/** Why this cannot be tried here. */
function obstacle(): string | false {
  const [command, ...args] = [...UNPRIVILEGED, 'test', '-r', join(repoRoot(), 'package.json')];
  const { status, stderr } = spawnSync(command!, args, { encoding: 'utf8' });
  return status === 0 ? false : `another user cannot read this checkout, or nobody may become one: ${stderr}`;
}

/** A directory with all that is in it becomes the user's own. */
function giveAway(path: string): void {
  chownSync(path, UID, UID);
  if (statSync(path).isDirectory()) for (const name of readdirSync(path)) giveAway(join(path, name));
}

function assertUnprivileged(pid: number, what: string): void {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  assert.match(status, new RegExp(`^Uid:\\t${UID}\\t${UID}\\t${UID}\\t${UID}$`, 'm'), what);
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
    assert.match(status, new RegExp(`^${set}:\\t0+$`, 'm'), `${what}: ${set}`);
  assert.match(status, /^NoNewPrivs:\t1$/m, what);
}

test('apiserver and gate need neither root nor a capability', { skip: obstacle() }, async (t) => {
  const gatePort = await freePort();
  const eu = await startTestCluster('eu', 1, { peerAccess: 'gate' }, UNPRIVILEGED);
  t.after(() => eu.close());
  giveAway(eu.dir);
  for (const path of [join(eu.redis.path, '..'), eu.redis.path]) chownSync(path, UID, UID);
  await eu.startApiserver();
  assertUnprivileged(eu.pid()!, 'apiserver');
  const admin = dialRpc<AdminMethods>('admin', `unix://${join(eu.dir, 'apiserver.sock')}`);
  t.after(() => admin.close());
  await waitFor(
    async () => {
      const status = await admin.GetStatus({});
      return status.etcdConnected && status.redisConnected;
    },
    { what: 'etcd and Redis', timeoutMs: TIMEOUT_MS },
  );
  const { csrPem } = await admin.PrepareConnect({ peer: 'us' });
  assert.match(csrPem, /CERTIFICATE REQUEST/, 'it keeps a key of its own');
  const rotated = () =>
    admin.RotateLeaves({}).then(
      ({ issued }) => issued.length > 0,
      () => false,
    );
  await waitFor(rotated, { what: 'certificates that it has renewed', timeoutMs: TIMEOUT_MS });

  const pki = (file: string) => join(eu.dir, 'pki', file);
  const config = join(eu.dir, 'gate.yaml');
  const gateConfig = {
    cluster: 'eu',
    listen: { host: '127.0.0.1', port: 0 },
    tls: { caFile: pki('ca.crt'), certFile: pki('server.crt'), keyFile: pki('server.key') },
    etcd: { port: eu.etcd.port, caFile: pki('ca.crt'), certFile: pki('gate.crt'), keyFile: pki('gate.key') },
    usersFile: join(eu.dir, 'users.yaml'),
    crlFile: pki('crl.pem'),
    http: { port: gatePort },
  };
  writeFileSync(config, stringify(gateConfig));
  giveAway(config);
  const main = join(repoRoot(), 'apiserver/src/gate/main.ts');
  const [command, ...args] = [...UNPRIVILEGED, process.execPath, '--import', 'tsx', main, '--config', config];
  const gate = spawn(command!, args, { cwd: repoRoot(), stdio: ['ignore', 'ignore', 'inherit'] });
  const ended = new Promise((resolve) => gate.once('exit', resolve));
  t.after(async () => {
    gate.kill('SIGKILL');
    await ended;
  });
  const ready = () =>
    fetch(`http://127.0.0.1:${gatePort}/readyz`).then(
      ({ ok }) => ok,
      () => false,
    );
  await waitFor(ready, { what: 'the gate', timeoutMs: TIMEOUT_MS });
  assertUnprivileged(gate.pid!, 'gate');
});
