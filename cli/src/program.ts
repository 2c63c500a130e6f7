/** The command line: its commands, and what becomes of their errors. */
import { version } from '@clustermesh/runtime';
import { Command, CommanderError } from 'commander';
import type { CommandKit } from './command-kit.ts';
import { addCompletion } from './commands/completion.ts';
import { addConnect, addDisconnect } from './commands/connect.ts';
import { addDoctor } from './commands/doctor.ts';
import { addDisable, addEnable } from './commands/enable.ts';
import { addInvite, addJoin } from './commands/invite.ts';
import { addOperations } from './commands/operations.ts';
import { addPeers } from './commands/peers.ts';
import { addPki } from './commands/pki.ts';
import { addPreflight } from './commands/preflight.ts';
import { addRotate } from './commands/rotate.ts';
import { addStatus } from './commands/status.ts';
import { addSysdump } from './commands/sysdump.ts';
import { addVersion } from './commands/version.ts';
import type { ContextPlaces } from './contexts.ts';
import { EXIT, EXIT_CODES_HELP, exitCodeOf } from './exit-codes.ts';
import { printError, type Terminal } from './terminal.ts';

export interface ProgramOptions {
  readonly terminal: Terminal;
  readonly places: ContextPlaces;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
}

/** In the order of --help. */
const COMMANDS: readonly ((kit: CommandKit) => void)[] = [
  addEnable,
  addDisable,
  addConnect,
  addDisconnect,
  addInvite,
  addJoin,
  addPreflight,
  addStatus,
  addPeers,
  addOperations,
  addRotate,
  addDoctor,
  addSysdump,
  addPki,
  addCompletion,
  addVersion,
];

/** Runs one command line (without node and script) and returns the exit code. */
export async function runProgram(args: readonly string[], options: ProgramOptions): Promise<number> {
  const { terminal } = options;
  try {
    await buildProgram(options).parseAsync([...args], { from: 'user' });
    return EXIT.ok;
  } catch (error) {
    terminal.progress('');
    // Commander has printed its own message by then; help and --version are no errors.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    if (options.signal.aborted) {
      terminal.err('interrupted; what was started goes on in the clusters');
      return EXIT.interrupted;
    }
    printError(terminal, error);
    return exitCodeOf(error);
  }
}

export function buildProgram(options: ProgramOptions): Command {
  const { terminal } = options;
  const prepared = (command: Command): Command =>
    command.exitOverride().configureOutput({
      writeOut: (text) => terminal.out(text.trimEnd()),
      writeErr: (text) => terminal.err(text.trimEnd()),
    });
  const program = prepared(new Command('clustermesh'))
    .description('Connects clusters into one mesh and shows how they are doing.')
    .version(version(), '-V, --version', 'print the version of this command')
    .addHelpText(
      'after',
      `\nA context is the name of a cluster's handle file, INSTANCE/NAME for a lab, or the path of the file.\n\n${EXIT_CODES_HELP}`,
    )
    .showHelpAfterError('(clustermesh --help shows all options)');
  const add: CommandKit['add'] = (name, description, parent = program) =>
    prepared(parent.command(name, { hidden: name.startsWith('_') }).description(description)).showHelpAfterError(
      '(--help shows all options)',
    );
  for (const addTo of COMMANDS) addTo({ ...options, program, add });
  return program;
}
