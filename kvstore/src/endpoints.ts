import { isIPv4, isIPv6 } from 'node:net';
import { MeshError } from '@clustermesh/contract';
import type { HostAlias } from './types.ts';

/** One address to connect to, and the name that its certificate must carry. */
export interface Target {
  /** As the operator wrote it, plus the address if an alias chose one. For messages. */
  readonly label: string;
  /** In gRPC's naming. */
  readonly address: string;
  readonly secure: boolean;
  /** The name or address that the server certificate must carry. */
  readonly tlsName: string;
}

function grpcAddress(host: string, port: string): string {
  if (isIPv4(host)) return `ipv4:${host}:${port}`;
  if (isIPv6(host)) return `ipv6:[${host}]:${port}`;
  return `dns:${host}:${port}`;
}

/**
 * Aliases work in both directions, as the config files write both forms: an endpoint by name is connected to at the alias'
 * addresses, and an endpoint by address is verified as the alias' name.
 */
export function resolveTargets(endpoints: readonly string[], aliases: readonly HostAlias[]): Target[] {
  if (endpoints.length === 0)
    throw new MeshError({ code: 'invalid-config', message: 'opening etcd: no endpoint given' });
  return endpoints.flatMap((endpoint) => {
    const match = /^(https?):\/\/(\[[0-9a-fA-F:]+\]|[^/:]+):(\d+)\/?$/.exec(endpoint);
    if (match === null) {
      throw new MeshError({
        code: 'invalid-config',
        message: `opening etcd: endpoint ${JSON.stringify(endpoint)} is not of the form https://host:port`,
      });
    }
    const [, scheme, rawHost, port] = match as unknown as [string, string, string, string];
    const host = rawHost.replace(/^\[|\]$/g, '');
    const secure = scheme === 'https';
    const byName = aliases.filter((alias) => alias.hostname === host).flatMap((alias) => alias.ips);
    if (byName.length > 0) {
      return byName.map((ip) => ({
        label: `${endpoint} (${ip})`,
        address: grpcAddress(ip, port),
        secure,
        tlsName: host,
      }));
    }
    const tlsName = aliases.find((alias) => alias.ips.includes(host))?.hostname ?? host;
    return [{ label: endpoint, address: grpcAddress(host, port), secure, tlsName }];
  });
}
