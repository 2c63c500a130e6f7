import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import koffi from 'koffi';

const LOCK_EX = 2;
const LOCK_NB = 4;

let flockFunction: ((fd: number, operation: number) => number) | undefined;

function flock(fd: number, operation: number): number {
  flockFunction ??= koffi.load(null).func('int flock(int fd, int operation)') as (
    fd: number,
    operation: number,
  ) => number;
  return flockFunction(fd, operation);
}

export interface FileLock {
  release(): void;
}

/**
 * Takes an exclusive flock(2) on `path`, or returns what the holder wrote into it. The kernel releases it when the holder dies,
 * however it dies, so there is no stale lock to judge.
 */
export function tryLock(path: string, note: string): FileLock | { readonly heldBy: string } {
  mkdirSync(dirname(path), { recursive: true });
  const fd = openSync(path, 'a+');
  if (flock(fd, LOCK_EX | LOCK_NB) !== 0) {
    closeSync(fd);
    return { heldBy: readFileSync(path, 'utf8').trim() };
  }
  ftruncateSync(fd);
  writeSync(fd, `${note}\n`);
  return { release: () => closeSync(fd) };
}
