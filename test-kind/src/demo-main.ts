/** `npm start`: two regions, one mesh, on this machine; a failover to watch. */
import { cpSync, existsSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { version } from '@clustermesh/runtime';
import { Command, CommanderError, Option } from 'commander';
import { defaultTopologyFile, readTopology } from './cli/lifecycle.ts';
import { errorText } from './cli/output.ts';
import { LabClient } from './client.ts';
import { createDisplay, type Display, type StepResult } from './demo/display.ts';
import { closingTable, commandsToTry, describeClusters, type Report, versions } from './demo/report.ts';
import { type DemoContext, STEPS } from './demo/steps.ts';
import { remains, teardown } from './netns/instance.ts';
import { assertInstanceName, instancePaths } from './netns/names.ts';

interface Options {
  readonly instance: string;
  readonly once?: boolean;
  readonly json?: boolean;
}

const INTERRUPTED = 130;

/** Runs the steps in order; after the first that fails the others are not tried. */
async function runSteps(demo: DemoContext, display: Display): Promise<StepResult[]> {
  const results: StepResult[] = [];
  for (const step of STEPS) {
    const startedAt = performance.now();
    display.begin(step.title);
    let ok = true;
    let detail: string;
    try {
      detail = await step.run(demo);
    } catch (error) {
      ok = false;
      detail = errorText(error).trimEnd();
    }
    const result = { name: step.name, ok, ms: Math.round(performance.now() - startedAt), detail };
    results.push(result);
    display.end(result, step.title);
    if (!ok) break;
  }
  return results;
}

/** The logs go with the instance; of a run that failed they are worth keeping. */
function keepLogs(instance: string): string | undefined {
  const { logs } = instancePaths(instance);
  if (!existsSync(logs)) return undefined;
  const copy = mkdtempSync(join(tmpdir(), `clustermesh-${instance}-logs-`));
  cpSync(logs, copy, { recursive: true });
  return copy;
}

async function demonstrate(options: Options): Promise<number> {
  const instance = assertInstanceName(options.instance);
  const display = createDisplay(options.json === true ? process.stderr : process.stdout);
  const topology = readTopology(defaultTopologyFile());
  const demo: DemoContext = {
    instance,
    topology,
    live: (text) => display.live(text),
    held: false,
    lab: new LabClient(instance),
  };
  const end = async () => {
    if (demo.held) await teardown(instance);
  };
  let interrupted = false;
  let stop = (): void => {
    if (interrupted) return;
    interrupted = true;
    process.stderr.write('\ninterrupted, cleaning up\n');
    void end().finally(() => process.exit(INTERRUPTED));
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop());

  display.print(`clustermesh ${version()}: two regions, one mesh, on this machine\n`);
  const steps = await runSteps(demo, display);
  if (interrupted) await new Promise(() => {}); // the step failed because its lab is being taken down; that ends the process
  const report: Report = {
    ok: steps.length === STEPS.length && steps.every((step) => step.ok),
    clusters: describeClusters(topology),
    steps,
    failover: demo.failover ?? null,
    restart: demo.restart ?? null,
    versions: await versions(),
  };
  display.print(`\n${closingTable(report)}`);
  if (!report.ok) {
    const logs = demo.held ? keepLogs(instance) : undefined;
    if (logs !== undefined) display.print(`Not everything held. The logs are in ${logs}`);
  }
  if (options.once !== true && report.ok) {
    display.print(commandsToTry(instance));
    if (options.json === true) process.stdout.write(`${JSON.stringify(report)}\n`);
    await new Promise<void>((resolve) => {
      stop = resolve;
      setInterval(() => {}, 2 ** 30); // nothing else keeps the process alive
    });
    display.print('\ncleaning up');
  }
  await end();
  const left = demo.held ? remains(instance) : [];
  if (left.length > 0) display.print(`still there: ${left.join(', ')}`);
  if (options.json === true && (options.once === true || !report.ok))
    process.stdout.write(`${JSON.stringify(report)}\n`);
  return report.ok && left.length === 0 ? 0 : 1;
}

const program = new Command('npm start --')
  .description('Brings up two regions on this machine, joins them and shows a failover.')
  .version(version())
  .addOption(new Option('--instance <name>', 'lab instance to run in').default('demo'))
  .option('--once', 'end after the last step instead of staying up')
  .option('--json', 'print the result as one last line of JSON on stdout; everything else goes to stderr')
  .showHelpAfterError('(--help shows what there is)')
  .exitOverride();

try {
  program.parse();
  process.exit(await demonstrate(program.opts<Options>()));
} catch (error) {
  if (error instanceof CommanderError) process.exit(error.exitCode === 0 ? 0 : 64);
  process.stderr.write(errorText(error));
  process.exit(1);
}
