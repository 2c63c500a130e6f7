/** Restarts a daemon when a file changes that it reads only as it starts. */
import { readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Log, startRunner, watchDir } from '@clustermesh/runtime';
import type { SupervisedProcess } from '../netns/process.ts';

const GRACE_MS = 5_000;
const LOOK_MS = 1_000;

/** What is killed by a command of the lab stays dead: it reads the new files when it is started next. */
export function restartOnChange(options: {
  readonly process: SupervisedProcess;
  readonly files: readonly string[];
  readonly signal: AbortSignal;
  readonly log: Log;
}): void {
  const { process, files, signal, log } = options;
  if (files.length === 0) return;
  const content = () => files.map((file) => readFileSync(file, 'utf8')).join('\0');
  let startedWith = content();
  const runner = startRunner({
    run: async () => {
      const now = content();
      if (now === startedWith) return;
      startedWith = now;
      if (!process.isAlive()) return;
      log.info({ daemon: process.spec.name }, 'restarted: what it reads at its start has changed');
      await process.terminate(GRACE_MS);
      process.start();
    },
    // A key and its certificate are written one after the other.
    minIntervalMs: 200,
    retryMs: LOOK_MS,
    maxIntervalMs: LOOK_MS,
    signal,
    onError: () => {}, // being replaced just now
  });
  for (const dir of new Set(files.map((file) => dirname(file)))) watchDir(dir, runner.trigger, signal);
}
