import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, createPublicKey, X509Certificate } from 'node:crypto';
import { before, describe, it } from 'node:test';
import { connect, createServer, type TLSSocket } from 'node:tls';
import {
  type CertificateAuthority,
  certificateFacts,
  isIssuedBy,
  isKeyOf,
  type KeyAndCertificate,
} from './certificate.ts';
import { createCa, issueClient, issueServer } from './issue.ts';

interface Handshake {
  readonly clientError: string | undefined;
  /** Common name that the server saw, or why it refused. */
  readonly server: string;
}

/** One real handshake: server of `server`, client with `client`, both verifying. */
async function handshake(options: {
  readonly server: KeyAndCertificate;
  readonly serverTrusts: string;
  readonly client?: KeyAndCertificate;
  readonly clientTrusts: string;
  readonly servername: string;
}): Promise<Handshake> {
  const listener = createServer({
    cert: options.server.certPem,
    key: options.server.keyPem,
    ca: options.serverTrusts,
    requestCert: true,
    rejectUnauthorized: true,
  });
  const seen = new Promise<string>((resolve) => {
    listener.once('secureConnection', (socket: TLSSocket) => {
      socket.on('error', () => {});
      resolve(String(socket.getPeerCertificate().subject.CN));
      socket.end('ok');
    });
    listener.once('tlsClientError', (error) => resolve(`refused: ${(error as NodeJS.ErrnoException).code}`));
  });
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  const { port } = listener.address() as { port: number };
  const socket = connect({
    host: '127.0.0.1',
    port,
    servername: options.servername,
    ca: options.clientTrusts,
    ...(options.client === undefined ? {} : { cert: options.client.certPem, key: options.client.keyPem }),
  });
  // TLS 1.3 tells a client only after its handshake that its certificate was refused: read to the end.
  const clientError = await new Promise<string | undefined>((resolve) => {
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.once('end', () => resolve(undefined));
    socket.resume();
  });
  const server = await seen;
  socket.destroy();
  await new Promise<void>((resolve) => listener.close(() => resolve()));
  return { clientError, server };
}

