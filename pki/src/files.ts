/** Key and certificate pairs on disk: `<dir>/<name>.key` (0600) and `<dir>/<name>.crt`. */
import { chmodSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { atomicWrite } from '@clustermesh/runtime';
import type { CertificateAuthority, KeyAndCertificate } from './certificate.ts';

/** Reads a cluster's CA, to sign with. */
export function loadCa(dir: string): CertificateAuthority {
  const ca = readPair(dir, 'ca');
  if (ca === undefined) {
    throw new MeshError({
      code: 'not-found',
      message: `reading the CA in ${dir}: ca.crt and ca.key are not both there`,
      hint: 'the PKI directory is made when the cluster is set up',
    });
  }
  return ca;
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
