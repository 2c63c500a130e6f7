/** `redis` of apiserver.yaml, and the files it names: read anew for every connection, so that a renewed one is taken up. */
import { readFileSync } from 'node:fs';
import { MeshError, messageOf } from '@clustermesh/contract';
import { z } from 'zod';

const path = z.string().min(1);

export const redisSchema = z
  .strictObject({
    /** Unix socket. Either this or `url`. */
    path: path.optional(),
    /** redis://host:port[/db], or rediss:// for TLS; without user and password, which belong into `username` and `passwordFile`. */
    url: z.string().optional(),
    /** ACL user (deploy/redis/users.acl). Default: Redis' user "default". */
    username: z.string().min(1).optional(),
    passwordFile: path.optional(),
    /** rediss only: the CAs that Redis' certificate is checked by. Default: those of the system. */
    caFile: path.optional(),
    /** rediss only: a client certificate, where Redis asks for one (tls-auth-clients). */
    certFile: path.optional(),
    keyFile: path.optional(),
    /** All keys begin with `<prefix>:`; clusters that share a Redis need different ones. */
    prefix: z
      .string()
      .regex(/^[a-z0-9][a-z0-9-]*$/, 'is not made of lower case letters, digits and "-"')
      .default('cm'),
  })
  .superRefine((redis, context) => {
    const problem = (field: string, message: string) => context.addIssue({ code: 'custom', path: [field], message });
    if ((redis.path === undefined) === (redis.url === undefined)) problem('path', 'give either path or url');
    const url = redis.url === undefined ? undefined : parseUrl(redis.url);
    if (redis.url !== undefined && url === undefined)
      problem('url', 'is no redis://host:port or rediss://host:port, or holds a password: use passwordFile');
    if (redis.username !== undefined && redis.passwordFile === undefined) problem('username', 'needs passwordFile');
    if ((redis.certFile === undefined) !== (redis.keyFile === undefined)) problem('certFile', 'goes with keyFile');
    if (url?.protocol === 'rediss:') return;
    for (const field of ['caFile', 'certFile'] as const)
      if (redis[field] !== undefined) problem(field, 'is for rediss:// only');
  });

export type RedisConfig = Readonly<z.infer<typeof redisSchema>>;

function parseUrl(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || url.hostname === '' || url.username !== '' || url.password !== '') return undefined;
  if (url.search !== '' || !/^\/?\d*$/.test(url.pathname)) return undefined;
  return url.protocol === 'redis:' || url.protocol === 'rediss:' ? url : undefined;
}

/** For messages: where it is, never how one gets in. */
export const redisName = (redis: RedisConfig): string => redis.path ?? redis.url ?? '';

/** Where Redis is. */
export function redisAddress(redis: RedisConfig): { path: string } | { host: string; port: number; db: number } {
  if (redis.path !== undefined) return { path: redis.path };
  const url = new URL(redis.url!);
  // An IPv6 address is in brackets in a URL, and nowhere else.
  const host = url.hostname.replace(/^\[|\]$/g, '');
  return { host, port: Number(url.port || 6379), db: Number(url.pathname.slice(1)) };
}

export interface RedisCredentials {
  readonly username?: string;
  readonly password?: string;
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
}

/** Reads the files. Throws an invalid-config that names the one that cannot be read, and never what is in them. */
export function readRedisCredentials(redis: RedisConfig): RedisCredentials {
  const text = (field: 'passwordFile' | 'caFile' | 'certFile' | 'keyFile') => {
    const file = redis[field];
    if (file === undefined) return undefined;
    try {
      return readFileSync(file, 'utf8');
    } catch (error) {
      throw new MeshError({
        code: 'invalid-config',
        message: `logging in at Redis ${redisName(redis)}: redis.${field} cannot be read: ${messageOf(error)}`,
        cause: error,
      });
    }
  };
  const [password, ca, cert, key] = [text('passwordFile')?.trim(), text('caFile'), text('certFile'), text('keyFile')];
  return {
    ...(redis.username !== undefined && { username: redis.username }),
    ...(password !== undefined && { password }),
    ...(redis.url?.startsWith('rediss:') && {
      tls: { ...(ca !== undefined && { ca }), ...(cert !== undefined && { cert }), ...(key !== undefined && { key }) },
    }),
  };
}
