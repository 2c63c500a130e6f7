/** Where `clustermesh pki init` takes an existing CA from: two files, or a secret as cert-manager writes it. */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { parse } from 'yaml';
import { z } from 'zod';

export interface CaPems {
  readonly certPem: string;
  readonly keyPem: string;
}

export function readCaFiles(certFile: string, keyFile: string): CaPems {
  return attempt(certFile, () => ({ certPem: readFileSync(certFile, 'utf8'), keyPem: readFileSync(keyFile, 'utf8') }));
}

/**
 * A secret of type kubernetes.io/tls: a directory that it is mounted at (`tls.crt`, `tls.key`), or its manifest (`kubectl get secret
 * NAME -o yaml`, or json). Its `ca.crt` names the issuer of `tls.crt`, for a root that is itself: it tells nothing that importing does
 * not find out from `tls.crt`.
 */
export function readCaSecret(path: string): CaPems {
  return attempt(path, () => {
    if (statSync(path).isDirectory())
      return {
        certPem: readFileSync(join(path, 'tls.crt'), 'utf8'),
        keyPem: readFileSync(join(path, 'tls.key'), 'utf8'),
      };
    const manifest = secretSchema.safeParse(parse(readFileSync(path, 'utf8')));
    if (!manifest.success) throw new Error('it is no secret with tls.crt and tls.key in its data');
    const { 'tls.crt': certPem, 'tls.key': keyPem } = manifest.data.data;
    return { certPem, keyPem };
  });
}

const base64 = z.string().transform((text) => Buffer.from(text, 'base64').toString('utf8'));
const secretSchema = z.object({
  kind: z.literal('Secret'),
  data: z.object({ 'tls.crt': base64, 'tls.key': base64 }),
});

function attempt(path: string, read: () => CaPems): CaPems {
  try {
    return read();
  } catch (error) {
    throw new MeshError({
      code: 'not-found',
      message: `importing a CA from ${path}: ${messageOf(error)}`,
      hint: 'give its certificate and key as --ca-cert and --ca-key, or a secret of type kubernetes.io/tls as --ca-secret',
      cause: error,
    });
  }
}
