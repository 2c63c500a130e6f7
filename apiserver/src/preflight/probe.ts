/** Can a peer's etcd be reached, and is it the server that the peer's CA vouches for? Asked before anything is changed. */
import { type ConnectionOptions, connect } from 'node:tls';
import { type HostAlias, MeshError, messageOf } from '@clustermesh/contract';

export interface ProbeOptions {
  readonly peer: string;
  readonly endpoints: readonly string[];
  readonly hostAliases: readonly HostAlias[];
  readonly caPem: string;
  /** Presented when given; without one only the server is verified. */
  readonly client?: { readonly certPem: string; readonly keyPem: string } | undefined;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

const DEFAULT_TIMEOUT_MS = 4000;

/** Resolves with the first endpoint that answers; rejects naming each endpoint with its reason. */
export async function probeEndpoints(options: ProbeOptions): Promise<string> {
  const reasons: string[] = [];
  let onlyTls = true;
  for (const endpoint of options.endpoints) {
    const target = targetOf(endpoint, options.hostAliases);
    if (target === undefined) {
      throw new MeshError({
        code: 'invalid-argument',
        message: `reaching the etcd of cluster ${options.peer} at ${endpoint}: it is no https://host:port address`,
        hint: `correct advertise.endpoints in the configuration of ${options.peer}'s apiserver`,
      });
    }
    for (const host of target.addresses) {
      try {
        await handshake({ host, port: target.port, servername: target.hostname, options });
        return endpoint;
      } catch (error) {
        const { text, tls } = explain(error);
        onlyTls &&= tls;
        reasons.push(`${endpoint}${host === target.hostname ? '' : ` (${host})`}: ${text}`);
      }
    }
  }
  throw new MeshError({
    code: onlyTls && reasons.length > 0 ? 'tls' : 'unreachable',
    message: `reaching the etcd of cluster ${options.peer}: ${reasons.join('; ') || 'it advertises no endpoint'}`,
    hint: onlyTls
      ? `the server there is not the one ${options.peer}'s CA vouches for: check advertise.endpoints and the server certificate of ${options.peer}`
      : `check that etcd of ${options.peer} runs and that this cluster's control plane can connect to its advertised address`,
  });
}

export interface Target {
  readonly hostname: string;
  readonly port: number;
  readonly addresses: readonly string[];
}

/** Where an endpoint is: a host alias of its name replaces the resolver, as the mirror's client does it. */
export function targetOf(endpoint: string, aliases: readonly HostAlias[]): Target | undefined {
  if (!URL.canParse(endpoint)) return undefined;
  const url = new URL(endpoint);
  if (url.protocol !== 'https:') return undefined;
  const hostname = url.hostname.replace(/^\[|\]$/g, '');
  const addresses = aliases.filter((alias) => alias.hostname === hostname).flatMap((alias) => alias.ips);
  return {
    hostname,
    port: url.port === '' ? 443 : Number(url.port),
    addresses: addresses.length > 0 ? addresses : [hostname],
  };
}

async function handshake(to: {
  readonly host: string;
  readonly port: number;
  readonly servername: string;
  readonly options: ProbeOptions;
}): Promise<void> {
  const { client, caPem, signal } = to.options;
  const timeoutMs = to.options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  const settings: ConnectionOptions = {
    host: to.host,
    port: to.port,
    ca: caPem,
    // An IP address as server name is against RFC 6066; node verifies it as the host then.
    ...(/^[\d.]+$|:/.test(to.servername) ? {} : { servername: to.servername }),
    ...(client === undefined ? {} : { cert: client.certPem, key: client.keyPem }),
  };
  await new Promise<void>((resolve, reject) => {
    const socket = connect(settings);
    const end = (error?: unknown) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      socket.destroy();
      if (error === undefined) resolve();
      else reject(error);
    };
    const onAbort = () => end(new Error('cancelled'));
    const timer = setTimeout(() => end(new Error(`no answer within ${timeoutMs / 1000} s`)), timeoutMs);
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.on('error', end);
    socket.once('secureConnect', () => {
      if (client === undefined) return end();
      // With TLS 1.3 the server judges our certificate after our handshake is done: only an answer shows that it took it.
      socket.write(`GET /version HTTP/1.1\r\nHost: ${to.servername}\r\nConnection: close\r\n\r\n`);
      return socket.once('data', () => end());
    });
    socket.once('end', () => end(new Error('the server closed the connection')));
  });
}

/** OpenSSL's and the resolver's codes in words. `tls` is true when somebody answered but could not be trusted. */
export function explain(error: unknown): { readonly text: string; readonly tls: boolean } {
  const code = (error as NodeJS.ErrnoException).code ?? '';
  const known = new Map<string, { text: string; tls: boolean }>([
    ['ECONNREFUSED', { text: 'connection refused (nothing listens there)', tls: false }],
    ['EHOSTUNREACH', { text: 'no route to the host', tls: false }],
    ['ENETUNREACH', { text: 'the network is unreachable', tls: false }],
    ['ENOTFOUND', { text: 'the name cannot be resolved', tls: false }],
    ['EAI_AGAIN', { text: 'the name cannot be resolved', tls: false }],
    ['ECONNRESET', { text: 'the connection was cut during the handshake', tls: false }],
    ['ERR_TLS_CERT_ALTNAME_INVALID', { text: `the server's certificate does not carry this name`, tls: true }],
    ['SELF_SIGNED_CERT_IN_CHAIN', { text: `the server's certificate is signed by another CA`, tls: true }],
    ['DEPTH_ZERO_SELF_SIGNED_CERT', { text: `the server's certificate is self-signed`, tls: true }],
    ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', { text: `the server's certificate is signed by another CA`, tls: true }],
    ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', { text: `the server's certificate is signed by another CA`, tls: true }],
    ['CERT_HAS_EXPIRED', { text: `the server's certificate has expired`, tls: true }],
  ]);
  return known.get(code) ?? { text: messageOf(error), tls: code.startsWith('ERR_SSL') || code.startsWith('CERT_') };
}
