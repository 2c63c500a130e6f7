import assert from 'node:assert/strict';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { before, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import forge from 'node-forge';
import { type CertificateAuthority, certificateFacts, isIssuedBy, isKeyOf } from './certificate.ts';
import { createCsr, createKeyAndCsr, signCsr } from './csr.ts';
import { createCa } from './issue.ts';

describe('certificate requests', () => {
  let ca: CertificateAuthority;
  let mine: { readonly keyPem: string; readonly csrPem: string };
  before(async () => {
    [ca, mine] = await Promise.all([createCa({ cluster: 'eu' }), createKeyAndCsr({ commonName: 'remote-us' })]);
  });

  const refusal = (csrPem: string, expectedCommonName = 'remote-us'): MeshError => {
    try {
      signCsr({ csrPem, ca, expectedCommonName });
    } catch (error) {
      return error as MeshError;
    }
    return assert.fail('the request was signed');
  };

  it('become a client certificate for the key that stayed at home', () => {
    const certPem = signCsr({ csrPem: mine.csrPem, ca, expectedCommonName: 'remote-us' });
    assert.ok(isIssuedBy(certPem, ca.certPem));
    assert.ok(isKeyOf(certPem, mine.keyPem));
    assert.equal(certificateFacts(certPem).commonName, 'remote-us');
    assert.deepEqual(new X509Certificate(certPem).keyUsage, ['1.3.6.1.5.5.7.3.2'], 'client authentication only');
  });

  it('are the same bytes for the same key', () => {
    assert.equal(createCsr({ keyPem: mine.keyPem, commonName: 'remote-us' }), mine.csrPem);
    assert.doesNotMatch(mine.csrPem, /PRIVATE/);
  });

  it('are refused under any other name', () => {
    const admin = createCsr({ keyPem: mine.keyPem, commonName: 'admin-eu' });
    const error = refusal(admin);
    assert.equal(error.code, 'invalid-argument');
    assert.match(error.message, /signing the certificate request for remote-us: its common name is "admin-eu"/);
    assert.match(refusal(mine.csrPem, 'remote-ap').message, /common name is "remote-us"/);
  });

  it('are refused with two common names', () => {
    const request = forge.pki.createCertificationRequest();
    const key = forge.pki.privateKeyFromPem(mine.keyPem);
    request.publicKey = forge.pki.rsa.setPublicKey(key.n, key.e);
    request.setSubject([
      { name: 'commonName', value: 'remote-us' },
      { name: 'commonName', value: 'admin-eu' },
    ]);
    request.sign(key, forge.md.sha256.create());
    assert.match(refusal(forge.pki.certificationRequestToPem(request)).message, /common name/);
  });

  it('are refused when the signature does not prove possession of the key', async () => {
    const other = await createKeyAndCsr({ commonName: 'remote-us' });
    const request = forge.pki.certificationRequestFromPem(mine.csrPem);
    request.publicKey = forge.pki.certificationRequestFromPem(other.csrPem).publicKey;
    (request as unknown as { certificationRequestInfo: unknown }).certificationRequestInfo = undefined;
    assert.match(refusal(forge.pki.certificationRequestToPem(request)).message, /its signature is wrong/);
  });

  it('are refused with a weak key or a weak hash', () => {
    const weak = generateKeyPairSync('rsa', { modulusLength: 1024 })
      .privateKey.export({ type: 'pkcs8', format: 'pem' })
      .toString();
    assert.match(
      refusal(createCsr({ keyPem: weak, commonName: 'remote-us' })).message,
      /its key has 1024 bits, at least 2048/,
    );
    const key = forge.pki.privateKeyFromPem(mine.keyPem);
    const request = forge.pki.certificationRequestFromPem(mine.csrPem);
    request.sign(key, forge.md.sha1.create());
    assert.match(refusal(forge.pki.certificationRequestToPem(request)).message, /only RSA with SHA-256/);
  });

  it('are refused when they are no requests at all', () => {
    assert.match(refusal('nonsense').message, /cannot be read/);
    assert.match(refusal(ca.certPem).message, /cannot be read/);
  });

  it('do not decide what the certificate may do', () => {
    const key = forge.pki.privateKeyFromPem(mine.keyPem);
    const request = forge.pki.createCertificationRequest();
    request.publicKey = forge.pki.rsa.setPublicKey(key.n, key.e);
    request.setSubject([{ name: 'commonName', value: 'remote-us' }]);
    const extensions = [
      { name: 'basicConstraints', cA: true },
      { name: 'subjectAltName', altNames: [{ type: 2, value: 'eu.mesh.cilium.io' }] },
    ];
    (request as unknown as { setAttributes(a: unknown[]): void }).setAttributes([
      { name: 'extensionRequest', extensions },
    ]);
    request.sign(key, forge.md.sha256.create());
    const facts = certificateFacts(
      signCsr({ csrPem: forge.pki.certificationRequestToPem(request), ca, expectedCommonName: 'remote-us' }),
    );
    assert.equal(facts.isCa, false);
    assert.deepEqual(facts.dnsNames, []);
  });

  it('are signed by an RSA CA only: an imported one with an EC key is refused with that reason', () => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const keyPem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
    assert.throws(() => signCsr({ csrPem: mine.csrPem, ca: { ...ca, keyPem }, expectedCommonName: 'remote-us' }), {
      code: 'unsupported',
      message: /of type ec, only RSA keys can be used/,
    });
  });
});
