/** Which common names are taken, at the gate and at etcd itself, and by which TLS. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Etcd } from '@clustermesh/kvstore';
import { issueClient, loadCa } from '@clustermesh/pki';
import { silentLog } from '@clustermesh/runtime';
import { startCluster, type TestCluster } from '../testing/control-plane.ts';
import { protocolsOf } from '../testing/tls-protocols.ts';
import { AUTH_MODES, type AuthMode, gateSchema } from './config.ts';
import { startGate } from './gate.ts';

/** What the shared name of old and the name of one's own are worth. */
const EXPECTED: Readonly<Record<AuthMode, Readonly<Record<'remote' | 'remote-us', boolean>>>> = {
  legacy: { remote: true, 'remote-us': false },
  migration: { remote: true, 'remote-us': true },
  cluster: { remote: false, 'remote-us': true },
};

const KEY = 'cilium/state/test/x';

const isLetIn = (etcd: Etcd) =>
  etcd.get(KEY).then(
    () => true,
    () => false,
  );

async function startDoor(t: TestContext, cluster: TestCluster, authMode: AuthMode): Promise<number> {
  const pki = (file: string) => join(cluster.root, 'pki', file);
  const abort = new AbortController();
  const gate = await startGate({
    config: gateSchema.parse({
      ...{ cluster: 'eu', authMode, listen: { host: '127.0.0.1', port: 0 }, http: { port: 0 } },
      tls: { caFile: pki('ca.crt'), certFile: pki('server.crt'), keyFile: pki('server.key') },
      etcd: { port: cluster.server.port, caFile: pki('ca.crt'), certFile: pki('gate.crt'), keyFile: pki('gate.key') },
      usersFile: join(cluster.root, 'users.yaml'),
      crlFile: pki('crl.pem'),
    }),
    log: silentLog(),
    signal: abort.signal,
  });
  t.after(async () => {
    abort.abort();
    await gate.ended;
  });
  return gate.port;
}

test('the gate takes the names of its authMode, and TLS 1.3, or 1.2 at the least', async (t) => {
  const cluster = await startCluster(t, { name: 'eu', id: 1, config: { peerAccess: 'gate' } });
  await cluster.eventually('bootstrap', () => cluster.plane.bootstrap.ready());
  await cluster.plane.bootstrap.addPeer('us');
  const client = await issueClient({ ca: loadCa(join(cluster.root, 'pki')), commonName: 'remote-us' });
  for (const authMode of AUTH_MODES) {
    const port = await startDoor(t, cluster, authMode);
    const endpoints = [`https://127.0.0.1:${port}`];
    for (const [name, isWelcome] of Object.entries(EXPECTED[authMode]))
      assert.equal(await isLetIn(await cluster.clientAs(name, { endpoints })), isWelcome, `${authMode}: ${name}`);
    if (EXPECTED[authMode]['remote-us'])
      assert.deepEqual(await protocolsOf(port, client), ['TLSv1.3', 'TLSv1.2', 'refused']);
  }
});

for (const authMode of AUTH_MODES)
  test(`etcd itself has the users of authMode ${authMode}`, async (t) => {
    const cluster = await startCluster(t, { name: 'eu', id: 1, config: { peerAccess: 'etcd', authMode } });
    await cluster.eventually('bootstrap', () => cluster.plane.bootstrap.ready());
    const added = cluster.plane.bootstrap.addPeer('us');
    if (authMode === 'legacy') await assert.rejects(added, { code: 'invalid-config', message: /all peers share/ });
    else await added;
    for (const [name, isWelcome] of Object.entries(EXPECTED[authMode]))
      assert.equal(await isLetIn(await cluster.clientAs(name)), isWelcome, name);
  });
