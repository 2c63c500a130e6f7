/**
 * What a test makes in the kernel: a bpffs, a cgroup, network namespaces. All of it is called <prefix><pid>…, and each new
 * sandbox first removes what runs with the same prefix that were killed have left. Test files run side by side: one of them at
 * a time cleans.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { tryLock, waitFor } from '@clustermesh/runtime';

const DEFAULT_PREFIX = 'cm-dpt-';
const RUN = '/run';
const NETNS = '/run/netns';

export interface Sandbox {
  name: string;
  bpffs: string;
  /** A cgroup v2 directory of this test. */
  cgroup(name: string): string;
  /** A network namespace with loopback up; returns its name. */
  netns(name: string): string;
  close(): Promise<void>;
}

/** Runs a command to its end and returns stdout. */
export function sh(program: string, ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** The same inside a namespace. (`ip netns exec` would hide /sys/fs/bpf and /sys/fs/cgroup.) */
export const shIn = (netns: string, program: string, ...args: string[]): string =>
  sh('nsenter', `--net=${join(NETNS, netns)}`, program, ...args);

export const netnsPath = (netns: string): string => join(NETNS, netns);

function cgroupRoot(): string {
  const line = readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .find((mount) => mount.split(' ')[2] === 'cgroup2');
  if (line === undefined) throw new Error('this test needs cgroup v2, which is not mounted');
  return line.split(' ')[1]!;
}

/** Directories below `path`, deepest first. */
function treeOf(path: string): string[] {
  const below = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  return [...below.flatMap((entry) => treeOf(join(path, entry.name))), path];
}

const listOf = (dir: string): string[] => (existsSync(dir) ? readdirSync(dir) : []);

/** Does what takes something away; that it is gone already is as good. */
function ignoringMissing(remove: () => void, isThere: () => boolean): void {
  try {
    remove();
  } catch (error) {
    if (isThere()) throw error;
  }
}

async function removeCgroup(cgroup: string): Promise<void> {
  const isThere = () => existsSync(cgroup);
  ignoringMissing(() => writeFileSync(join(cgroup, 'cgroup.kill'), '1'), isThere);
  const isEmpty = () => !isThere() || readFileSync(join(cgroup, 'cgroup.events'), 'utf8').includes('populated 0');
  await waitFor(isEmpty, { what: `the processes of ${cgroup} to end`, timeoutMs: 10_000 });
  ignoringMissing(() => {
    for (const dir of treeOf(cgroup)) rmdirSync(dir);
  }, isThere);
}

async function remove(name: string): Promise<void> {
  const cgroup = join(cgroupRoot(), name);
  if (existsSync(cgroup)) await removeCgroup(cgroup);
  for (const netns of listOf(NETNS)) {
    if (!netns.startsWith(`${name}-`)) continue;
    ignoringMissing(
      () => sh('ip', 'netns', 'del', netns),
      () => existsSync(netnsPath(netns)),
    );
  }
  const dir = join(RUN, name);
  if (existsSync(dir)) {
    try {
      sh('umount', join(dir, 'bpf'));
    } catch {
      // was not mounted
    }
    rmSync(dir, { recursive: true, force: true });
  }
}

async function removeLeftovers(prefix: string): Promise<void> {
  const cleaning = join(tmpdir(), `${prefix}cleaning.lock`);
  const lock = await waitFor(
    () => {
      const held = tryLock(cleaning, String(process.pid));
      return 'release' in held ? held : undefined;
    },
    { what: `${cleaning}, held by another test that cleans up`, timeoutMs: 60_000, intervalMs: 20 },
  );
  try {
    const names = [...listOf(RUN), ...listOf(NETNS), ...listOf(cgroupRoot())].flatMap((name) => {
      const match = name.startsWith(prefix) ? /^(\d+)(-|$)/.exec(name.slice(prefix.length)) : null;
      return match !== null && !existsSync(`/proc/${match[1]}`) ? [`${prefix}${match[1]}`] : [];
    });
    for (const name of new Set(names)) await remove(name);
  } finally {
    lock.release();
  }
}

export async function openSandbox(prefix = DEFAULT_PREFIX): Promise<Sandbox> {
  await removeLeftovers(prefix);
  const name = `${prefix}${process.pid}`;
  await remove(name);
  const bpffs = join(RUN, name, 'bpf');
  mkdirSync(bpffs, { recursive: true });
  sh('mount', '-t', 'bpf', 'bpf', bpffs);
  return {
    name,
    bpffs,
    cgroup(part) {
      const path = join(cgroupRoot(), name, part);
      mkdirSync(path, { recursive: true });
      return path;
    },
    netns(part) {
      const netns = `${name}-${part}`;
      sh('ip', 'netns', 'add', netns);
      sh('ip', '-n', netns, 'link', 'set', 'lo', 'up');
      return netns;
    },
    close: () => remove(name),
  };
}
