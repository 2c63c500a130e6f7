/** An existing CA as a cluster's own: looked at closely before anything is written. */
import { X509Certificate } from 'node:crypto';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { type CertificateAuthority, certificatesIn, isIssuedBy, isKeyOf, issueCertificate } from './certificate.ts';
import { privateDir, readPair, writePair } from './files.ts';
import { LEAST_KEY_BITS, publicKeyPem, rsaPrivateKey } from './keys.ts';
import { validityProblem } from './renewal.ts';

/**
 * Puts the CA into a PKI directory that has none; one that is there already is success. Throws `unsupported` for a key that is not
 * RSA, `invalid-argument` for what is no CA that can sign here, `conflict` when the directory has another one.
 */
export function importCa(options: {
  readonly dir: string;
  readonly certPem: string;
  readonly keyPem: string;
  readonly now?: Date;
}): void {
  const { dir, keyPem } = options;
  const now = options.now ?? new Date();
  const [certPem, ...more] = certificatesIn(options.certPem);
  if (certPem === undefined) throw refusal('the certificate file holds no PEM certificate');
  if (more.length > 0)
    throw refusal(`the certificate file holds ${more.length + 1} certificates`, 'give the CA alone, without its chain');
  const key = rsaPrivateKey(keyPem, 'the CA');
  const bits = key.asymmetricKeyDetails?.modulusLength ?? 0;
  if (bits < LEAST_KEY_BITS) throw refusal(`its key has ${bits} bits, at least ${LEAST_KEY_BITS} are needed`);
  const certificate = new X509Certificate(certPem);
  if (certificate.publicKey.asymmetricKeyType !== 'rsa' || !isKeyOf(certPem, keyPem))
    throw refusal('certificate and key do not belong together');
  if (!certificate.ca)
    throw refusal(
      `it is no CA (${certificate.subject.replaceAll('\n', ', ')})`,
      'it needs the basic constraint CA:TRUE and, where it names key usages, keyCertSign',
    );
  if (certificate.issuer !== certificate.subject || !certificate.verify(certificate.publicKey))
    throw refusal(
      `it is signed by another CA (${certificate.issuer.replaceAll('\n', ', ')})`,
      'a cluster needs a root of its own: peers trust exactly this certificate',
    );
  const validity = { notBefore: new Date(certificate.validFrom), notAfter: new Date(certificate.validTo) };
  const problem = validityProblem(validity, now.getTime(), 'it');
  if (problem !== undefined) throw refusal(problem);
  const ca: CertificateAuthority = { certPem, keyPem: key.export({ type: 'pkcs8', format: 'pem' }).toString() };
  // OpenSSL's judgement of what it would sign: key usage, names and key identifiers are in it.
  const trial = issueCertificate({ ca, kind: 'client', commonName: 'trial', publicKeyPem: publicKeyPem(keyPem), now });
  if (!isIssuedBy(trial, certPem)) throw refusal('OpenSSL does not accept what it signs');

  const present = readPair(dir, 'ca');
  if (present !== undefined && certificatesIn(present.certPem).some((pem) => pem.trim() === certPem.trim())) return;
  if (present !== undefined)
    throw new MeshError({
      code: 'conflict',
      message: `importing a CA into ${dir}: another one is there (${join(dir, 'ca.crt')})`,
      hint: 'every certificate that it has signed would be worth nothing: import into a new directory',
    });
  privateDir(dir);
  writePair(dir, 'ca', ca);
}

const refusal = (why: string, hint = 'see docs/security.md, "Certificates"') =>
  new MeshError({ code: 'invalid-argument', message: `importing a CA: ${why}`, hint });
