import type { MeshError } from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { type CommandKit, type Format, outputOption, print, withSides } from '../command-kit.ts';
import { type Context, type ContextPlaces, listContexts } from '../contexts.ts';
import { formatDuration, parseDuration } from '../duration.ts';
import { EXIT_CODES_HELP, OutOfTime, UsageError } from '../exit-codes.ts';
import { isLost, type Side } from '../side.ts';
import { report, type StatusReport, statusTable } from '../status.ts';
import type { Terminal } from '../terminal.ts';

const POLL_MS = 200;

interface Given {
  readonly context?: string;
  readonly all?: boolean;
  readonly wait?: boolean;
  readonly waitDuration: string;
  readonly output: Format;
}

export function addStatus({ add, terminal, places, signal }: CommandKit): void {
  add('status', 'show peers, what is synced, and on how many nodes it is applied')
    .option('--context <context>', 'the cluster; without it, every cluster that can be found')
    .option('--all', 'every cluster that can be found, as a list also when there is one')
    .option('--wait', 'wait until every peer is connected, synced, and applied on every live node')
    .option('--wait-duration <duration>', 'how long --wait waits', '5m')
    .addOption(outputOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: Given) => {
      const waitMs = parseDuration(given.waitDuration);
      const contexts = statusContexts(given, places);
      const asList = given.all === true || contexts.length > 1;
      const show = (reports: readonly StatusReport[]) =>
        print(terminal, given.output, asList ? reports : reports[0]!, () => statusTables(reports));
      await withSides(contexts, places, async (sides) => {
        if (given.wait !== true) return show(await Promise.all(sides.map(ask)));
        const last = await waitReady(sides, { waitMs, terminal, signal });
        show(last);
        const missing = missingOf(last);
        if (missing.length > 0) {
          throw new OutOfTime({
            message: `waiting for the mesh: not ready after ${formatDuration(waitMs)}: ${missing.join('; ')}`,
          });
        }
      });
    });
}

const statusTables = (reports: readonly StatusReport[]): string =>
  reports.map((one) => statusTable({ ...one, cluster: { ...one.cluster, caPem: '' } })).join('\n\n');

const missingOf = (reports: readonly StatusReport[]): string[] =>
  reports.flatMap((one) => one.waitingFor.map((text) => (reports.length === 1 ? text : `${one.context}: ${text}`)));

function statusContexts(given: Given, places: ContextPlaces): (string | Context)[] {
  if (given.context !== undefined) return [given.context];
  const all = listContexts(places);
  if (all.length > 0) return all;
  throw new UsageError({
    code: 'not-found',
    message: 'showing the status: no cluster was found',
    hint: 'start a lab (npm start, or npm run lab -- up), or set CLUSTERMESH_CONTEXTS',
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
    options.terminal.progress(`waiting: ${away === undefined ? missingOf(reports).join('; ') : away.message}`);
    await systemClock.sleep(POLL_MS, options.signal);
  }
}