describe('certificates', () => {
  let eu: CertificateAuthority;
  let us: CertificateAuthority;
  let server: KeyAndCertificate;
  let client: KeyAndCertificate;
  before(async () => {
    [eu, us] = await Promise.all([createCa({ cluster: 'eu' }), createCa({ cluster: 'us' })]);
    [server, client] = await Promise.all([
      issueServer({ ca: eu, ips: ['172.31.1.2'], dnsNames: ['eu.example.com'] }),
      issueClient({ ca: eu, commonName: 'remote-us' }),
    ]);
  });

  it('have a chain that OpenSSL verifies', () => {
    const ca = new X509Certificate(eu.certPem);
    assert.equal(ca.ca, true);
    assert.ok(ca.checkIssued(ca) && ca.verify(ca.publicKey), 'the CA is self-signed');
    for (const leaf of [server, client]) {
      const certificate = new X509Certificate(leaf.certPem);
      assert.equal(certificate.ca, false);
      assert.ok(certificate.checkIssued(ca), 'issuer name and key identifier point at the CA');
      assert.ok(certificate.verify(ca.publicKey));
      assert.ok(isIssuedBy(leaf.certPem, eu.certPem));
      assert.ok(!isIssuedBy(leaf.certPem, us.certPem));
      assert.ok(isKeyOf(leaf.certPem, leaf.keyPem));
    }
    assert.ok(!isKeyOf(server.certPem, client.keyPem));
  });

  it('carry positive serial numbers that differ', () => {
    const serials = [eu, us, server, client].map(({ certPem }) => new X509Certificate(certPem).serialNumber);
    assert.equal(new Set(serials).size, serials.length);
    for (const serial of serials) assert.match(serial, /^[4-7][0-9A-F]{31}$/);
  });

  it('name their own key and that of their issuer', () => {
    const identifiers = (certPem: string) => {
      const args = ['x509', '-noout', '-ext', 'subjectKeyIdentifier,authorityKeyIdentifier'];
      const text = execFileSync('openssl', args, { input: certPem, encoding: 'utf8' });
      const [, own] = /Subject Key Identifier: *\n *([0-9A-F:]+)/.exec(text) ?? [];
      const [, issuer] = /Authority Key Identifier: *\n *(?:keyid:)?([0-9A-F:]+)/.exec(text) ?? [];
      assert.ok(own !== undefined && issuer !== undefined, text);
      return { own, issuer };
    };
    const ca = identifiers(eu.certPem);
    assert.equal(ca.issuer, ca.own);
    assert.notEqual(identifiers(us.certPem).own, ca.own);
    for (const leaf of [server, client]) {
      assert.equal(identifiers(leaf.certPem).issuer, ca.own);
      assert.notEqual(identifiers(leaf.certPem).own, ca.own);
      // RFC 5280 §4.2.1.2 (1): SHA-1 of the public key's bits.
      const der = createPublicKey(leaf.keyPem).export({ type: 'pkcs1', format: 'der' });
      const digest = createHash('sha1').update(der).digest('hex').toUpperCase();
      assert.equal(identifiers(leaf.certPem).own.replaceAll(':', ''), digest);
    }
  });

  it('have RSA keys: 3072 bits for a CA, 2048 for a leaf', () => {
    const bits = ({ certPem }: { readonly certPem: string }) =>
      new X509Certificate(certPem).publicKey.asymmetricKeyDetails?.modulusLength;
    assert.deepEqual([eu, us, server, client].map(bits), [3072, 3072, 2048, 2048]);
  });

  it('tell their facts', () => {
    const facts = certificateFacts(server.certPem);
    assert.equal(facts.commonName, 'clustermesh-apiserver.cilium.io');
    assert.deepEqual(facts.dnsNames, [
      'clustermesh-apiserver.cilium.io',
      '*.mesh.cilium.io',
      'clustermesh-apiserver.kube-system.svc',
      'localhost',
      'eu.example.com',
    ]);
    assert.deepEqual(facts.ips, ['127.0.0.1', '0:0:0:0:0:0:0:1', '172.31.1.2']);
    assert.match(facts.fingerprint, /^[0-9a-f]{64}$/);
    const days = (facts.notAfter.getTime() - Date.now()) / 86_400_000;
    assert.ok(days > 1094 && days < 1096, `valid for ${days} days`);
    assert.ok(facts.notBefore.getTime() < Date.now() - 60_000, 'valid for a peer whose clock is behind');
  });

  it('make a mutual handshake under the mesh name, and the server sees the user', async () => {
    const result = await handshake({
      server,
      serverTrusts: eu.certPem,
      client,
      clientTrusts: eu.certPem,
      servername: 'eu.mesh.cilium.io',
    });
    assert.deepEqual(result, { clientError: undefined, server: 'remote-us' });
  });

  it('refuse a client without a certificate', async () => {
    const result = await handshake({
      server,
      serverTrusts: eu.certPem,
      clientTrusts: eu.certPem,
      servername: 'eu.mesh.cilium.io',
    });
    assert.match(result.server, /^refused/);
    assert.notEqual(result.clientError, undefined);
  });

  it('refuse a client certificate of another CA', async () => {
    const stranger = await issueClient({ ca: us, commonName: 'remote-us' });
    const result = await handshake({
      server,
      serverTrusts: eu.certPem,
      client: stranger,
      clientTrusts: eu.certPem,
      servername: 'eu.mesh.cilium.io',
    });
    assert.match(result.server, /^refused/);
  });

  it('refuse a server of another CA', async () => {
    const result = await handshake({
      server,
      serverTrusts: eu.certPem,
      client,
      clientTrusts: us.certPem,
      servername: 'eu.mesh.cilium.io',
    });
    assert.match(result.clientError ?? '', /SELF_SIGNED|UNABLE_TO_(VERIFY|GET)/);
  });

  it('refuse a server name that the certificate does not carry', async () => {
    const result = await handshake({
      server,
      serverTrusts: eu.certPem,
      client,
      clientTrusts: eu.certPem,
      servername: 'eu.mesh.example.com',
    });
    assert.equal(result.clientError, 'ERR_TLS_CERT_ALTNAME_INVALID');
  });

  it('keep a client certificate from serving', async () => {
    const result = await handshake({
      server: client,
      serverTrusts: eu.certPem,
      client,
      clientTrusts: eu.certPem,
      servername: 'eu.mesh.cilium.io',
    });
    assert.equal(result.clientError, 'INVALID_PURPOSE');
  });
});
