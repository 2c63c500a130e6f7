import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:net';
import { after, before, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import { type CertificateAuthority, createCa, issueClient, issueServer } from '@clustermesh/pki';
import { type EtcdLikeServer, startEtcdLikeServer } from '../testing/etcd-like-server.ts';
import { probeEndpoints, targetOf } from './probe.ts';

describe('the preflight', () => {
  let ca: CertificateAuthority;
  let other: CertificateAuthority;
  let server: EtcdLikeServer;
  let silent: Server;
  before(async () => {
    [ca, other] = await Promise.all([createCa({ cluster: 'us' }), createCa({ cluster: 'eu' })]);
    server = await startEtcdLikeServer({ server: await issueServer({ ca }), caPem: ca.certPem });
    // Accepts and never says a word.
    silent = createServer(() => {});
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
  });
  after(async () => {
    silent.close();
    await server.close();
  });

  const hostAliases = [{ hostname: 'us.mesh.cilium.io', ips: ['127.0.0.1'] }];
  const probe = (endpoints: string[], more: Partial<Parameters<typeof probeEndpoints>[0]> = {}) =>
    probeEndpoints({ peer: 'us', endpoints, hostAliases, caPem: ca.certPem, timeoutMs: 300, ...more });
  const at = (port: number, host = 'us.mesh.cilium.io') => `https://${host}:${port}`;
  const fails = (code: string, message: RegExp) => (error: MeshError) => {
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    assert.ok((error.hint ?? '').length > 0);
    return true;
  };

  it('finds the server by its alias, and without one by its address', async () => {
    assert.equal(await probe([at(server.port)]), at(server.port));
    assert.equal(await probe([at(server.port, '127.0.0.1')]), at(server.port, '127.0.0.1'));
  });

  it('takes the first endpoint that answers', async () => {
    assert.equal(await probe([at(1), at(server.port)]), at(server.port));
  });

  it('tells whether a client certificate is accepted', async () => {
    const mine = await issueClient({ ca, commonName: 'remote-eu' });
    assert.equal(await probe([at(server.port)], { client: mine }), at(server.port));
    assert.deepEqual(server.clients, ['remote-eu']);
    const foreign = await issueClient({ ca: other, commonName: 'remote-eu' });
    await assert.rejects(probe([at(server.port)], { client: foreign }), (error: MeshError) =>
      /us\.mesh\.cilium\.io/.test(error.message),
    );
  });

  it('names every endpoint with its reason', async () => {
    await assert.rejects(
      probe([at(1), at((silent.address() as { port: number }).port)]),
      fails(
        'unreachable',
        /https:\/\/us\.mesh\.cilium\.io:1 \(127\.0\.0\.1\): connection refused.*; https:\/\/us\.mesh\.cilium\.io:\d+ \(127\.0\.0\.1\): no answer within 0\.3 s/,
      ),
    );
  });

  it('tells a stranger from an absence', async () => {
    await assert.rejects(probe([at(server.port)], { caPem: other.certPem }), fails('tls', /signed by another CA/));
    await assert.rejects(
      probe([at(server.port, 'us.example.com')], { hostAliases: [{ hostname: 'us.example.com', ips: ['127.0.0.1'] }] }),
      fails('tls', /does not carry this name/),
    );
  });

  it('refuses what is no https address', async () => {
    for (const endpoint of ['http://us:2379', 'us:2379', ''])
      await assert.rejects(probe([endpoint]), fails('invalid-argument', /it is no https:\/\/host:port address/));
    await assert.rejects(probe([]), fails('unreachable', /it advertises no endpoint/));
  });

  it('reads endpoints of all kinds', () => {
    assert.deepEqual(targetOf('https://[fd00::2]:2379', []), {
      hostname: 'fd00::2',
      port: 2379,
      addresses: ['fd00::2'],
    });
    assert.deepEqual(targetOf('https://us', hostAliases), { hostname: 'us', port: 443, addresses: ['us'] });
    assert.deepEqual(targetOf('https://a:1', [{ hostname: 'a', ips: ['1.1.1.1', '2.2.2.2'] }])?.addresses, [
      '1.1.1.1',
      '2.2.2.2',
    ]);
  });
});
