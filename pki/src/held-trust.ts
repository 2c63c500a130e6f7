/** What a reader of a cluster's etcd holds of the cluster's CAs: told to the cluster, which replaces a CA when all hold the next. */
import { readFileSync, statSync } from 'node:fs';
import type { HeldTrust } from '@clustermesh/contract';
import { certificateFacts, certificatesIn, isIssuedBy } from './certificate.ts';

export interface HeldFiles {
  readonly caFile: string;
  readonly certFile: string;
}

export function heldTrust(pems: { readonly caPem: string; readonly certPem: string }): HeldTrust {
  const cas = certificatesIn(pems.caPem);
  const signing = cas.find((ca) => isIssuedBy(pems.certPem, ca));
  return {
    trustedCas: cas.map((ca) => certificateFacts(ca).fingerprint),
    signedBy: signing === undefined ? '' : certificateFacts(signing).fingerprint,
  };
}

/** The same of files, read again when they change; undefined while they cannot be read. */
export function trustView(files: HeldFiles): () => HeldTrust | undefined {
  let seen = '';
  let held: HeldTrust | undefined;
  return () => {
    try {
      const now = [files.caFile, files.certFile]
        .map((file) => `${statSync(file).ino} ${statSync(file).mtimeMs}`)
        .join();
      if (now === seen) return held;
      held = heldTrust({ caPem: readFileSync(files.caFile, 'utf8'), certPem: readFileSync(files.certFile, 'utf8') });
      seen = now;
    } catch {
      held = undefined;
      seen = '';
    }
    return held;
  };
}
