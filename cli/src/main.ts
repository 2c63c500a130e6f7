import { runProgram } from './program.ts';
import { processTerminal } from './terminal.ts';

const interrupt = new AbortController();
process.once('SIGINT', () => interrupt.abort());
process.once('SIGTERM', () => interrupt.abort());
// A reader that has seen enough (`clustermesh status | head -1`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

process.exitCode = await runProgram(process.argv.slice(2), {
  terminal: processTerminal(),
  places: { env: process.env },
  signal: interrupt.signal,
});
