/**
 * The host's routes to the pod CIDRs of other nodes, one per ipcache prefix that lies behind a node: what the node itself sends to
 * remote pods takes them, and pods where they are reached directly.
 *
 *   by the tunnel   PREFIX encap ip id 1 dst NODE dev cm_vxlan        the host's identity as VNI
 *   directly        PREFIX via NODE                                   if NODE is on a link of ours; else the network's routes serve
 *
 * Marked with a protocol number of our own; other routes are left alone.
 */
import { isIpv4, MeshError, messageOf } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import { ip } from './links.ts';
import { isHost } from './rows.ts';
import type { IpcacheRow, MapOps } from './types.ts';

/** As /etc/iproute2/rt_protos leaves free. */
const PROTOCOL = '201';
const HOST_IDENTITY = '1';

export interface RouteOptions {
  readonly vxlanDevice: string;
  /** Bytes of an IP packet on the underlay; 0: not known. */
  readonly underlayMtu: number;
  readonly gatewayIp: string;
  readonly gatewayIp6: string | undefined;
  readonly log: Log;
}

const familyOf = (address: string): string => (isIpv4(address.split('/')[0]!) ? '-4' : '-6');

/** Arguments of `ip` that make the route; undefined where there is none to make. */
export function routeTo(row: IpcacheRow, o: Omit<RouteOptions, 'log'>): string[] | undefined {
  const { prefix, tunnelEndpoint: node } = row;
  const family = familyOf(prefix);
  const source = family === '-4' ? o.gatewayIp : o.gatewayIp6;
  if (node === null || isHost(prefix) || source === undefined) return undefined;
  const route = [family, 'route', 'replace', prefix, 'src', source, 'proto', PROTOCOL];
  if (row.direct) return family === familyOf(node) ? [...route, 'via', node] : undefined;
  const isV4 = isIpv4(node);
  const mtu = o.underlayMtu - (isV4 ? 50 : 70);
  const size = o.underlayMtu > 0 ? ['mtu', String(mtu)] : [];
  return [...route, 'encap', isV4 ? 'ip' : 'ip6', 'id', HOST_IDENTITY, 'dst', node, 'dev', o.vxlanDevice, ...size];
}

const removal = (prefix: string): string[] => [familyOf(prefix), 'route', 'del', prefix, 'proto', PROTOCOL];

/** The ipcache whose prefixes have their routes. Those that are in the kernel already get theirs at once. */
export async function withRoutes(ipcache: MapOps<IpcacheRow>, options: RouteOptions): Promise<MapOps<IpcacheRow>> {
  const { log } = options;

  async function program(row: IpcacheRow): Promise<void> {
    const args = routeTo(row, options);
    if (args === undefined) return;
    try {
      await ip(args);
    } catch (error) {
      // A node that is no neighbour: its network routes to it, or nobody does. Pods by the tunnel need no route.
      if (row.direct) log.info({ prefix: row.prefix, reason: messageOf(error) }, 'route left to the network');
      else throw error;
    }
  }

  const remove = (prefix: string): Promise<unknown> =>
    isHost(prefix) ? Promise.resolve() : ip(removal(prefix)).catch(() => undefined);

  for (const row of (await ipcache.list()).values()) {
    await program(row).catch((error: unknown) =>
      log.warn({ prefix: row.prefix, reason: messageOf(error) }, 'route not made'),
    );
  }
  return {
    ...ipcache,
    async update(rows) {
      const results = await ipcache.update(rows);
      for (const [i, row] of rows.entries()) {
        if (results[i]?.error !== undefined || isHost(row.prefix)) continue;
        try {
          // From one way to the other: `replace` would leave the old beside it.
          await remove(row.prefix);
          await program(row);
        } catch (error) {
          results[i] = { key: row.prefix, error: MeshError.from(error, `programming the route to ${row.prefix}`) };
        }
      }
      return results;
    },
    async remove(keys) {
      for (const key of keys) await remove(key);
      return ipcache.remove(keys);
    },
  };
}
