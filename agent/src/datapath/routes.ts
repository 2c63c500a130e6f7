/**
 * The host's routes to the pod CIDRs of other nodes, one per ipcache prefix that lies behind a node: pods take them where they are
 * reached directly, and so does what the node itself sends to remote pods, if that is wanted by the tunnel too.
 *
 *   by the tunnel   PREFIX encap ip id 1 dst NODE dev cm_vxlan        the host's identity as VNI
 *   directly        PREFIX via NODE                                   if NODE is on a link of ours; else the network's routes serve
 *
 * Marked with a protocol number of our own; other routes are left alone. A row whose route is not as it should be reads as another row
 * (scan, read), so that it is written again, and `verify` shows it.
 */
import { isIpv4, MeshError } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import { ip, ipBatch } from './links.ts';
import { isHost } from './rows.ts';
import type { ScannedOps } from './tables.ts';
import type { IpcacheRow } from './types.ts';

/** As /etc/iproute2/rt_protos leaves free. */
const PROTOCOL = '201';
const HOST_IDENTITY = '1';

export interface RouteOptions {
  readonly vxlanDevice: string;
  /** Bytes of an IP packet on the underlay; 0: not known. */
  readonly underlayMtu: number;
  readonly gatewayIp: string;
  readonly gatewayIp6: string | undefined;
  /** Routes into the tunnel too. Each differs in its encapsulation, which the kernel compares one by one: many take it long. */
  readonly hostToRemotePods: boolean;
  readonly log: Log;
}

const FAMILIES = ['-4', '-6'] as const;

const familyOf = (address: string): '-4' | '-6' => (isIpv4(address.split('/')[0]!) ? '-4' : '-6');

/** Arguments of `ip`, behind its family, that make the route; undefined where there is none to make. */
export function routeTo(row: IpcacheRow, o: Omit<RouteOptions, 'log'>): string[] | undefined {
  const { prefix, tunnelEndpoint: node } = row;
  const family = familyOf(prefix);
  const source = family === '-4' ? o.gatewayIp : o.gatewayIp6;
  if (node === null || isHost(prefix) || source === undefined || !(row.direct || o.hostToRemotePods)) return undefined;
  const route = ['route', 'replace', prefix, 'src', source, 'proto', PROTOCOL];
  if (row.direct) return family === familyOf(node) ? [...route, 'via', node] : undefined;
  const isV4 = isIpv4(node);
  const mtu = o.underlayMtu - (isV4 ? 50 : 70);
  const size = o.underlayMtu > 0 ? ['mtu', String(mtu)] : [];
  return [...route, 'encap', isV4 ? 'ip' : 'ip6', 'id', HOST_IDENTITY, 'dst', node, 'dev', o.vxlanDevice, ...size];
}

/** What of a route is ours to say, from the arguments that make it or from a line of `ip route show`; there, `src` may come twice. */
export function wayOf(words: readonly string[]): string {
  const named = ['encap', 'id', 'dst', 'via', 'src', 'mtu', ...(words.includes('encap') ? ['dev'] : [])];
  return named
    .filter((name) => words.includes(name))
    .map((name) => `${name} ${words[words.lastIndexOf(name) + 1]}`)
    .join(' ');
}

/** Our routes by prefix. */
async function readRoutes(): Promise<Map<string, string>> {
  const routes = new Map<string, string>();
  for (const family of FAMILIES) {
    const everything = family === '-4' ? '0.0.0.0/0' : '::/0';
    for (const line of (await ip([family, 'route', 'show', 'proto', PROTOCOL])).split('\n')) {
      const [prefix = '', ...words] = line.trim().split(/\s+/);
      if (prefix !== '') routes.set(prefix === 'default' ? everything : prefix, wayOf(words));
    }
  }
  return routes;
}

const removal = (prefix: string): string[] => ['route', 'del', prefix, 'proto', PROTOCOL];

/** The ipcache whose prefixes have their routes. Rows that are in the kernel already get at once what their routes lack. */
export async function withRoutes(
  ipcache: ScannedOps<IpcacheRow>,
  options: RouteOptions,
): Promise<ScannedOps<IpcacheRow>> {
  const { log } = options;
  /** Prefixes for which the kernel has a route of ours, as far as is known. */
  let held = new Set<string>();

  /** The routes of these rows (no hosts), made anew; why those could not be made that could not, by prefix. */
  async function program(rows: readonly IpcacheRow[]): Promise<ReadonlyMap<string, MeshError>> {
    const problems = new Map<string, MeshError>();
    for (const family of FAMILIES) {
      const commands: string[][] = [];
      const makes = new Map<number, IpcacheRow>();
      for (const row of rows) {
        if (familyOf(row.prefix) !== family) continue;
        // From one way to the other: `replace` would leave the old beside it.
        if (held.delete(row.prefix)) commands.push(removal(row.prefix));
        const args = routeTo(row, options);
        if (args === undefined) continue;
        makes.set(commands.length, row);
        commands.push(args);
        held.add(row.prefix);
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

  /** Of calls that write, how many are at it and how many there were: what was read meanwhile says nothing. */
  let writing = 0;
  let writes = 0;
  async function written<T>(write: () => Promise<T>): Promise<T> {
    writing++;
    try {
      return await write();
    } finally {
      writing--;
      writes++;
    }
  }

  async function scan(visit: (prefix: string, row: IpcacheRow) => void): Promise<void> {
    const before = writes;
    const routes = await readRoutes();
    const isCurrent = () => writing === 0 && writes === before;
    if (isCurrent()) held = new Set(routes.keys());
    await ipcache.scan((prefix, row) => {
      if (isHost(prefix) || !isCurrent()) return visit(prefix, row);
      const args = routeTo(row, options);
      const [wanted, held] = [args === undefined ? undefined : wayOf(args), routes.get(prefix)];
      routes.delete(prefix);
      const isRight = held === wanted || (held === undefined && row.direct === true);
      visit(prefix, isRight ? row : { ...row, route: held ?? 'missing' });
    });
    if (!isCurrent()) return;
    for (const [prefix, route] of routes)
      visit(prefix, { prefix, identity: 0, clusterId: 0, tunnelEndpoint: null, encryptKey: 0, route });
  }

  const routes = await readRoutes();
  held = new Set(routes.keys());
  const differing = [...(await ipcache.list()).values()].filter((row) => {
    if (isHost(row.prefix)) return false;
    const args = routeTo(row, options);
    return routes.get(row.prefix) !== (args === undefined ? undefined : wayOf(args));
  });
  for (const [prefix, { message }] of await program(differing)) log.warn({ prefix, reason: message }, 'route not made');
  return {
    ...ipcache,
    scan,
    async read() {
      const rows = new Map<string, IpcacheRow>();
      await scan((prefix, row) => void rows.set(prefix, row));
      return rows;
    },
    update: (rows) =>
      written(async () => {
        const results = await ipcache.update(rows);
        const problems = await program(
          rows.filter(({ prefix }, i) => !isHost(prefix) && results[i]?.error === undefined),
        );
        if (problems.size === 0) return results;
        return results.map((result) => {
          const problem = problems.get(result.key);
          const attempted = `programming the route to ${result.key}`;
          return problem === undefined ? result : { key: result.key, error: MeshError.from(problem, attempted) };
        });
      }),
    remove: (keys) =>
      written(async () => {
        for (const family of FAMILIES) {
          const prefixes = keys.filter((key) => held.has(key) && familyOf(key) === family);
          await ipBatch(family, prefixes.map(removal));
          for (const prefix of prefixes) held.delete(prefix);
        }
        return ipcache.remove(keys);
      }),
  };
}
