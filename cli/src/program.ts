/** The command line: options, and which function serves them. */
import type { MeshError } from '@clustermesh/contract';
import { systemClock, version } from '@clustermesh/runtime';
import { Command, CommanderError, Option } from 'commander';
import { stringify } from 'yaml';
import { connect } from './connect.ts';
import { type Context, type ContextPlaces, listContexts, resolveContext } from './contexts.ts';
import { disconnect } from './disconnect.ts';
import { formatDuration, parseDuration } from './duration.ts';
import { EXIT, EXIT_CODES_HELP, exitCodeOf, OutOfTime, UsageError } from './exit-codes.ts';
import { type PkiInitOptions, pkiInit } from './pki.ts';
import { isLost, openSide, type Side } from './side.ts';
import { report, type StatusReport, statusTable } from './status.ts';
import { printError, type Terminal } from './terminal.ts';

export interface ProgramOptions {
  readonly terminal: Terminal;
  readonly places: ContextPlaces;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
}

type Format = 'table' | 'json' | 'yaml';

const POLL_MS = 200;

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

function buildProgram(options: ProgramOptions): Command {
  const { terminal, places, signal } = options;
  const program = new Command('clustermesh')
    .description('Connects clusters into one mesh and shows how they are doing.')
    .version(version(), '-V, --version', 'print the version of this command')
    .addHelpText(
      'after',
      `\nA context is the name of a cluster's handle file, INSTANCE/NAME for a lab, or the path of the file.\n\n${EXIT_CODES_HELP}`,
    )
    .showHelpAfterError('(clustermesh --help shows all options)')
    .configureOutput({
      writeOut: (text) => terminal.out(text.trimEnd()),
      writeErr: (text) => terminal.err(text.trimEnd()),
    })
    .exitOverride();
  const command = (name: string, description: string) => {
    const made = program
      .command(name)
      .description(description)
      .exitOverride()
      .showHelpAfterError('(--help shows all options)');
    return made.configureOutput({
      writeOut: (text) => terminal.out(text.trimEnd()),
      writeErr: (text) => terminal.err(text.trimEnd()),
    });
  };

  command('connect', 'connect two clusters, in both directions')
    .requiredOption('--context <context>', 'one cluster')
    .requiredOption('--destination-context <context>', 'the other cluster')
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '2m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context: string; destinationContext: string; timeout: string }) => {
      const timeoutMs = parseDuration(given.timeout);
      await withSides([given.context, given.destinationContext], places, async ([source, destination]) => {
        await connect({ source: source!, destination: destination!, timeoutMs, terminal, signal });
      });
    });

  command('disconnect', 'end the connection of two clusters; a peer that is dead holds nothing up')
    .requiredOption('--context <context>', 'one cluster')
    .addOption(new Option('--destination-context <context>', 'the other cluster').conflicts('peer'))
    .option('--peer <cluster>', 'cluster name of a peer that is gone for good: only --context is told')
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '5m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context: string; destinationContext?: string; peer?: string; timeout: string }) => {
      const timeoutMs = parseDuration(given.timeout);
      const other = given.destinationContext;
      if (other === undefined && given.peer === undefined) {
        throw new UsageError({
          code: 'invalid-argument',
          message: 'disconnecting: the other cluster is not named',
          hint: 'give --destination-context, or --peer for a cluster that is gone',
        });
      }
      await withSides(
        other === undefined ? [given.context] : [given.context, other],
        places,
        async ([source, destination]) => {
          await disconnect({
            source: source!,
            destination,
            peer: destination?.name ?? given.peer!,
            timeoutMs,
            terminal,
            signal,
          });
        },
      );
    });

  command('status', 'show peers, what is synced, and on how many nodes it is applied')
    .option('--context <context>', 'the cluster; may be left out when there is only one')
    .option('--all', 'every cluster that can be found')
    .option('--wait', 'wait until every peer is connected, synced, and applied on every live node')
    .option('--wait-duration <duration>', 'how long --wait waits', '5m')
    .addOption(new Option('-o, --output <format>', 'how to print').choices(['table', 'json', 'yaml']).default('table'))
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(
      async (given: { context?: string; all?: boolean; wait?: boolean; waitDuration: string; output: Format }) => {
        const waitMs = parseDuration(given.waitDuration);
        await withSides(statusContexts(given, places), places, async (sides) => {
          const show = (reports: readonly StatusReport[]) => print(terminal, given.output, given.all === true, reports);
          if (given.wait !== true) return show(await Promise.all(sides.map(ask)));
          const last = await waitReady(sides, { waitMs, terminal, signal });
          show(last);
          const missing = last.flatMap((one) =>
            one.waitingFor.map((text) => (last.length === 1 ? text : `${one.context}: ${text}`)),
          );
          if (missing.length > 0) {
            throw new OutOfTime({
              message: `waiting for the mesh: not ready after ${formatDuration(waitMs)}: ${missing.join('; ')}`,
            });
          }
        });
      },
    );

  command('version', 'print the version of this command, and of a cluster')
    .option('--context <context>', 'also ask the apiserver of this cluster')
    .action(async (given: { context?: string }) => {
      terminal.out(`clustermesh ${version()}`);
      if (given.context === undefined) return;
      await withSides([given.context], places, async ([side]) => {
        const cluster = await side!.call('GetCluster', {});
        terminal.out(`apiserver ${cluster.version} (cluster ${cluster.name})`);
      });
    });

  const pki = command('pki', 'certificates of a standalone cluster');
  const several = (value: string, previous: readonly string[]) => [...previous, value];
  pki
    .command('init')
    .description(
      'make the CA and the certificates a cluster starts with; run again, it issues what is missing or ran out',
    )
    .requiredOption('--dir <directory>', 'where they are kept: pki.dir of apiserver.yaml')
    .requiredOption('--cluster <name>', 'name of the cluster')
    .option('--server-ip <address>', 'address of etcd beyond 127.0.0.1 and ::1; may be repeated', several, [])
    .option('--server-name <name>', 'name of etcd beyond *.mesh.cilium.io and localhost; may be repeated', several, [])
    .option('--node <name>', 'node whose agent gets a certificate in nodes/<name>; may be repeated', several, [])
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action((given: PkiInitOptions) => pkiInit(given, terminal));

  return program;
}

