/** `clustermesh-agent --config FILE` is the daemon; with a command it asks a daemon that runs. */
import { isCommandLine, runCommands } from './commands/program.ts';

const args = process.argv.slice(2);
if (isCommandLine(args)) {
  const interrupt = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupt.abort());
  // A reader that has seen enough (`… monitor | head -1`) is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
  process.exitCode = await runCommands(args, {
    out: (line) => process.stdout.write(`${line}\n`),
    err: (line) => process.stderr.write(`${line}\n`),
    env: process.env,
    signal: interrupt.signal,
  });
} else {
  await import('./daemon.ts');
}
