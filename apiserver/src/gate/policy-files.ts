/** The gate's view of users.yaml, crl.pem and its certificates: read when they change, and the last good one kept while they are broken. */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext, type SecureContextOptions } from 'node:tls';
import { MeshError, messageOf } from '@clustermesh/contract';
import { certificatesIn, readCrl } from '@clustermesh/pki';
import { readUsersFile } from '../bootstrap/users.ts';
import type { Policy } from './admission.ts';
import type { GateConfig } from './config.ts';

export interface GateFiles {
  readonly policy: Policy;
  /** For peers. */
  readonly server: SecureContextOptions;
  /** Those of `server`: whose certificates are accepted. */
  readonly cas: readonly X509Certificate[];
  /** Towards etcd. */
  readonly upstream: SecureContextOptions;
}

export interface FilesRead {
  /** Undefined while nothing could be read whole. */
  readonly files: GateFiles | undefined;
  readonly changed: boolean;
  readonly problems: readonly string[];
}

/**
 * Returns a function that reads all of it anew; unchanged content gives the very object of before. A list of users or of
 * revocations that is missing or broken keeps the last one: neither does it let anybody in, nor does it throw everybody out.
 */
export function gateFiles(config: GateConfig): () => FilesRead {
  let last: GateFiles | undefined;
  let lastText = '';
  return () => {
    const problems: string[] = [];
    const attempt = <T>(what: string, read: () => T, fallback: T): T => {
      try {
        return read();
      } catch (error) {
        problems.push(`${what}: ${messageOf(error)}`);
        return fallback;
      }
    };
    const server = attempt('TLS of the gate', () => secureContext(config.tls, 'server'), last?.server);
    const upstream = attempt('TLS towards etcd', () => secureContext(config.etcd, 'client'), last?.upstream);
    const ca = server?.ca as string | undefined;
    const users = readUsersFile(config.usersFile);
    problems.push(...users.problems);
    if (users.isMissing === true && last !== undefined && last.policy.users.size > 0)
      problems.push(`${config.usersFile} is missing; the users it named last keep their access`);
    const revoked = attempt<ReadonlySet<string> | undefined>(
      config.crlFile,
      () => readCrl(readFileSync(config.crlFile, 'utf8'), ca ?? ''),
      last?.policy.revoked,
    );
    // Nobody is let in before it is known who is not.
    if (server === undefined || upstream === undefined || revoked === undefined)
      return { files: last, changed: false, problems };
    const named = users.users === undefined ? last?.policy.users : new Set(users.users);
    const policy: Policy = { authMode: config.authMode, users: named ?? new Set(), revoked };
    const text = JSON.stringify([server, upstream, [...policy.users], [...revoked]]);
    if (text === lastText && last !== undefined) return { files: last, changed: false, problems };
    lastText = text;
    last = { policy, server, cas: certificatesIn(ca ?? '').map((pem) => new X509Certificate(pem)), upstream };
    return { files: last, changed: true, problems };
  };
}

function secureContext(
  files: { readonly caFile: string; readonly certFile: string; readonly keyFile: string },
  side: 'server' | 'client',
): SecureContextOptions {
  const options: SecureContextOptions = {
    ca: readFileSync(files.caFile, 'utf8'),
    cert: readFileSync(files.certFile, 'utf8'),
    key: readFileSync(files.keyFile, 'utf8'),
    minVersion: 'TLSv1.2',
  };
  try {
    createSecureContext(options);
  } catch (error) {
    // Half of a pair that is being replaced looks like this; the next look finds both.
    throw new MeshError({
      code: 'tls',
      message: `loading the ${side} certificate ${files.certFile} with its key: ${messageOf(error)}`,
      cause: error,
    });
  }
  return options;
}
