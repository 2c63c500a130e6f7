/**
 * What a connect holds between its steps, on disk and never in a job: the private key for the peer (which does not leave this
 * cluster) and the certificate that the peer's CA made of its request.
 *
 *   <stateDir>/pending/<peer>/client.key   0600
 *   <stateDir>/pending/<peer>/client.crt
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { clusterNameProblem, MeshError } from '@clustermesh/contract';
import { certificateFacts, createCsr, createKeyAndCsr, isKeyOf, remoteUser } from '@clustermesh/pki';
import { atomicWrite } from '@clustermesh/runtime';

export interface PendingCredentials {
  readonly keyPem: string;
  readonly certPem: string;
}

export interface PendingStore {
  /** The request for our certificate at `peer`; its key is made on first use and kept. */
  request(peer: string): Promise<string>;
  /** Whether a key for `peer` has been made and not been cleared. */
  isWaiting(peer: string): boolean;
  /** Keeps what the peer's CA signed, after checking that it is for our key and our name. */
  supply(peer: string, certPem: string): void;
  /** Undefined until both halves are there. */
  credentials(peer: string): PendingCredentials | undefined;
  clear(peer: string): void;
  /** Clears what has not been touched for so long; returns the peers. */
  sweep(olderThanMs: number): readonly string[];
}

export function createPendingStore(options: { readonly stateDir: string; readonly cluster: string }): PendingStore {
  const commonName = remoteUser(options.cluster);
  /** Two calls at once must not make two keys. */
  const making = new Map<string, Promise<string>>();

  function files(peer: string): { readonly dir: string; readonly key: string; readonly cert: string } {
    const problem = clusterNameProblem(peer);
    if (problem !== undefined) throw new MeshError({ code: 'invalid-argument', message: `naming a peer: ${problem}` });
    const dir = join(options.stateDir, 'pending', peer);
    return { dir, key: join(dir, 'client.key'), cert: join(dir, 'client.crt') };
  }

  async function makeRequest(peer: string): Promise<string> {
    const paths = files(peer);
    if (existsSync(paths.key)) return createCsr({ keyPem: readFileSync(paths.key, 'utf8'), commonName });
    mkdirSync(paths.dir, { recursive: true, mode: 0o700 });
    const { keyPem, csrPem } = await createKeyAndCsr({ commonName });
    rmSync(paths.cert, { force: true });
    atomicWrite(paths.key, keyPem, 0o600);
    return csrPem;
  }

  return {
    request: (peer) => {
      const running = making.get(peer) ?? makeRequest(peer).finally(() => making.delete(peer));
      making.set(peer, running);
      return running;
    },
    isWaiting: (peer) => existsSync(files(peer).key),
    supply: (peer, certPem) => {
      const paths = files(peer);
      const attempted = `taking the certificate that ${peer} signed`;
      if (!existsSync(paths.key)) {
        throw new MeshError({
          code: 'not-found',
          message: `${attempted}: no connect to ${peer} is waiting for one`,
          hint: 'start with: clustermesh connect',
        });
      }
      const facts = certificateFacts(certPem, `${commonName} from ${peer}`);
      if (facts.commonName !== commonName) {
        throw new MeshError({
          code: 'invalid-argument',
          message: `${attempted}: it is for ${facts.commonName}, expected ${commonName}`,
        });
      }
      if (!isKeyOf(certPem, readFileSync(paths.key, 'utf8'))) {
        throw new MeshError({
          code: 'invalid-argument',
          message: `${attempted}: it was made for another key`,
          hint: 'run clustermesh connect again, so that a fresh request is signed',
        });
      }
      atomicWrite(paths.cert, certPem, 0o600);
    },
    credentials: (peer) => {
      const paths = files(peer);
      if (!existsSync(paths.key) || !existsSync(paths.cert)) return undefined;
      return { keyPem: readFileSync(paths.key, 'utf8'), certPem: readFileSync(paths.cert, 'utf8') };
    },
    sweep: (olderThanMs) => {
      const root = join(options.stateDir, 'pending');
      if (!existsSync(root)) return [];
      return readdirSync(root).filter((peer) => {
        const dir = join(root, peer);
        // A file that is written anew touches its directory.
        if (Date.now() - statSync(dir).mtimeMs < olderThanMs) return false;
        rmSync(dir, { recursive: true, force: true });
        return true;
      });
    },
    clear: (peer) => rmSync(files(peer).dir, { recursive: true, force: true }),
  };
}
