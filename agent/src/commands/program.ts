/** The agent's command line: its commands, and what becomes of their errors. */
import { MeshError, messageOf } from '@clustermesh/contract';
import { version } from '@clustermesh/runtime';
import { Command, CommanderError } from 'commander';
import { addEndpoints } from './endpoints.ts';
import { type CommandKit, EXIT, SOCKET_VARIABLE, type Terminal, UsageError, withAgentAt } from './kit.ts';
import { addMaps } from './maps.ts';
import { addMonitor } from './monitor.ts';
import { addPolicy } from './policy.ts';
import { addVerify } from './verify.ts';

/** In the order of --help. */
const COMMANDS: readonly ((kit: CommandKit) => void)[] = [addMaps, addEndpoints, addPolicy, addMonitor, addVerify];

/** The daemon is started by `--config FILE` alone; everything else is a command. */
export const isCommandLine = (args: readonly string[]): boolean => args[0] !== '--config' || args.length > 2;

/** Runs one command line (without node and script) and returns the exit code. */
export async function runCommands(args: readonly string[], terminal: Terminal): Promise<number> {
  let exitCode: number = EXIT.ok;
  const prepared = (command: Command): Command =>
    command
      .exitOverride()
      .showHelpAfterError('(--help shows all options)')
      .configureOutput({
        writeOut: (text) => terminal.out(text.trimEnd()),
        writeErr: (text) => terminal.err(text.trimEnd()),
      });
  const program = prepared(new Command('clustermesh-agent'))
    .description('The agent of a node, and commands that ask one that runs.')
    .usage('--config FILE | <command> [options]')
    .version(version(), '-V, --version', 'print the version of this command')
    .addHelpText(
      'after',
      `
\`clustermesh-agent --config FILE\` runs the agent. A command names a running one by --socket PATH, by --config FILE, or by
${SOCKET_VARIABLE}.

Exit codes:
  0    done
  1    failed; for verify: something differs; for map get and policy get: nothing found
  2    wrong usage
  130  interrupted`,
    );
  const kit: CommandKit = {
    terminal,
    group: (name, description) => prepared(program.command(name).description(description)),
    add: (name, description, parent = program) =>
      prepared(parent.command(name).description(description))
        .option('--socket <path>', 'socket of the agent')
        .option('--config <file>', 'configuration of the agent, for its socket'),
    async withAgent(options, use) {
      exitCode = (await withAgentAt(options, terminal.env, use)) ?? EXIT.ok;
    },
  };
  for (const addTo of COMMANDS) addTo(kit);

  try {
    await program.parseAsync([...args], { from: 'user' });
    return terminal.signal.aborted ? EXIT.interrupted : exitCode;
  } catch (error) {
    // Commander has printed its own message by then; help and --version are no errors.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    if (terminal.signal.aborted) return EXIT.interrupted;
    terminal.err(`error: ${messageOf(error)}`);
    if (error instanceof MeshError && error.hint !== undefined) terminal.err(`hint: ${error.hint}`);
    return error instanceof UsageError ? EXIT.usage : EXIT.failed;
  }
}
