import { messageOf } from '@clustermesh/contract';
import type { Log } from './log.ts';

/**
 * Runs a daemon until SIGTERM or SIGINT. `start` builds everything under the given signal and returns what must be awaited at
 * the end, in the order in which it is to be closed. A broken invariant (unhandled rejection) ends the process with status 1:
 * its supervisor restarts it from what is on disk and in the kernel.
 */
export async function runDaemon(
  log: Log,
  start: (signal: AbortSignal) => Promise<readonly (() => Promise<void>)[]>,
): Promise<void> {
  const stop = new AbortController();
  const onSignal = (name: string) => {
    log.info({ signal: name }, 'stopping');
    stop.abort();
  };
  process.once('SIGTERM', onSignal);
  process.once('SIGINT', onSignal);
  // Node's own warnings are lines of the log like any other, not text between them (it prints them only while nobody listens).
  process.removeAllListeners('warning');
  process.on('warning', (warning) => log.warn({ err: warning }, 'warning of the runtime'));
  process.on('unhandledRejection', (error) => {
    log.fatal({ err: error }, 'broken invariant: unhandled rejection');
    process.exit(1);
  });
  try {
    const closers = await start(stop.signal);
    if (!stop.signal.aborted)
      await new Promise<void>((resolve) => stop.signal.addEventListener('abort', () => resolve(), { once: true }));
    for (const close of closers) await close();
    log.info('stopped');
    process.exit(0);
  } catch (error) {
    log.fatal({ err: error }, `cannot start: ${messageOf(error)}`);
    process.exit(1);
  }
}

/** The value of `--config FILE`, or a usage line and exit 2. */
export function configArgument(program: string): string {
  const index = process.argv.indexOf('--config');
  const path = index < 0 ? undefined : process.argv[index + 1];
  if (path !== undefined) return path;
  const wantsHelp = process.argv.includes('--help') || process.argv.includes('-h');
  (wantsHelp ? process.stdout : process.stderr).write(`usage: ${program} --config FILE\n`);
  process.exit(wantsHelp ? 0 : 2);
}
