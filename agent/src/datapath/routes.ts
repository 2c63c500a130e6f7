/**
 * The host's routes to the pod CIDRs of other nodes, one per ipcache prefix that lies behind a node: what the node itself sends to
 * remote pods takes them, and pods where they are reached directly.
 *
 *   by the tunnel   PREFIX encap ip id 1 dst NODE dev cm_vxlan        the host's identity as VNI
 *   directly        PREFIX via NODE                                   if NODE is on a link of ours; else the network's routes serve
 *
 * Marked with a protocol number of our own; other routes are left alone.
 */
import { isIpv4, MeshError } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import { ipBatch } from './links.ts';
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

const FAMILIES = ['-4', '-6'] as const;

const familyOf = (address: string): '-4' | '-6' => (isIpv4(address.split('/')[0]!) ? '-4' : '-6');

/** Arguments of `ip`, behind its family, that make the route; undefined where there is none to make. */
export function routeTo(row: IpcacheRow, o: Omit<RouteOptions, 'log'>): string[] | undefined {
  const { prefix, tunnelEndpoint: node } = row;
  const family = familyOf(prefix);
  const source = family === '-4' ? o.gatewayIp : o.gatewayIp6;
  if (node === null || isHost(prefix) || source === undefined) return undefined;
  const route = ['route', 'replace', prefix, 'src', source, 'proto', PROTOCOL];
  if (row.direct) return family === familyOf(node) ? [...route, 'via', node] : undefined;
  const isV4 = isIpv4(node);
  const mtu = o.underlayMtu - (isV4 ? 50 : 70);
  const size = o.underlayMtu > 0 ? ['mtu', String(mtu)] : [];
  return [...route, 'encap', isV4 ? 'ip' : 'ip6', 'id', HOST_IDENTITY, 'dst', node, 'dev', o.vxlanDevice, ...size];
}

const removal = (prefix: string): string[] => ['route', 'del', prefix, 'proto', PROTOCOL];

/** The ipcache whose prefixes have their routes. Those that are in the kernel already get theirs at once. */
export async function withRoutes(ipcache: MapOps<IpcacheRow>, options: RouteOptions): Promise<MapOps<IpcacheRow>> {
  const { log } = options;

  /** The routes of these rows, made anew; why those could not be made that could not, by prefix. */
  async function program(rows: readonly IpcacheRow[]): Promise<ReadonlyMap<string, MeshError>> {
    const problems = new Map<string, MeshError>();
    for (const family of FAMILIES) {
      const commands: string[][] = [];
      const makes = new Map<number, IpcacheRow>();
      for (const row of rows) {
        if (isHost(row.prefix) || familyOf(row.prefix) !== family) continue;
        // From one way to the other: `replace` would leave the old beside it.
        commands.push(removal(row.prefix));
        const args = routeTo(row, options);
        if (args === undefined) continue;
        makes.set(commands.length, row);
        commands.push(args);
      }
      for (const [place, reason] of await ipBatch(family, commands)) {
        const row = makes.get(place);
        if (row === undefined) continue; // There was none to remove.
        const message = `ip ${family} ${commands[place]!.join(' ')}: ${reason}`;
        // A node that is no neighbour: its network routes to it, or nobody does. Pods by the tunnel need no route.
        if (row.direct) log.info({ prefix: row.prefix, reason: message }, 'route left to the network');
        else problems.set(row.prefix, new MeshError({ code: 'kernel', message }));
      }
    }
    return problems;
  }

  for (const [prefix, { message }] of await program([...(await ipcache.list()).values()]))
    log.warn({ prefix, reason: message }, 'route not made');
  return {
    ...ipcache,
    async update(rows) {
      const results = await ipcache.update(rows);
      const problems = await program(rows.filter((_, i) => results[i]?.error === undefined));
      for (const [i, { prefix }] of rows.entries()) {
        const problem = problems.get(prefix);
        if (problem !== undefined)
          results[i] = { key: prefix, error: MeshError.from(problem, `programming the route to ${prefix}`) };
      }
      return results;
    },
    async remove(keys) {
      for (const family of FAMILIES) {
        const prefixes = keys.filter((key) => !isHost(key) && familyOf(key) === family);
        await ipBatch(family, prefixes.map(removal));
      }
      return ipcache.remove(keys);
    },
  };
}
