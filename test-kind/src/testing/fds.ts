/** What the file descriptors of a process are, told so that two looks at it can be compared: for the cause of one too many. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** fd-table of process `pid`: what → how many. Sockets by their remote end, as inodes and local ports are new each time. */
export function describeFds(pid: number): ReadonlyMap<string, number> {
  const sockets = socketsOf(pid);
  const found = new Map<string, number>();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const target = linkOf(pid, fd);
    if (target === undefined) continue;
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    const what = inode === undefined ? target.replace(/^pipe:\[\d+\]$/, 'pipe') : (sockets.get(inode) ?? 'socket');
    found.set(what, (found.get(what) ?? 0) + 1);
  }
  return found;
}

/** `what before → now` of all that is more than it was. */
export function moreFds(before: ReadonlyMap<string, number>, now: ReadonlyMap<string, number>): string[] {
  return [...now].flatMap(([what, count]) =>
    count > (before.get(what) ?? 0) ? [`${what} ${before.get(what) ?? 0} → ${count}`] : [],
  );
}

function linkOf(pid: number, fd: string): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    // Closed since it was listed.
    return undefined;
  }
}

/** Inode → what it is, from the tables of the process's network namespace (proc(5)). */
function socketsOf(pid: number): ReadonlyMap<string, string> {
  const rows = (table: string) =>
    readFileSync(`/proc/${pid}/net/${table}`, 'utf8')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/));
  const sockets = new Map<string, string>();
  for (const table of ['tcp', 'tcp6', 'udp', 'udp6'])
    for (const [, local = '', remote = '', state, , , , , , inode = ''] of rows(table))
      sockets.set(inode, state === LISTEN ? `${table} listening on ${end(local)}` : `${table} to ${end(remote)}`);
  for (const [, , , , , , inode = '', path = 'without a name'] of rows('unix')) sockets.set(inode, `unix ${path}`);
  return sockets;
}

const LISTEN = '0A';

/** `0100007F:0FA0` → `127.0.0.1:4000`; an IPv6 address stays in hex. */
function end(hex: string): string {
  const [address = '', port = ''] = hex.split(':');
  const ip = address.length === 8 ? [...Buffer.from(address, 'hex').reverse()].join('.') : address;
  return `${ip}:${Number.parseInt(port, 16)}`;
}
