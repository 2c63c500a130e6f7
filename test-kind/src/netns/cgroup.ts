/** cgroup v2: every process of an instance lives below `cm-<instance>`, which is how all of them can be ended at once. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { waitFor } from '@clustermesh/runtime';

let mountPoint: string | undefined;

/** Where cgroup v2 is mounted; hybrid machines have it below /sys/fs/cgroup/unified. */
export function cgroupMount(): string {
  mountPoint ??= readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .find((fields) => fields[2] === 'cgroup2')?.[1];
  if (mountPoint !== undefined) return mountPoint;
  throw new MeshError({
    code: 'unsupported',
    message: 'looking for cgroup v2: /proc/mounts shows none',
    hint: 'mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified',
  });
}

/** Makes the cgroup (and what lies above it) and returns its path. */
export function makeCgroup(name: string): string {
  const path = join(cgroupMount(), name);
  mkdirSync(path, { recursive: true });
  return path;
}

export function isPopulated(path: string): boolean {
  try {
    return readFileSync(join(path, 'cgroup.events'), 'utf8').includes('populated 1');
  } catch {
    return false; // removed meanwhile
  }
}

export function processesOf(path: string): number[] {
  try {
    return readFileSync(join(path, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

/** SIGKILL to every process in it and below, atomically: a process that forks meanwhile does not get away. */
export function killCgroup(path: string): void {
  if (existsSync(path)) writeFileSync(join(path, 'cgroup.kill'), '1');
}

/** Stops (or lets go on) every process in it: as SIGSTOP, but it also holds what they fork. */
export function freezeCgroup(path: string, frozen: boolean): void {
  writeFileSync(join(path, 'cgroup.freeze'), frozen ? '1' : '0');
}

/** Ends every process in it and below, and removes the tree. Missing is success. */
export async function removeCgroup(path: string): Promise<void> {
  if (!existsSync(path)) return;
  await waitFor(
    () => {
      killCgroup(path);
      return !isPopulated(path);
    },
    { what: `the processes of cgroup ${path} to end`, timeoutMs: 10_000, intervalMs: 10 },
  );
  await waitFor(
    () => {
      removeTree(path);
      return true;
    },
    { what: `cgroup ${path} to be removable`, timeoutMs: 5_000, intervalMs: 20 },
  );
}

function removeTree(path: string): void {
  if (!existsSync(path)) return;
  for (const entry of readdirSync(path, { withFileTypes: true }))
    if (entry.isDirectory()) removeTree(join(path, entry.name));
  try {
    rmdirSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw new MeshError({ code: 'kernel', message: `removing cgroup ${path}: ${messageOf(error)}`, cause: error });
  }
}
