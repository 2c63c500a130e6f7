/**
 * The config directory of wire-contract §5.1: one YAML file per peer, named as the cluster, its certificates beside it. It is
 * the durable truth of who is peered, and laid out so that a Cilium agent could read it too.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { clusterNameProblem, MeshError, messageOf, parseCidr } from '@clustermesh/contract';
import { atomicWrite, type Log, removeAbandonedWrites } from '@clustermesh/runtime';
import { parse, parseDocument, stringify } from 'yaml';
import { z } from 'zod';
import type { PeerConfig, PeerDirectory } from '../ports.ts';

/** Foreign keys are allowed: the file is etcd's client configuration, which has more options than we use. */
const fileSchema = z.looseObject({
  endpoints: z.array(z.string().min(1)).min(1),
  'trusted-ca-file': z.string().min(1),
  'cert-file': z.string().min(1),
  'key-file': z.string().min(1),
  'cilium-host-aliases': z
    .array(z.looseObject({ hostname: z.string().min(1), ips: z.array(z.string().min(1)) }))
    .default([]),
  /** Ours; Cilium's reader ignores it. */
  'x-clustermesh': z
    .looseObject({
      id: z.number().int(),
      podCIDR: z
        .string()
        .refine((text) => text === '' || parseCidr(text) !== undefined, 'is no CIDR')
        .default(''),
      draining: z.boolean().optional(),
    })
    .optional(),
});

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
  /** Files that were complained about, with the content that was wrong: once per content, not once per pass. */
  const complained = new Map<string, string>();

  function read(name: string): PeerConfig | undefined {
    const path = join(dir, name);
    if (!statSync(path).isFile()) return undefined;
    const text = readFileSync(path, 'utf8');
    if (!text.includes('endpoints:')) return undefined;
    try {
      const problem = clusterNameProblem(name);
      if (problem !== undefined) throw new Error(problem);
      const peer = parsePeerFile(name, text);
      complained.delete(name);
      return peer;
    } catch (error) {
      if (complained.get(name) !== text)
        log.error({ file: path, reason: messageOf(error) }, 'peer file ignored: it is not valid');
      complained.set(name, text);
      return undefined;
    }
  }

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
      const names = readdirSync(dir).filter((name) => !name.startsWith('..') && name !== ownName);
      return names
        .sort()
        .map((name) => {
          try {
            return read(name);
          } catch (error) {
            // Removed between the listing and the reading.
            if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
            throw error;
          }
        })
        .filter((peer) => peer !== undefined);
    },

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
        'x-clustermesh': { id: peer.agreed.id, podCIDR: peer.agreed.podCidr },
      });
      // Last: whoever watches the directory sees a peer only when it is whole.
      atomicWrite(paths.config, text, 0o600);
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
  const parsed = fileSchema.safeParse(parse(text));
  if (!parsed.success) {
    throw new Error(
      parsed.error.issues.map((issue) => `${issue.path.join('.') || '(file)'}: ${issue.message}`).join('; '),
    );
  }
  const file = parsed.data;
  const ours = file['x-clustermesh'];
  return {
    name,
    endpoints: file.endpoints,
    hostAliases: file['cilium-host-aliases'],
    caFile: file['trusted-ca-file'],
    certFile: file['cert-file'],
    keyFile: file['key-file'],
    agreed: ours === undefined ? undefined : { id: ours.id, podCidr: ours.podCIDR },
    ...(ours?.draining === true ? { draining: true } : {}),
  };
}

/** Names become paths here, so nothing but a cluster name may pass. */
function checkName(peer: string, ownName: string): void {
  const problem = clusterNameProblem(peer) ?? (peer === ownName ? `${peer} is this cluster itself` : undefined);
  if (problem !== undefined) throw new MeshError({ code: 'invalid-argument', message: `naming a peer: ${problem}` });
}
