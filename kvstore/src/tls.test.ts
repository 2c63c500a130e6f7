import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { Client, credentials } from '@grpc/grpc-js';
import { rpc } from './proto.ts';
import { startReflector } from './reflector.ts';
import { createTestCa, type TestCa, type TestCertificate } from './testing/certs.ts';
import { type EtcdServer, startEtcd } from './testing/etcd-server.ts';
import { memorySink } from './testing/memory-sink.ts';
import type { Etcd, EtcdOptions } from './types.ts';

const HOSTNAME = 'eu.mesh.cilium.io';

describe('etcd client over mutual TLS', { timeout: 60_000 }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'cm-kv-tls-'));
  let ca: TestCa;
  let server: EtcdServer;
  let serverCertificate: TestCertificate;

  const as = (certificate: TestCertificate, options: Partial<EtcdOptions> = {}): Etcd =>
    server.client({
      endpoints: [`https://${HOSTNAME}:${server.port}`],
      hostAliases: [{ hostname: HOSTNAME, ips: ['127.0.0.1'] }],
      caFile: ca.caFile,
      ...certificate,
      ...options,
    });

  before(async () => {
    ca = createTestCa(directory);
    serverCertificate = ca.issue('server', 'etcd', [HOSTNAME, '127.0.0.1']);
    server = await startEtcd({ tls: { caFile: ca.caFile, ...serverCertificate } });
  });
  after(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });

  it('connects to an aliased name, and to an address by its certificate name or address', async () => {
    const admin = ca.issue('admin', 'root');
    await as(admin).put('a', '1');
    const byAddress = as(admin, { endpoints: [server.endpoint] });
    assert.equal((await byAddress.get('a'))!.value.toString(), '1');
    const unaliased = as(admin, { endpoints: [server.endpoint], hostAliases: [] });
    assert.equal((await unaliased.get('a'))!.value.toString(), '1');
  });

  it('rejects a server whose certificate has another name, and says so', async () => {
    const client = as(ca.issue('admin', 'root'), {
      endpoints: [`https://us.mesh.cilium.io:${server.port}`],
      hostAliases: [{ hostname: 'us.mesh.cilium.io', ips: ['127.0.0.1'] }],
    });
    await assert.rejects(client.get('a'), { code: 'tls', message: /us\.mesh\.cilium\.io.*altnames/ });
  });

  it('rejects a server of another CA, and says so', async () => {
    const other = createTestCa(directory, 'other-ca');
    await assert.rejects(as(ca.issue('admin', 'root'), { caFile: other.caFile }).get('a'), {
      code: 'tls',
      message: /certificate/,
    });
  });

  it('is refused without a certificate of the CA, and the error points at it', async () => {
    const other = createTestCa(directory, 'stranger-ca');
    for (const client of [
      as(other.issue('stranger', 'root')),
      as({ certFile: undefined, keyFile: undefined } as unknown as TestCertificate),
    ]) {
      await assert.rejects(client.get('a'), (error: MeshError) => {
        assert.equal(error.code, 'tls', error.message);
        assert.ok(error.hint);
        return true;
      });
    }
  });

  it('says when its own certificate has expired', async () => {
    const expired = ca.issue('expired', 'root', [], -3_600_000);
    await assert.rejects(as(expired).get('a'), { code: 'tls' });
  });

  it('recovers without a restart when the certificate on disk is replaced', async () => {
    const certificate = ca.issue('renewed', 'root', [], -3_600_000);
    const client = as(certificate);
    await assert.rejects(client.get('a'), { code: 'tls' });
    ca.issue('renewed', 'root');
    await client.get('a');
  });

  it('a missing certificate file is named', async () => {
    const client = as({ certFile: join(directory, 'nowhere.crt'), keyFile: join(directory, 'nowhere.key') });
    await assert.rejects(client.get('a'), { code: 'tls', message: /reading the client (key|certificate) .*nowhere/ });
  });

  describe('with users and roles', () => {
    let admin: Etcd;
    before(async () => {
      admin = as(ca.issue('admin', 'root'));
      // Twice: the bootstrap may be repeated after dying anywhere.
      for (let i = 0; i < 2; i++) {
        assert.equal(await admin.auth.isEnabled(), i === 1);
        await admin.auth.addUser('root');
        await admin.auth.addRole('root');
        await admin.auth.grantRole('root', 'root');
        await admin.auth.addRole('remote');
        await admin.auth.grantPermission('remote', 'read', 'cilium/state/', 'prefix');
        await admin.auth.grantPermission('remote', 'read', 'cilium/cluster-config/eu', 'key');
        await admin.auth.addUser('remote-us');
        await admin.auth.grantRole('remote-us', 'remote');
        await admin.auth.enable();
      }
      await admin.put('cilium/state/a', '1');
      await admin.put('cilium/cluster-config/eu', '{}');
    });

    it('nobody can log in as a user with a password, not even an empty one', async () => {
      const { path, requestSerialize, responseDeserialize } = rpc('Auth.Authenticate');
      const { certFile, keyFile } = ca.issue('anybody', 'anybody');
      const [root, key, cert] = [ca.caFile, keyFile, certFile].map((file) => readFileSync(file));
      const raw = new Client(`127.0.0.1:${server.port}`, credentials.createSsl(root, key, cert), {
        'grpc.ssl_target_name_override': HOSTNAME,
      });
      const login = new Promise((resolve, reject) =>
        raw.makeUnaryRequest(
          path,
          requestSerialize,
          responseDeserialize,
          { name: 'root', password: '' },
          (error, token) => (error === null ? resolve(token) : reject(error)),
        ),
      );
      await assert.rejects(login, /authentication failed/);
      raw.close();
    });

    it('lists what was set up', async () => {
      assert.deepEqual((await admin.auth.listUsers()).sort(), ['remote-us', 'root']);
      assert.deepEqual((await admin.auth.listRoles()).sort(), ['remote', 'root']);
      assert.deepEqual(await admin.auth.userRoles('remote-us'), ['remote']);
      assert.deepEqual(await admin.auth.listPermissions('remote'), [
        { permission: 'read', key: 'cilium/cluster-config/eu', rangeEnd: '' },
        { permission: 'read', key: 'cilium/state/', rangeEnd: 'cilium/state0' },
      ]);
    });

    it('a peer reads what its role grants, and is told plainly that it may do no more', async () => {
      const peer = as(ca.issue('peer', 'remote-us'));
      assert.equal((await peer.range('cilium/state/')).kvs.length, 1);
      assert.ok(await peer.get('cilium/cluster-config/eu'));
      const denied = { code: 'etcd-permission', hint: /common name of the client certificate is the etcd user/ };
      await assert.rejects(peer.get('cilium/cache/x'), {
        ...denied,
        message: /reading cilium\/cache\/x: .*permission denied/,
      });
      await assert.rejects(peer.put('cilium/state/a', '2'), {
        ...denied,
        message: /writing cilium\/state\/a: .*permission denied/,
      });
      await assert.rejects(peer.deletePrefix('cilium/state/'), denied);
      const watch = peer.watch({
        prefix: 'clustermesh/',
        startRevision: 1,
        signal: new AbortController().signal,
        onEvents: () => {},
      });
      await assert.rejects(watch, {
        ...denied,
        message: /watching clustermesh\/ from revision 1: .*permission denied/,
      });
      await assert.rejects(peer.auth.addUser('mallory'), { code: 'etcd-permission' });
    });

    it('a reflector without the right says so, goes on trying, and starts when it is granted', async () => {
      const peer = as(ca.issue('peer', 'remote-us'));
      const stop = new AbortController();
      const sink = memorySink();
      const backoff = { minMs: 20, maxMs: 50 };
      await admin.put('granted/a', '1');
      const reflector = startReflector({
        etcd: peer,
        prefix: 'granted/',
        sink,
        log: silentLog(),
        signal: stop.signal,
        backoff,
      });
      await waitFor(() => /permission denied/.test(reflector.status().lastError ?? ''), {
        what: 'the reason',
        timeoutMs: 5000,
      });
      await admin.auth.grantPermission('remote', 'read', 'granted/', 'prefix');
      await reflector.waitSynced();
      assert.deepEqual(sink.contents(), { 'granted/a': '1' });
      stop.abort();
      await reflector.done;
      await admin.auth.revokePermission('remote', 'granted/', 'prefix');
      await admin.auth.revokePermission('remote', 'granted/', 'prefix');
    });

    it('a certificate that is replaced on disk counts from the next connection on', async () => {
      const client = as(ca.issue('changing', 'remote-us'));
      await assert.rejects(client.put('changing', '1'), { code: 'etcd-permission' });
      ca.issue('changing', 'root');
      await assert.rejects(client.put('changing', '1'), { code: 'etcd-permission' });
      client.reconnect('certificate renewed');
      await client.put('changing', '1');
    });

    it('a user that was deleted reads nothing any more', async () => {
      const peer = as(ca.issue('gone', 'remote-gone'));
      await admin.auth.addUser('remote-gone');
      await admin.auth.grantRole('remote-gone', 'remote');
      await peer.get('cilium/state/a');
      await admin.auth.deleteUser('remote-gone');
      await admin.auth.deleteUser('remote-gone');
      await assert.rejects(peer.get('cilium/state/a'), { code: 'etcd-permission' });
    });

    it('auth can be switched off and on again', async () => {
      await admin.auth.disable();
      await admin.auth.disable();
      assert.equal(await admin.auth.isEnabled(), false);
      await admin.auth.enable();
      assert.equal(await admin.auth.isEnabled(), true);
    });
  });
});
