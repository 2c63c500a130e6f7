/** Network namespaces of the processes of a cgroup, and how to be in one for the time of a system call. */
import { closeSync, openSync, readdirSync, readFileSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import koffi from 'koffi';
import { kernelError } from './libbpf.ts';

const CLONE_NEWNET = 0x40000000;
const setns = koffi.load('libc.so.6').func('int setns(int fd, int nstype)');

/** Of the calling thread: what every socket that it makes from now on belongs to. */
export const openOwnNetns = (): number => openSync('/proc/thread-self/ns/net', 'r');

/**
 * Runs `body` in another namespace. Only this thread is there, and it has nothing else to do until it is back: `body` must not wait, nor
 * begin what makes threads, which would stay where they were born.
 */
export function inNetns<T>(own: number, other: number, body: () => T): T {
  if (setns(other, CLONE_NEWNET) !== 0) throw kernelError('entering a network namespace', koffi.errno());
  try {
    return body();
  } finally {
    comeBack(own);
  }
}

/**
 * The way back needs no more than the way there did, and some memory. Without it there is no going on: every connection and every
 * attachment from now on would be made in a pod's namespace. The kernel goes on with what it has, and the next agent starts where it belongs.
 */
function comeBack(own: number): void {
  for (let attempt = 0; attempt < 100; attempt++) if (setns(own, CLONE_NEWNET) === 0) return;
  const { message } = kernelError('coming back from a network namespace', koffi.errno());
  writeSync(2, `${message}: this process cannot go on in another one, and ends\n`);
  process.exit(70);
}

const PAUSE_EVERY = 100;

/** Directories at and below `cgroup`; one that goes away meanwhile is left out. */
function* cgroupsBelow(cgroup: string): Generator<string> {
  yield cgroup;
  for (const entry of orNothing(() => readdirSync(cgroup, { withFileTypes: true })) ?? [])
    if (entry.isDirectory()) yield* cgroupsBelow(join(cgroup, entry.name));
}

/**
 * Undefined: the process or cgroup has ended. (EOPNOTSUPP: a threaded cgroup, whose processes are named by the one above; EINVAL: the
 * process has no namespace any more.)
 */
function orNothing<T>(look: () => T, onDenied?: () => void): T | undefined {
  try {
    return look();
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? '';
    if (code === 'EACCES' || code === 'EPERM') onDenied?.();
    else if (!['ENOENT', 'ESRCH', 'ENODEV', 'EOPNOTSUPP', 'EINVAL'].includes(code)) throw error;
    return undefined;
  }
}

/**
 * Each namespace once in which a process of this cgroup, or of one below, is: as a descriptor that is open until the next is asked for.
 * What begins meanwhile may be missed. `onDenied`: the kernel does not show us where this process is, for want of CAP_SYS_PTRACE.
 */
export async function* netnsOfCgroup(cgroup: string, onDenied?: (pid: string) => void): AsyncGenerator<number> {
  const seen = new Set<bigint>();
  let looked = 0;
  for (const path of cgroupsBelow(cgroup)) {
    const processes = orNothing(() => readFileSync(join(path, 'cgroup.procs'), 'utf8')) ?? '';
    for (const pid of processes.split('\n')) {
      if (pid === '') continue;
      if (++looked % PAUSE_EVERY === 0) await setImmediate();
      const link = `/proc/${pid}/ns/net`;
      const inode = orNothing(
        () => statSync(link, { bigint: true }).ino,
        () => onDenied?.(pid),
      );
      if (inode === undefined || seen.has(inode)) continue;
      const fd = orNothing(() => openSync(link, 'r'));
      if (fd === undefined) continue;
      seen.add(inode);
      try {
        yield fd;
      } finally {
        closeSync(fd);
      }
    }
  }
}
