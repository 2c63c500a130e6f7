import { mkdirSync, statSync } from 'node:fs';
import { watchDir } from '@clustermesh/runtime';

/**
 * inotify on a directory that may not exist yet or may be replaced whole. `arm` is called in every pass of the loop that reads
 * the directory: it makes the directory if need be and watches it again when it is another one than before.
 */
export function watchedDirectory(dir: string, onChange: () => void, signal: AbortSignal): { arm(): void } {
  let inode: number | undefined;
  let current: AbortController | undefined;
  signal.addEventListener('abort', () => current?.abort(), { once: true });
  return {
    arm() {
      if (signal.aborted) return;
      mkdirSync(dir, { recursive: true });
      const now = statSync(dir).ino;
      if (now === inode) return;
      current?.abort();
      current = new AbortController();
      watchDir(dir, onChange, current.signal);
      inode = now;
    },
  };
}
