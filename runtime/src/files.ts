import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';

let sequence = 0;

/**
 * Replaces `path` whole: a reader sees the old content or the new, never a part, also after a crash.
 * `mode` holds from the first byte on, so that a key is never readable by others even for a moment.
 */
export function atomicWrite(path: string, data: string | Buffer, mode = 0o644): void {
  mkdirSync(dirname(path), { recursive: true });
  // Two dots: readers of a config directory skip such names (wire-contract §5.1) and never take the half-written file for a peer.
  const temporary = join(dirname(path), `..${basename(path)}.${process.pid}.${sequence++}.tmp`);
  try {
    // writeFileSync, unlike writeSync, goes on after a short write: a full disk is an error, never a shorter file.
    withOpen(temporary, 'wx', mode, (fd) => writeFileSync(fd, data));
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  // The new name is on the disk only with its directory.
  withOpen(dirname(path), 'r', 0, () => {});
}

/**
 * Removes what writers killed in the middle of an `atomicWrite` left in `dir`; it may be the half of a private key. To be called
 * before the caller's own first write there. A writer that cannot be seen from here (another machine on shared storage) loses the
 * write that is under way at this moment, with an error.
 */
export function removeAbandonedWrites(dir: string): void {
  if (!existsSync(dir)) return;
  for (const name of readdirSync(dir)) {
    const pid = /^\.\..+\.(\d+)\.\d+\.tmp$/.exec(name)?.[1];
    if (pid === undefined || (Number(pid) !== process.pid && isRunning(Number(pid)))) continue;
    rmSync(join(dir, name), { force: true });
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** What was written through the descriptor is on the disk when this returns. */
function withOpen(path: string, flags: 'wx' | 'r', mode: number, use: (fd: number) => void): void {
  const fd = openSync(path, flags, mode);
  try {
    use(fd);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Calls `onChange` when something in `dir` may have changed. inotify may merge or drop events, so the callback must read
 * the directory whole; the caller adds a periodic pass of its own for what was missed.
 */
export function watchDir(dir: string, onChange: () => void, signal: AbortSignal): void {
  const watcher = watch(dir, { signal, persistent: false }, onChange);
  watcher.on('error', onChange);
}

/** The checkout or installation that this code runs from: the folder that holds contract/ and dist/. */
export function repoRoot(): string {
  return dirname(dirname(createRequire(import.meta.url).resolve('@clustermesh/contract/package.json'))).replace(
    /\/node_modules\/@clustermesh$/,
    '',
  );
}

export function exists(path: string): boolean {
  return existsSync(path);
}
