import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import forge from 'node-forge';
import { type CertificateAuthority, isIssuedBy } from './certificate.ts';
import { ensureClusterPki } from './cluster-pki.ts';
import { readCrl } from './crl.ts';
import { importCa } from './import-ca.ts';
import { createCa, issueClient } from './issue.ts';

describe('an existing CA', () => {
  const root = mkdtempSync(join(tmpdir(), 'cm-import-'));
  after(() => rmSync(root, { recursive: true }));
  let ca: CertificateAuthority;
  let dir: string;
  let count = 0;
  before(async () => {
    ca = await createCa({ cluster: 'corp' });
  });
  beforeEach(() => {
    dir = join(root, String(count++));
  });

  /** As somebody else's tool makes it: other names, extensions as given. */
  function foreign(keyPem: string, extensions: object[], days = 100): string {
    const certificate = forge.pki.createCertificate();
    const key = forge.pki.privateKeyFromPem(keyPem);
    certificate.publicKey = forge.pki.rsa.setPublicKey(key.n, key.e);
    certificate.serialNumber = '01';
    certificate.validity.notBefore = new Date(Date.now() - 200 * 86_400_000);
    certificate.validity.notAfter = new Date(Date.now() + days * 86_400_000);
    const name = [
      { name: 'countryName', value: 'DE' },
      {
        name: 'commonName',
        value: 'Größe & Söhne Root',
        valueTagClass: forge.asn1.Type.UTF8 as unknown as forge.asn1.Class,
      },
    ];
    certificate.setSubject(name);
    certificate.setIssuer(name);
    certificate.setExtensions(extensions);
    certificate.sign(key, forge.md.sha256.create());
    return forge.pki.certificateToPem(certificate);
  }
  const IS_CA = { name: 'basicConstraints', critical: true, cA: true };
  const refusal = (certPem: string, keyPem: string): MeshError => {
    try {
      importCa({ dir, certPem, keyPem });
    } catch (error) {
      assert.ok(!existsSync(join(dir, 'ca.key')), 'nothing is written');
      return error as MeshError;
    }
    throw new Error('was imported');
  };

  it('signs what the cluster starts with; its key is kept as one of ours', async () => {
    // Newer tools shorten SHA-256 for the key identifier: leaves must name what is there, not what we would have chosen.
    const identifier = forge.asn1.create(
      0,
      forge.asn1.Type.OCTETSTRING,
      false,
      forge.util.hexToBytes('00112233445566778899'),
    );
    const certPem = foreign(ca.keyPem, [IS_CA, { id: '2.5.29.14', value: forge.asn1.toDer(identifier).getBytes() }]);
    importCa({ dir, certPem, keyPem: ca.keyPem });
    const { issued } = await ensureClusterPki({ dir, cluster: 'eu' });
    assert.ok(issued.length > 0 && !issued.some(({ file }) => file.endsWith('ca.crt')));
    for (const leaf of ['server', 'admin', 'local', 'gate'])
      assert.ok(isIssuedBy(readFileSync(join(dir, `${leaf}.crt`), 'utf8'), certPem), leaf);
    assert.equal(readCrl(readFileSync(join(dir, 'crl.pem'), 'utf8'), certPem).size, 0);
    assert.equal(statSync(join(dir, 'ca.key')).mode & 0o777, 0o600);
    importCa({ dir, certPem, keyPem: ca.keyPem });
    assert.throws(() => importCa({ dir, ...ca }), { code: 'conflict', message: /another one is there/ });
  });

  it('with an EC key is refused with that reason', () => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const error = refusal(ca.certPem, privateKey.export({ type: 'pkcs8', format: 'pem' }).toString());
    assert.equal(error.code, 'unsupported');
    assert.match(error.message, /private key of the CA: it is of type ec, only RSA keys can be used/);
  });

  it('that could not serve is refused, each with its reason, before anything is written', async () => {
    const weak = generateKeyPairSync('rsa', { modulusLength: 1024 })
      .privateKey.export({ type: 'pkcs8', format: 'pem' })
      .toString();
    const other = await createCa({ cluster: 'other' });
    const leaf = await issueClient({ ca, commonName: 'x' });
    assert.match(refusal('nonsense', ca.keyPem).message, /holds no PEM certificate/);
    assert.match(refusal(ca.certPem, 'nonsense').message, /it is no PEM private key/);
    assert.match(refusal(ca.certPem + other.certPem, ca.keyPem).message, /holds 2 certificates/);
    assert.match(refusal(ca.certPem, other.keyPem).message, /do not belong together/);
    assert.match(refusal(foreign(weak, [IS_CA]), weak).message, /1024 bits, at least 2048/);
    assert.match(refusal(leaf.certPem, leaf.keyPem).message, /it is no CA \(CN=x\)/);
    assert.match(refusal(foreign(ca.keyPem, [IS_CA], -1), ca.keyPem).message, /it expired at .* ago/);
    const signsNothing = foreign(ca.keyPem, [IS_CA, { name: 'keyUsage', critical: true, digitalSignature: true }]);
    const signsNothingRefusal = refusal(signsNothing, ca.keyPem);
    assert.match(signsNothingRefusal.message, /it is no CA/);
    assert.match(signsNothingRefusal.hint ?? '', /keyCertSign/);
  });
});
