import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect as tcpConnect } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import type { Etcd, WatchEvent } from '@clustermesh/kvstore';
import {
  certificateFacts,
  createCa,
  createKeyAndCsr,
  issueClient,
  issuePeerCertificate,
  type KeyAndCertificate,
  loadCa,
  revokePeerCertificates,
} from '@clustermesh/pki';
import { silentLog } from '@clustermesh/runtime';
import { startCluster, type TestCluster } from '../testing/control-plane.ts';
import { gateSchema } from './config.ts';
import { type Gate, startGate } from './gate.ts';

const DAY_MS = 86_400_000;
const LEAF_DAYS = 1095;

interface Guarded {
  readonly cluster: TestCluster;
  readonly gate: Gate;
  readonly pkiDir: string;
  /** A certificate that the cluster signs for the peer, as connect does. */
  certificate(peer: string): Promise<KeyAndCertificate>;
  invite(peer: string): Promise<Etcd>;
  /** As operations/steps.ts revokes. */
  revoke(peer: string): Promise<void>;
  client(name: string, pair: KeyAndCertificate, options?: { readonly direct?: boolean; readonly caPem?: string }): Etcd;
}

async function startGuarded(t: TestContext, config: Readonly<Record<string, unknown>> = {}): Promise<Guarded> {
  const cluster = await startCluster(t, { name: 'eu', id: 1, config: { peerAccess: 'gate' } });
  await cluster.eventually('bootstrap', () => cluster.plane.bootstrap.ready());
  const pkiDir = join(cluster.root, 'pki');
  const pki = (file: string) => join(pkiDir, file);
  const abort = new AbortController();
  const gate = await startGate({
    config: gateSchema.parse({
      cluster: 'eu',
      listen: { host: '127.0.0.1', port: 0 },
      tls: { caFile: pki('ca.crt'), certFile: pki('server.crt'), keyFile: pki('server.key') },
      etcd: { port: cluster.server.port, caFile: pki('ca.crt'), certFile: pki('gate.crt'), keyFile: pki('gate.key') },
      usersFile: join(cluster.root, 'users.yaml'),
      crlFile: pki('crl.pem'),
      http: { port: 0 },
      ...config,
    }),
    log: silentLog(),
    signal: abort.signal,
  });
  t.after(async () => {
    abort.abort();
    await gate.ended;
  });
  const certificate = async (peer: string) => {
    const { keyPem, csrPem } = await createKeyAndCsr({ commonName: `remote-${peer}` });
    return { keyPem, certPem: await issuePeerCertificate({ pkiDir, peer, csrPem }) };
  };
  const guarded: Guarded = {
    ...{ cluster, gate, pkiDir, certificate },
    async invite(peer) {
      const pair = await certificate(peer);
      await cluster.plane.bootstrap.addPeer(peer);
      return guarded.client(peer, pair);
    },
    async revoke(peer) {
      await cluster.plane.bootstrap.removePeer(peer);
      await revokePeerCertificates({ pkiDir, peer });
    },
    client(name, pair, { direct = false, caPem } = {}) {
      const dir = join(cluster.root, 'gate-clients', name);
      mkdirSync(dir, { recursive: true });
      const files = { caFile: join(dir, 'ca.crt'), certFile: join(dir, 'tls.crt'), keyFile: join(dir, 'tls.key') };
      writeFileSync(files.certFile, pair.certPem);
      writeFileSync(files.keyFile, pair.keyPem, { mode: 0o600 });
      if (caPem === undefined) copyFileSync(pki('ca.crt'), files.caFile);
      else writeFileSync(files.caFile, caPem);
      const endpoint = direct ? cluster.server.endpoint : `https://127.0.0.1:${gate.port}`;
      return cluster.server.client({ endpoints: [endpoint], ...files });
    },
  };
  return guarded;
}

/** Lists, then collects what a watch of the exported state brings, with when it came. */
function follow(t: TestContext, etcd: Etcd) {
  const abort = new AbortController();
  t.after(() => abort.abort());
  const seen: { readonly event: WatchEvent; readonly at: number }[] = [];
  let error: MeshError | undefined;
  const done = (async () => {
    const { header } = await etcd.getWithHeader('cilium/state/test/');
    await etcd.watch({
      prefix: 'cilium/state/test/',
      startRevision: header.revision + 1,
      signal: abort.signal,
      onEvents: (events) => void seen.push(...events.map((event) => ({ event, at: performance.now() }))),
    });
  })().catch((reason) => {
    error = reason;
  });
  return { seen, done, error: () => error };
}

