/**
 * The config directory of wire-contract §5.1: one YAML file per peer, named as the cluster, its certificates beside it. It is
 * the durable truth of who is peered, and laid out so that a Cilium agent could read it too.
 */
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { clusterNameProblem, MeshError } from '@clustermesh/contract';
import {
  atomicWrite,
  type ClusterFile,
  type Log,
  parseClusterFile,
  readClusterFiles,
  removeAbandonedWrites,
} from '@clustermesh/runtime';
import { parseDocument, stringify } from 'yaml';
import type { PeerConfig, PeerDirectory } from '../ports.ts';

export interface PeerDirectoryOptions {
  readonly dir: string;
  /** A file of this name is ignored, as in every cluster's copy of one shared directory. */
  readonly ownName: string;
  readonly log: Log;
}

/** Makes the directory, once: gone later, it is not taken for an empty one. */
export function createPeerDirectory({ dir, ownName, log }: PeerDirectoryOptions): PeerDirectory {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  removeAbandonedWrites(dir);
  const files = (peer: string) => ({
    config: join(dir, peer),
    cert: join(dir, `${peer}.etcd-client.crt`),
    key: join(dir, `${peer}.etcd-client.key`),
    ca: join(dir, `${peer}.etcd-client-ca.crt`),
  });
  /** Files that cannot be used, with the content that is wrong: complained about once per content, not once per pass. */
  let broken: ReadonlyMap<string, { readonly text: string; readonly reason: string }> = new Map();

  const checkPresent = (attempted: string) => {
    if (existsSync(dir)) return;
    throw new MeshError({
      code: 'not-found',
      message: `${attempted}: the directory ${dir} is gone`,
      hint: 'put it back with its content',
    });
  };

  return {
    list: async () => {
      checkPresent('listing the peers');
      const { clusters, unusable } = readClusterFiles(dir, ownName);
      const found = new Map(unusable);
      const peers: PeerConfig[] = [];
      for (const file of clusters.values()) {
        if (isOverTls(file)) peers.push(toPeer(file));
        else found.set(file.name, { text: file.text, reason: WITHOUT_TLS });
      }
      for (const [name, { text, reason }] of found)
        if (broken.get(name)?.text !== text)
          log.error({ file: join(dir, name), reason }, 'peer file ignored: it is not valid');
      broken = found;
      return peers;
    },

    unusable: () => new Map([...broken].map(([name, { reason }]) => [name, reason])),

    write: async (peer) => {
      checkName(peer.name, ownName);
      // One that held nothing but this peer would mean that all others are to go.
      checkPresent(`configuring ${peer.name}`);
      const paths = files(peer.name);
      atomicWrite(paths.ca, peer.caPem, 0o600);
      atomicWrite(paths.cert, peer.certPem, 0o600);
      atomicWrite(paths.key, peer.keyPem, 0o600);
      const text = stringify({
        endpoints: peer.endpoints,
        'trusted-ca-file': paths.ca,
        'cert-file': paths.cert,
        'key-file': paths.key,
        ...(peer.hostAliases.length > 0 ? { 'cilium-host-aliases': peer.hostAliases } : {}),
        'x-clustermesh': {
          id: peer.agreed.id,
          podCIDR: peer.agreed.podCidr,
          ...(peer.agreed.podCidrV6 === '' ? {} : { podCIDRv6: peer.agreed.podCidrV6 }),
          ...((peer.adminEndpoints ?? []).length > 0 ? { admin: peer.adminEndpoints } : {}),
        },
      });
      // Last: whoever watches the directory sees a peer only when it is whole.
      atomicWrite(paths.config, text, 0o600);
    },

    renew: async (peer, { caPem, certPem }) => {
      checkName(peer, ownName);
      const paths = files(peer);
      if (!existsSync(paths.config)) return false;
      atomicWrite(paths.ca, caPem, 0o600);
      if (certPem !== undefined) atomicWrite(paths.cert, certPem, 0o600);
      return true;
    },

    drain: async (peer) => {
      checkName(peer, ownName);
      const { config } = files(peer);
      if (!existsSync(config)) return false;
      const document = parseDocument(readFileSync(config, 'utf8'));
      // A file that was not written by us has no agreement: 0 says so.
      if (document.getIn(['x-clustermesh', 'id']) === undefined) document.setIn(['x-clustermesh', 'id'], 0);
      document.setIn(['x-clustermesh', 'draining'], true);
      atomicWrite(config, document.toString(), 0o600);
      return true;
    },

    remove: async (peer) => {
      checkName(peer, ownName);
      const paths = files(peer);
      rmSync(paths.config, { force: true });
      for (const path of [paths.cert, paths.key, paths.ca]) rmSync(path, { force: true });
    },
  };
}

/** Reads one file of the directory; throws what is wrong with it. */
export function parsePeerFile(name: string, text: string): PeerConfig {
  const file = parseClusterFile(name, text);
  if (!isOverTls(file)) throw new Error(WITHOUT_TLS);
  return toPeer(file);
}

const WITHOUT_TLS = 'trusted-ca-file, cert-file and key-file are needed: peers are read over TLS only';

type TlsFile = ClusterFile & Pick<PeerConfig, 'caFile' | 'certFile' | 'keyFile'>;

const isOverTls = (file: ClusterFile): file is TlsFile =>
  file.caFile !== undefined && file.certFile !== undefined && file.keyFile !== undefined;

const toPeer = ({ text: _, ...peer }: TlsFile): PeerConfig => peer;

/** Names become paths here, so nothing but a cluster name may pass. */
function checkName(peer: string, ownName: string): void {
  const problem = clusterNameProblem(peer) ?? (peer === ownName ? `${peer} is this cluster itself` : undefined);
  if (problem !== undefined) throw new MeshError({ code: 'invalid-argument', message: `naming a peer: ${problem}` });
}
