/**
 * The config directory of wire-contract §5.1, as Cilium mounts it: every file that says `endpoints:` is a remote cluster, named as
 * the file. Read whole each time; what changed is the caller's to find out.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { clusterNameProblem, messageOf } from '@clustermesh/contract';
import type { HostAlias } from '@clustermesh/kvstore';
import { parse } from 'yaml';
import { z } from 'zod';

export interface RemoteConfig {
  readonly name: string;
  readonly endpoints: readonly string[];
  readonly hostAliases: readonly HostAlias[];
  readonly caFile: string | undefined;
  readonly certFile: string | undefined;
  readonly keyFile: string | undefined;
  /** The file as it is: another text is another configuration. */
  readonly text: string;
}

export interface ConfigDirContent {
  readonly remotes: ReadonlyMap<string, RemoteConfig>;
  /** Clusters whose file cannot be used, with the reason. */
  readonly unusable: ReadonlyMap<string, string>;
}

/** The file is etcd's client configuration, which has more options than we use. */
const schema = z.looseObject({
  endpoints: z.array(z.url({ protocol: /^https?$/, error: 'must be http(s) URLs' })).min(1),
  'trusted-ca-file': z.string().min(1).optional(),
  'cert-file': z.string().min(1).optional(),
  'key-file': z.string().min(1).optional(),
  'cilium-host-aliases': z.array(z.looseObject({ hostname: z.string().min(1), ips: z.array(z.string()) })).default([]),
});

/** Throws when the directory cannot be listed: that is not the same as an empty one. */
export function readConfigDir(dir: string, ownName: string): ConfigDirContent {
  const remotes = new Map<string, RemoteConfig>();
  const unusable = new Map<string, string>();
  for (const name of readdirSync(dir).sort()) {
    // `..data` and the like are the plumbing of Kubernetes' symlink swaps.
    if (name.startsWith('..') || name === ownName) continue;
    const text = readRegularFile(join(dir, name));
    if (text === undefined || !text.includes('endpoints:')) continue;
    try {
      remotes.set(name, parseRemote(name, text));
    } catch (error) {
      unusable.set(name, messageOf(error));
    }
  }
  return { remotes, unusable };
}

/** Undefined for what is no file, or went in the moment between listing and reading. */
function readRegularFile(path: string): string | undefined {
  try {
    return statSync(path).isFile() ? readFileSync(path, 'utf8') : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

export function parseRemote(name: string, text: string): RemoteConfig {
  const problem = clusterNameProblem(name);
  if (problem !== undefined) throw new Error(problem);
  const parsed = schema.safeParse(parse(text));
  if (!parsed.success)
    throw new Error(
      parsed.error.issues.map((issue) => `${issue.path.join('.') || '(file)'}: ${issue.message}`).join('; '),
    );
  const file = parsed.data;
  const isSecure = file.endpoints.some((endpoint) => endpoint.startsWith('https:'));
  for (const field of ['trusted-ca-file', 'cert-file', 'key-file'] as const)
    if (isSecure && file[field] === undefined) throw new Error(`${field}: is needed for https endpoints`);
  return {
    name,
    endpoints: file.endpoints,
    hostAliases: file['cilium-host-aliases'],
    caFile: file['trusted-ca-file'],
    certFile: file['cert-file'],
    keyFile: file['key-file'],
    text,
  };
}
