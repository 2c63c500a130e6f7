/**
 * The life of an instance: who holds it, and how all of it is removed again.
 *
 * The lock belongs to the lab daemon for as long as the instance is up; the kernel drops it when the daemon dies, however it
 * dies. Whoever gets the lock may treat everything named `cm-<instance>-…` as leftovers.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { type FileLock, systemClock, tryLock } from '@clustermesh/runtime';
import { cgroupMount, killCgroup, removeCgroup } from './cgroup.ts';
import { capture, ipBatch } from './exec.ts';
import { instanceCgroup, instancePaths, namespacePrefix } from './names.ts';

/** `pid 12 started 3456`: the start time (in ticks since boot) tells a process from a later one of the same number. */
export function describeProcess(pid: number): string {
  return `pid ${pid} started ${startTicks(pid) ?? 'never'}`;
}

function startTicks(pid: number): string | undefined {
  try {
    // The second field is the program's name in parentheses, which may hold anything; the rest is plain.
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ')[19];
  } catch {
    return undefined;
  }
}

/** True when the holder is tied to a process that is no more: what it holds is on its way down, and may be taken. */
export function isOrphan(heldBy: string): boolean {
  const tie = /tied to pid (\d+) started (\d+)/.exec(heldBy);
  return tie !== null && startTicks(Number(tie[1])) !== tie[2];
}

/** Notes of holders that let go by themselves within moments. */
export const TEARDOWN = 'teardown';
export const LOOKING = 'looking who holds it';

export function isPassing(heldBy: string): boolean {
  return heldBy.includes(`(${TEARDOWN})`) || heldBy.includes(`(${LOOKING})`) || heldBy === JUST_STARTING;
}

const JUST_STARTING = 'a process that is just starting';

/** Takes the instance's lock, or says who has it. */
export function takeInstance(instance: string, what: string): FileLock | { readonly heldBy: string } {
  const { lock: path } = instancePaths(instance);
  for (;;) {
    const nonce = randomUUID();
    const lock = tryLock(path, `pid ${process.pid} (${what}) ${nonce}`);
    if ('heldBy' in lock) return { heldBy: lock.heldBy.replace(/ [0-9a-f-]{36}$/, '') || JUST_STARTING };
    // A teardown unlinks the file while holding it: a lock on the unlinked file would exclude nobody.
    if (existsSync(path) && readFileSync(path, 'utf8').includes(nonce)) return lock;
    lock.release();
  }
}

export function leftoverNamespaces(instance: string): string[] {
  if (!existsSync('/run/netns')) return [];
  return readdirSync('/run/netns').filter((name) => name.startsWith(namespacePrefix(instance)));
}

function mountsBelow(dir: string): string[] {
  return readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => path.startsWith(`${dir}/`))
    .sort()
    .reverse();
}

/** What of an instance is still there, as sentences; empty when nothing is. */
export function remains(instance: string): string[] {
  const { run } = instancePaths(instance);
  const cgroup = join(cgroupMount(), instanceCgroup(instance));
  return [
    ...leftoverNamespaces(instance).map((name) => `network namespace ${name}`),
    ...mountsBelow(run).map((path) => `mount ${path}`),
    ...(existsSync(cgroup) ? [`cgroup ${cgroup}`] : []),
    ...(existsSync(run) ? [`directory ${run}`] : []),
  ];
}

/**
 * Removes everything of the instance but its lock file and directory. The caller holds the lock. Works on what is there, not on
 * what a tidy run would have left, so that a run killed at any point can be cleaned up.
 */
export async function sweep(instance: string): Promise<void> {
  const { run } = instancePaths(instance);
  await removeCgroup(join(cgroupMount(), instanceCgroup(instance)));
  const namespaces = leftoverNamespaces(instance);
  await ipBatch(
    `removing the namespaces of instance ${instance}`,
    namespaces.map((name) => `netns del ${name}`),
  );
  for (const path of mountsBelow(run)) {
    const output = await capture('umount', ['--lazy', path]);
    if (output.code !== 0 && mountsBelow(run).includes(path)) {
      throw new MeshError({ code: 'kernel', message: `unmounting ${path}: ${output.stderr.trim()}` });
    }
  }
  if (!existsSync(run)) return;
  for (const entry of readdirSync(run))
    if (entry !== 'lock') rmSync(join(run, entry), { recursive: true, force: true });
}

/**
 * Ends an instance, whoever runs it, and leaves nothing of it. Returns false when there was nothing. With `onlyOf`, it is ended
 * only as long as that process holds it (or nobody does): a successor of the same name is left alone.
 */
export async function teardown(instance: string, onlyOf?: number): Promise<boolean> {
  if (remains(instance).length === 0) return false;
  const lock = await evict(instance, onlyOf);
  if (lock === undefined) return false;
  try {
    await sweep(instance);
    rmSync(instancePaths(instance).run, { recursive: true, force: true });
  } finally {
    lock.release();
  }
  return true;
}

/** Kills the holder (it is in the instance's cgroup) and takes its place. */
async function evict(instance: string, onlyOf: number | undefined): Promise<FileLock | undefined> {
  const cgroup = join(cgroupMount(), instanceCgroup(instance));
  const deadline = systemClock.nowMs() + 15_000;
  for (;;) {
    const lock = takeInstance(instance, TEARDOWN);
    if (!('heldBy' in lock)) return lock;
    if (onlyOf !== undefined && !lock.heldBy.startsWith(`pid ${onlyOf} `)) return undefined;
    if (systemClock.nowMs() > deadline) {
      throw new MeshError({
        code: 'locked',
        message: `taking down instance ${instance}: its lock is still held by ${lock.heldBy} after 15 s`,
        hint: 'another teardown may be running; if that process hangs, end it and try again',
      });
    }
    killCgroup(cgroup);
    await systemClock.sleep(25);
  }
}
