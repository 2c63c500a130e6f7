import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import forge from 'node-forge';

export interface TestCertificate {
  readonly certFile: string;
  readonly keyFile: string;
}

export interface TestCa {
  readonly caFile: string;
  /** `names` are DNS names or addresses. Writing the same file name again replaces the certificate. */
  issue(file: string, commonName: string, names?: readonly string[], validForMs?: number): TestCertificate;
}

const HOUR_MS = 3_600_000;

function newKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  const forged = forge.pki.privateKeyFromPem(pem);
  return { pem, forged, publicKey: forge.pki.setRsaPublicKey(forged.n, forged.e) };
}

/** A throw-away CA for tests of this room; what the project issues for real is the business of pki/. */
export function createTestCa(directory: string, name = 'test-ca'): TestCa {
  const caKey = newKey();
  const issuer = [{ name: 'commonName', value: name }];

  function certificate(subject: string, publicKey: forge.pki.rsa.PublicKey, extensions: object[], validForMs: number) {
    const cert = forge.pki.createCertificate();
    cert.publicKey = publicKey;
    cert.serialNumber = `01${randomBytes(8).toString('hex')}`;
    cert.validity.notBefore = new Date(Date.now() - 24 * HOUR_MS);
    cert.validity.notAfter = new Date(Date.now() + validForMs);
    cert.setSubject([{ name: 'commonName', value: subject }]);
    cert.setIssuer(issuer);
    cert.setExtensions(extensions);
    cert.sign(caKey.forged, forge.md.sha256.create());
    return forge.pki.certificateToPem(cert);
  }

  const caFile = join(directory, `${name}.crt`);
  writeFileSync(
    caFile,
    certificate(
      name,
      caKey.publicKey,
      [
        { name: 'basicConstraints', cA: true },
        { name: 'keyUsage', keyCertSign: true },
      ],
      HOUR_MS,
    ),
  );
  return {
    caFile,
    issue(file, commonName, names = [], validForMs = HOUR_MS) {
      const key = newKey();
      const altNames = names.map((value) => (/^[\d.]+$/.test(value) ? { type: 7, ip: value } : { type: 2, value }));
      const extensions = [
        { name: 'keyUsage', digitalSignature: true, keyEncipherment: true },
        { name: 'extKeyUsage', serverAuth: true, clientAuth: true },
        ...(altNames.length > 0 ? [{ name: 'subjectAltName', altNames }] : []),
      ];
      const certFile = join(directory, `${file}.crt`);
      const keyFile = join(directory, `${file}.key`);
      writeFileSync(certFile, certificate(commonName, key.publicKey, extensions, validForMs));
      writeFileSync(keyFile, key.pem, { mode: 0o600 });
      return { certFile, keyFile };
    },
  };
}