async function withSides(
  names: readonly (string | Context)[],
  places: ContextPlaces,
  use: (sides: readonly Side[]) => Promise<void>,
): Promise<void> {
  const contexts = names.map((name) => (typeof name === 'string' ? resolveContext(name, places) : name));
  const [first, second] = contexts;
  if (names.length === 2 && first!.apiserver === second!.apiserver) {
    throw new UsageError({
      code: 'invalid-argument',
      message: `both contexts are the cluster ${first!.cluster}`,
      hint: 'name two different clusters',
    });
  }
  const sides = contexts.map((context) => openSide(context));
  try {
    await use(sides);
  } finally {
    for (const side of sides) side.close();
  }
}

function statusContexts(
  given: { readonly context?: string; readonly all?: boolean },
  places: ContextPlaces,
): (string | Context)[] {
  if (given.context !== undefined) return [given.context];
  const all = listContexts(places);
  if (given.all === true || all.length === 1) {
    if (all.length > 0) return all;
  }
  throw new UsageError({
    code: all.length === 0 ? 'not-found' : 'invalid-argument',
    message:
      all.length === 0
        ? 'showing the status: no cluster was found'
        : `showing the status: there are ${all.length} contexts`,
    hint:
      all.length === 0
        ? 'start a lab (npm start, or npm run lab -- up), or set CLUSTERMESH_CONTEXTS'
        : `give --all, or --context with one of: ${all.map((context) => context.name).join(', ')}`,
  });
}

async function ask(side: Side): Promise<StatusReport> {
  return report(side.context.name, await side.call('GetStatus', {}));
}

/** Asks until all are ready or the time is over; returns the last answers. An apiserver that is away is waited for. */
async function waitReady(
  sides: readonly Side[],
  options: { readonly waitMs: number; readonly terminal: Terminal; readonly signal: AbortSignal },
): Promise<StatusReport[]> {
  const end = performance.now() + options.waitMs;
  for (;;) {
    let away: MeshError | undefined;
    const reports = await Promise.all(sides.map(ask)).catch((error) => {
      if (!isLost(error)) throw error;
      away = error;
      return [] as StatusReport[];
    });
    options.signal.throwIfAborted();
    if (away === undefined && reports.every((one) => one.ready)) {
      options.terminal.progress('');
      return reports;
    }
    if (performance.now() >= end) {
      options.terminal.progress('');
      if (away !== undefined)
        throw new OutOfTime({
          message: `waiting for the mesh: after ${formatDuration(options.waitMs)} ${away.message}`,
          hint: away.hint,
        });
      return reports;
    }
    const missing = reports.flatMap((one) =>
      one.waitingFor.map((text) => (sides.length === 1 ? text : `${one.context}: ${text}`)),
    );
    options.terminal.progress(`waiting: ${away === undefined ? missing.join('; ') : away.message}`);
    await systemClock.sleep(POLL_MS, options.signal);
  }
}

function print(terminal: Terminal, format: Format, asList: boolean, reports: readonly StatusReport[]): void {
  const value = asList ? reports : reports[0];
  if (format === 'json') terminal.out(JSON.stringify(value, null, 2));
  else if (format === 'yaml') terminal.out(stringify(value).trimEnd());
  else terminal.out(reports.map((one) => statusTable({ ...one, cluster: { ...one.cluster, caPem: '' } })).join('\n\n'));
}
