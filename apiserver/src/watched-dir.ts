import { mkdirSync, statSync } from 'node:fs';
import { MeshError } from '@clustermesh/contract';
import { watchDir } from '@clustermesh/runtime';

/**
 * inotify on a directory that may be replaced whole. It is made here, once; gone later, it is a fault (an unmounted volume, a slip
 * of the hand), never the wish that all of its content be forgotten. `arm` is called in every pass of the loop that reads the
 * directory: it watches again when it is another one than before, and throws while there is none.
 */
export function watchedDirectory(dir: string, onChange: () => void, signal: AbortSignal): { arm(): void } {
  let inode: number | undefined;
  let current: AbortController | undefined;
  signal.addEventListener('abort', () => current?.abort(), { once: true });
  mkdirSync(dir, { recursive: true });
  return {
    arm() {
      if (signal.aborted) return;
      const now = statSync(dir, { throwIfNoEntry: false })?.ino;
      if (now === inode && now !== undefined) return;
      current?.abort();
      inode = now;
      if (now === undefined) {
        throw new MeshError({
          code: 'not-found',
          message: `watching ${dir}: the directory is gone; what was read from it last stays in force`,
          hint: 'put it back with its content',
        });
      }
      current = new AbortController();
      watchDir(dir, onChange, current.signal);
    },
  };
}
