import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, watch, writeSync } from 'node:fs';
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
  const fd = openSync(temporary, 'wx', mode);
  try {
    writeSync(fd, typeof data === 'string' ? Buffer.from(data) : data);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
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
