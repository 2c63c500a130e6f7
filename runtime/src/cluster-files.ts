/**
 * The files that say which remote clusters there are (wire-contract §5.1), as Cilium mounts them: every file of the directory that
 * says `endpoints:` is a remote cluster, named as the file. Read whole each time; what changed is the caller's to find out.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { clusterNameProblem, messageOf, parseCidr } from '@clustermesh/contract';
import { parse } from 'yaml';
import { z } from 'zod';

export interface ClusterFile {
  readonly name: string;
  readonly endpoints: readonly string[];
  readonly hostAliases: readonly { readonly hostname: string; readonly ips: readonly string[] }[];
  /** All three are there if an endpoint is https. */
  readonly caFile: string | undefined;
  readonly certFile: string | undefined;
  readonly keyFile: string | undefined;
  /** What was agreed at connect; undefined in a file that was not written by us. */
  readonly agreed: { readonly id: number; readonly podCidr: string; readonly podCidrV6: string } | undefined;
  /** `host:port` of its admin interface; undefined when none was named. */
  readonly adminEndpoints?: readonly string[];
  /** The peer is to be left: traffic is moving away from it. */
  readonly draining?: true;
  /** The file as it is: another text is another configuration. */
  readonly text: string;
}

export interface ClusterFiles {
  readonly clusters: ReadonlyMap<string, ClusterFile>;
  /** Files that cannot be used, with what is wrong with them. */
  readonly unusable: ReadonlyMap<string, { readonly text: string; readonly reason: string }>;
}

const cidrOrNone = z
  .string()
  .refine((text) => text === '' || parseCidr(text) !== undefined, 'is no CIDR')
  .default('');

/** The file is etcd's client configuration, which has more options than we use. */
const schema = z.looseObject({
  endpoints: z.array(z.url({ protocol: /^https?$/, error: 'must be http(s) URLs' })).min(1),
  'trusted-ca-file': z.string().min(1).optional(),
  'cert-file': z.string().min(1).optional(),
  'key-file': z.string().min(1).optional(),
  'cilium-host-aliases': z
    .array(z.looseObject({ hostname: z.string().min(1), ips: z.array(z.string().min(1)) }))
    .default([]),
  /** Ours; Cilium's reader ignores it. */
  'x-clustermesh': z
    .looseObject({
      id: z.number().int(),
      podCIDR: cidrOrNone,
      podCIDRv6: cidrOrNone.refine((text) => text === '' || text.includes(':'), 'is no IPv6 CIDR'),
      admin: z.array(z.string().min(1)).optional(),
      draining: z.boolean().optional(),
    })
    .optional(),
});

const FILE_FIELDS = ['trusted-ca-file', 'cert-file', 'key-file'] as const;

/** In the order of their names. Throws when the directory cannot be listed: that is not the same as an empty one. */
export function readClusterFiles(dir: string, ownName: string): ClusterFiles {
  const clusters = new Map<string, ClusterFile>();
  const unusable = new Map<string, { text: string; reason: string }>();
  for (const name of readdirSync(dir).sort()) {
    // `..data` and the like are the plumbing of Kubernetes' symlink swaps.
    if (name.startsWith('..') || name === ownName) continue;
    const text = readRegularFile(join(dir, name));
    if (text === undefined || !text.includes('endpoints:')) continue;
    try {
      clusters.set(name, parseClusterFile(name, text));
    } catch (error) {
      // What YAML's errors quote of the file, over several lines, is no reason.
      const [reason = ''] = messageOf(error).split('\n');
      unusable.set(name, { text, reason });
    }
  }
  return { clusters, unusable };
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

/** Throws everything that is wrong with the file, each with its field. */
export function parseClusterFile(name: string, text: string): ClusterFile {
  const nameProblem = clusterNameProblem(name);
  if (nameProblem !== undefined) throw new Error(nameProblem);
  const raw: unknown = parse(text);
  const parsed = schema.safeParse(raw);
  const problems = (parsed.error?.issues ?? []).map((issue) => `${issue.path.join('.') || '(file)'}: ${issue.message}`);
  const fields = typeof raw === 'object' && raw !== null ? (raw as Readonly<Record<string, unknown>>) : {};
  const isPlain = parsed.success && parsed.data.endpoints.every((endpoint) => endpoint.startsWith('http:'));
  if (!isPlain)
    for (const field of FILE_FIELDS)
      if (fields[field] === undefined) problems.push(`${field}: is needed for https endpoints`);
  if (!parsed.success || problems.length > 0) throw new Error(problems.join('; '));
  const file = parsed.data;
  const ours = file['x-clustermesh'];
  return {
    name,
    endpoints: file.endpoints,
    hostAliases: file['cilium-host-aliases'],
    caFile: file['trusted-ca-file'],
    certFile: file['cert-file'],
    keyFile: file['key-file'],
    agreed: ours === undefined ? undefined : { id: ours.id, podCidr: ours.podCIDR, podCidrV6: ours.podCIDRv6 },
    ...(ours?.admin === undefined ? {} : { adminEndpoints: ours.admin }),
    ...(ours?.draining === true ? { draining: true } : {}),
    text,
  };
}
