/** Key and certificate pairs on disk: `<dir>/<name>.key` (0600) and `<dir>/<name>.crt`. */
import { chmodSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { atomicWrite } from '@clustermesh/runtime';
import { type CertificateAuthority, certificatesIn, isKeyOf, type KeyAndCertificate } from './certificate.ts';

/** Reads a cluster's CA, to sign with: of the trusted ones in ca.crt, the one that ca.key belongs to. */
export function loadCa(dir: string): CertificateAuthority {
  const pair = readPair(dir, 'ca');
  if (pair === undefined) {
    throw new MeshError({
      code: 'not-found',
      message: `reading the CA in ${dir}: ca.crt and ca.key are not both there`,
      hint: 'the PKI directory is made when the cluster is set up',
    });
  }
  const certificates = certificatesIn(pair.certPem);
  // One alone may be torn, or belong to another key: whoever uses it says so.
  const certPem =
    certificates.length < 2 ? pair.certPem : certificates.find((certificate) => isKeyOf(certificate, pair.keyPem));
  if (certPem === undefined) {
    throw new MeshError({
      code: 'tls',
      message: `reading the CA in ${dir}: ca.key belongs to none of the certificates in ca.crt`,
      hint: 'put both files back from the same backup',
    });
  }
  return { certPem, keyPem: pair.keyPem };
}

/** All the CAs that are trusted: one, or two while a rotation goes on. */
export function loadCaBundle(dir: string): string {
  return readFileSync(join(dir, 'ca.crt'), 'utf8');
}

export function privateDir(dir: string): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  chmodSync(dir, 0o700);
}

/** A key without its certificate (or the other way round) is as good as nothing. */
export function readPair(dir: string, name: string): KeyAndCertificate | undefined {
  const key = join(dir, `${name}.key`);
  const cert = join(dir, `${name}.crt`);
  if (!existsSync(key) || !existsSync(cert)) return undefined;
  return { keyPem: readFileSync(key, 'utf8'), certPem: readFileSync(cert, 'utf8') };
}

export function writePair(dir: string, name: string, pair: KeyAndCertificate): void {
  atomicWrite(join(dir, `${name}.key`), pair.keyPem, 0o600);
  atomicWrite(join(dir, `${name}.crt`), pair.certPem, 0o644);
}