/** A put every few milliseconds; `stop` tells how many there were. */
function writer(etcd: Etcd) {
  let running = true;
  let count = 0;
  const done = (async () => {
    while (running) {
      await etcd.put(`cilium/state/test/${count}`, String(performance.now()));
      count++;
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  })();
  return {
    count: () => count,
    async stop() {
      running = false;
      await done;
      return count;
    },
  };
}

const user = (gate: Gate, peer: string) => gate.connections().get(`remote-${peer}`) ?? 0;
const refusedAtTheDoor = (error: MeshError) => error.code === 'tls' || error.code === 'etcd-unreachable';

test('a revoked peer receives nothing from the second after, and other peers notice nothing', async (t) => {
  const { cluster, gate, invite, revoke } = await startGuarded(t);
  const us = await invite('us');
  const asia = await invite('asia');
  const [followsUs, followsAsia] = [follow(t, us), follow(t, asia)];
  const load = writer(cluster.admin);
  await cluster.eventually('both receive', () => followsUs.seen.length > 20 && followsAsia.seen.length > 20);
  const connection = asia.connection;

  await revoke('us');
  const revokedAt = performance.now();
  await followsUs.done;
  const last = followsUs.seen.at(-1)!.at - revokedAt;
  t.diagnostic(`last event ${last.toFixed(1)} ms after the revocation, ${followsUs.seen.length} received before`);
  assert.ok(last < 1000, `an event came ${last} ms after the revocation`);
  assert.ok(followsUs.error() !== undefined, 'the watch of the revoked peer has ended with a reason');
  assert.equal(user(gate, 'us'), 0);
  await assert.rejects(us.get('cilium/state/test/0'), refusedAtTheDoor);

  // Long enough for a second batch that only the other one may see.
  const later = load.count() + 100;
  await cluster.eventually('asia receives on', () => followsAsia.seen.length > later);
  const written = await load.stop();
  await cluster.eventually('asia has all', () =>
    followsAsia.seen.some(({ event }) => event.key === `cilium/state/test/${written - 1}`),
  );
  const keys = followsAsia.seen.map(({ event }) => Number(event.key.split('/').at(-1)));
  assert.deepEqual(
    keys,
    Array.from(keys, (_, index) => keys[0]! + index),
    'without gap or repetition',
  );
  assert.equal(asia.connection, connection, 'on the connection that it had');
  assert.ok(followsUs.seen.length < written);
});

test('the old certificate of a peer stays dead when it is invited again under the same name', async (t) => {
  const { cluster, gate, certificate, client, invite, revoke } = await startGuarded(t);
  const old = await certificate('us');
  await cluster.plane.bootstrap.addPeer('us');
  const before = client('old', old);
  await before.get('cilium/state/x');
  await revoke('us');
  const again = await invite('us');
  await again.get('cilium/state/x');
  await cluster.eventually('the old connection is gone', () => user(gate, 'us') === 1);
  await assert.rejects(before.get('cilium/state/x'), refusedAtTheDoor);
  await again.get('cilium/state/x');
});

test('a certificate of a peer is worth nothing at etcd itself, where only the gate has a user', async (t) => {
  const { cluster, certificate, client } = await startGuarded(t);
  const pair = await certificate('us');
  await cluster.plane.bootstrap.addPeer('us');
  await assert.rejects(client('us', pair, { direct: true }).get('cilium/state/x'), (error: MeshError) =>
    /user name not found|permission/.test(error.message),
  );
  const users = await cluster.admin.auth.listUsers();
  assert.deepEqual(
    users.filter((name) => /^(remote|gate)/.test(name)),
    ['gate-eu'],
  );
  // Through the gate it reads what the role grants, and nothing else.
  const through = client('us', pair);
  await through.get('cilium/state/x');
  await assert.rejects(through.get('clustermesh/invites/x'), { code: 'etcd-permission' });
  await assert.rejects(through.put('cilium/state/x', '1'), { code: 'etcd-permission' });
});

test('F17 wrong CA, unknown peer, plaintext and no certificate: refused, no data read', async (t) => {
  const { cluster, gate, certificate, client, pkiDir } = await startGuarded(t);
  await cluster.admin.put('cilium/state/secret', 'x');
  const foreignCa = await createCa({ cluster: 'eu' });
  await cluster.plane.bootstrap.addPeer('us');
  const read = (etcd: Etcd) => etcd.get('cilium/state/secret');

  const foreign = await issueClient({ ca: foreignCa, commonName: 'remote-us' });
  await assert.rejects(read(client('foreign', foreign)), refusedAtTheDoor);
  await assert.rejects(read(client('stranger', await certificate('stranger'))), refusedAtTheDoor);
  // Of the right CA, but of somebody who is no peer: not even the administrator comes this way.
  const admin = {
    certPem: readFileSync(join(pkiDir, 'admin.crt'), 'utf8'),
    keyPem: readFileSync(join(pkiDir, 'admin.key'), 'utf8'),
  };
  await assert.rejects(read(client('admin', admin)), refusedAtTheDoor);
  const plain = cluster.server.client({ endpoints: [`http://127.0.0.1:${gate.port}`] });
  await assert.rejects(read(plain));
  const bare = cluster.server.client({ endpoints: [`https://127.0.0.1:${gate.port}`], caFile: join(pkiDir, 'ca.crt') });
  await assert.rejects(read(bare), refusedAtTheDoor);
  const answer = await rawRequest(gate.port, 'GET /v3/kv HTTP/1.1\r\nHost: x\r\n\r\n');
  assert.ok(!answer.includes('cilium'), answer);
  assert.equal(gate.connections().size, 0);
});

test('F17 a server of another CA, or without the name that was dialled: the reader refuses it and says which', async (t) => {
  const { cluster, certificate, client, pkiDir } = await startGuarded(t);
  await cluster.plane.bootstrap.addPeer('us');
  const pair = await certificate('us');
  const other = await createCa({ cluster: 'eu' });
  await assert.rejects(client('other-ca', pair, { caPem: other.certPem }).get('cilium/state/x'), {
    message: /certificate|self.signed|issuer/i,
  });
  // The gate takes up a new server certificate while it runs; this one does not cover 127.0.0.1.
  const good = client('us', pair);
  await good.get('cilium/state/x');
  const [certFile, keyFile] = [join(pkiDir, 'server.crt'), join(pkiDir, 'server.key')];
  // A client certificate has no names at all.
  const wrong = await issueClient({ ca: loadCa(pkiDir), commonName: 'clustermesh-apiserver.cilium.io' });
  writeFileSync(keyFile, wrong.keyPem);
  writeFileSync(certFile, wrong.certPem);
  await cluster.eventually('a new connection is refused for the name', async () => {
    const error = await client('new', pair)
      .get('cilium/state/x')
      .then(
        () => undefined,
        (reason: MeshError) => reason,
      );
    return error !== undefined && /altname|127\.0\.0\.1|not in the cert/i.test(error.message);
  });
  // Who is in stays in.
  await good.get('cilium/state/x');
});

test('F15 a certificate that expires live is cut off, and its renewal is taken up without a restart', async (t) => {
  const { cluster, gate, client, certificate, pkiDir } = await startGuarded(t);
  await cluster.plane.bootstrap.addPeer('us');
  const lifetimeMs = 4000;
  const shortLived = await issueClient({
    ca: loadCa(pkiDir),
    commonName: 'remote-us',
    now: new Date(Date.now() + lifetimeMs - LEAF_DAYS * DAY_MS),
  });
  const us = client('us', shortLived);
  await us.get('cilium/state/x');
  const { notAfter } = certificateFacts(shortLived.certPem);
  await cluster.eventually('cut off', () => user(gate, 'us') === 0);
  assert.ok(Date.now() >= notAfter.getTime(), 'not before its time');
  await assert.rejects(us.get('cilium/state/x'), refusedAtTheDoor);
  // The same client, the same files with other content.
  const renewed = await certificate('us');
  client('us', renewed);
  await cluster.eventually('in again', () =>
    us.get('cilium/state/x').then(
      () => true,
      () => false,
    ),
  );
});

test('F15 a certificate that is not valid yet is refused, and let in when its time has come', async (t) => {
  const { cluster, client, pkiDir } = await startGuarded(t);
  await cluster.plane.bootstrap.addPeer('us');
  // notBefore lies ten minutes before the moment of issue, for clocks that are behind.
  const early = await issueClient({
    ca: loadCa(pkiDir),
    commonName: 'remote-us',
    now: new Date(Date.now() + 10 * 60_000 + 4000),
  });
  const us = client('us', early);
  await assert.rejects(us.get('cilium/state/x'), refusedAtTheDoor);
  await cluster.eventually('in', () =>
    us.get('cilium/state/x').then(
      () => true,
      () => false,
    ),
  );
});

test('a broken list of users or of revocations neither lets anybody in nor throws anybody out', async (t) => {
  const { cluster, gate, certificate, client, invite, pkiDir } = await startGuarded(t);
  const us = await invite('us');
  await us.get('cilium/state/x');
  const crl = readFileSync(join(pkiDir, 'crl.pem'));
  writeFileSync(join(cluster.root, 'users.yaml'), 'users: {');
  writeFileSync(join(pkiDir, 'crl.pem'), 'torn');
  await cluster.eventually('both are told', () => gate.problems().length >= 2);
  await us.get('cilium/state/x');
  assert.equal(user(gate, 'us'), 1);
  await assert.rejects(client('asia', await certificate('asia')).get('cilium/state/x'), refusedAtTheDoor);
  writeFileSync(join(cluster.root, 'users.yaml'), 'users: [{ name: remote-us, role: remote }]');
  writeFileSync(join(pkiDir, 'crl.pem'), crl);
  await cluster.eventually('all is well', () => gate.problems().length === 0);
});

test('one peer cannot use up the connections of the others', async (t) => {
  const { cluster, gate, certificate, client, invite } = await startGuarded(t, { limits: { perPeer: 3 } });
  await cluster.plane.bootstrap.addPeer('us');
  const pair = await certificate('us');
  const reads = Array.from({ length: 6 }, () => client('us', pair).get('cilium/state/x'));
  const results = await Promise.allSettled(reads);
  assert.ok(results.some((result) => result.status === 'rejected'));
  assert.equal(user(gate, 'us'), 3);
  await (await invite('asia')).get('cilium/state/x');
});

function rawRequest(port: number, text: string): Promise<string> {
  return new Promise((resolve) => {
    let answer = '';
    const socket = tcpConnect(port, '127.0.0.1', () => socket.write(text));
    socket.on('data', (data) => {
      answer += data.toString('latin1');
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve(answer));
  });
}
