/**
 *   npm run bench:scale                                     the load of Cilium's CI scale test against one agent; about 15 minutes
 *   npm run bench:scale -- --minutes 1 --no-cost            shorter
 *   npm run bench:scale -- --clusters 50 --json             smaller; figures as JSON on the last line
 *
 * One real etcd with mTLS holds clusters × (nodes + identities + endpoints) keys in the cached layout; one real agent (core and
 * datapath, in a network namespace, bpffs and cgroup of its own) follows them into the kernel. Progress on stderr.
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { netnsPath, openSandbox } from '@clustermesh/agent/testing/sandbox';
import { type Figure, percentile, table } from './report.ts';
import { bundle } from './scale/children.ts';
import { CHURN, type LoadShape, OWN } from './scale/load.ts';
import { memoryGrowth, type RunResult, runScale } from './scale/run.ts';

const { values: flags } = parseArgs({
  options: {
    clusters: { type: 'string', default: '250' },
    nodes: { type: 'string', default: '100' },
    identities: { type: 'string', default: '100' },
    endpoints: { type: 'string', default: '1000' },
    minutes: { type: 'string', default: '10' },
    /** Leave out the runs with 10 and 50 clusters. */
    'no-cost': { type: 'boolean', default: false },
    /** Options of node for the measured agent. (CM_BENCH_PROFILE=/tmp/x writes CPU profiles of its bootstraps.) */
    'agent-flags': { type: 'string', default: '' },
    json: { type: 'boolean', default: false },
    inside: { type: 'string' },
  },
});

const progress = (text: string) => process.stderr.write(`bench: ${text}\n`);
const COST_CLUSTERS = [10, 50];
const COST_SECONDS = 20;

/** Makes the place, starts itself inside, and takes everything away again, however that ended. */
async function outside(): Promise<number> {
  const sandbox = await openSandbox('cm-bench-');
  try {
    const netns = sandbox.netns('node');
    sandbox.cgroup('pods');
    const self = [process.execPath, '--import', 'tsx', fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    const command = [`--net=${netnsPath(netns)}`, 'setpriv', '--pdeathsig', 'KILL', ...self];
    const place = JSON.stringify({ bpffs: sandbox.bpffs, pods: sandbox.cgroup('pods'), dir: `/run/${sandbox.name}` });
    const child = spawn('nsenter', [...command, '--inside', place], { stdio: 'inherit' });
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => child.kill('SIGKILL'));
    const [code] = (await once(child, 'exit')) as [number | null];
    return code ?? 1;
  } finally {
    await sandbox.close();
  }
}

async function inside(place: { readonly bpffs: string; readonly pods: string; readonly dir: string }): Promise<number> {
  const shape: LoadShape = {
    clusters: Number(flags.clusters),
    nodes: Number(flags.nodes),
    identities: Number(flags.identities),
    endpoints: Number(flags.endpoints),
  };
  if (shape.clusters > 250 || shape.nodes > 100 || shape.endpoints > shape.nodes * 250)
    throw new Error('the address plan of this load ends at 250 clusters, 100 nodes each and 250 endpoints a node');
  // As on a node: the host has its gateway address, from which its routes to the peers' pods go.
  execFileSync('ip', ['addr', 'add', `${OWN.gatewayIP}/32`, 'dev', 'lo']);
  await bundle();
  const run = (clusters: number, churnSeconds: number, whole: boolean) => {
    const directory = join(place.dir, `run-${clusters}`);
    const bpffs = join(place.bpffs, `run-${clusters}`);
    mkdirSync(bpffs, { recursive: true });
    return runScale({
      shape: { ...shape, clusters },
      churnSeconds,
      // The same changes a second in all, however many clusters they come from.
      rateScale: shape.clusters / clusters,
      directory,
      bpffs,
      cgroup: place.pods,
      agentFlags: flags['agent-flags'].split(' ').filter((flag) => flag !== ''),
      whole,
      progress,
    });
  };
  const smaller = new Map<number, RunResult>();
  if (!flags['no-cost']) {
    for (const clusters of COST_CLUSTERS)
      if (clusters < shape.clusters) smaller.set(clusters, await run(clusters, COST_SECONDS, false));
  }
  const result = await run(shape.clusters, Number(flags.minutes) * 60, true);
  const figures = figuresOf(result, shape, smaller);
  process.stdout.write(`${table(figures)}\n`);
  if (flags.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
  return figures.every((figure) => figure.ok !== false) ? 0 : 1;
}

function figuresOf(result: RunResult, shape: LoadShape, smaller: ReadonlyMap<number, RunResult>): Figure[] {
  const { bootstrap, restart, churn, churnSamples } = result;
  const baseline = Math.min(...result.baselines.map(({ ms }) => ms)) / 1000;
  const baselineCpu = Math.min(...result.baselines.map(({ threadMs }) => threadMs)) / 1000;
  const seconds = bootstrap.ms / 1000;
  const samples = [...result.bootstrapSamples, ...churnSamples];
  const peak = Math.max(bootstrap.peakRssMb, ...samples.map((sample) => sample.rssMb));
  const growth = memoryGrowth(churnSamples);
  const most = (of: 'queue' | 'loopMaxMs' | 'rowFailures' | 'disconnects' | 'repairs', from = samples) =>
    Math.max(0, ...from.map((sample) => sample[of]));
  const p = (share: number) => percentile(churn.latencies, share);
  const atMost = (name: string, value: number, unit: string, limit: number): Figure => ({
    name,
    value,
    unit,
    aim: `≤ ${limit}`,
    ok: value <= limit,
  });
  const info = (name: string, value: number, unit: string): Figure => ({ name, value, unit });
  const ratio = seconds / baseline;
  const costs = [...smaller, [shape.clusters, result] as const].map(([clusters, { cpuUsPerEvent, churn: c }]) => ({
    clusters,
    cost: cpuUsPerEvent,
    p50: percentile(c.latencies, 0.5),
  }));
  const least = costs[0]!;
  const rate = Object.values(CHURN).reduce((sum, each) => sum + each, 0) * shape.clusters;
  return [
    info('keys', result.keys, ''),
    atMost('bootstrap to applied in kernel', seconds, 's', 30),
    {
      name: 'bootstrap against a bare paged range',
      value: seconds,
      unit: 's',
      baseline,
      ratio,
      aim: '≤ 3 ×',
      ok: ratio <= 3,
    },
    {
      name: 'of this, CPU of its JavaScript thread',
      value: bootstrap.threadMs / 1000,
      unit: 's',
      baseline: baselineCpu,
      ratio: bootstrap.threadMs / 1000 / baselineCpu,
    },
    atMost('resident memory, peak', peak, 'MB', 700),
    atMost('connections lost', most('disconnects'), '', 0),
    atMost('rows that failed (sync errors)', most('rowFailures'), '', 0),
    atMost('rows waiting for the kernel, most, bootstrap', most('queue', [...result.bootstrapSamples]), 'rows', 1000),
    atMost('rows waiting for the kernel, most, churn', most('queue', [...churnSamples]), 'rows', 1000),
    ...(restart === undefined
      ? []
      : [
          info('restart on the same kernel', restart.ms / 1000, 's'),
          atMost('rows written again by a restart', restart.rowsWritten, 'rows', 0),
        ]),
    info('changes a second', rate, '/s'),
    info('changes', churn.events, ''),
    atMost('put → applied in kernel, p50', p(0.5), 'ms', 10),
    atMost('put → applied in kernel, p99', p(0.99), 'ms', 50),
    info('put → applied in kernel, most', churn.latencies.at(-1) ?? Number.NaN, 'ms'),
    info('event loop late, most', most('loopMaxMs', [...churnSamples]), 'ms'),
    atMost('changes lost', churn.lost.length + churn.putErrors, '', 0),
    atMost('kernel rows repaired', most('repairs'), 'rows', 0),
    {
      name: 'kernel holds what was published',
      value: result.isKernelRight ? 1 : 0,
      unit: '',
      aim: '= 1',
      ok: result.isKernelRight,
    },
    {
      name: 'memory, last third against first',
      value: growth.last,
      unit: 'MB',
      baseline: growth.first,
      ratio: growth.last / growth.first,
      aim: '≤ 1.05 ×',
      ok: growth.last / growth.first <= 1.05,
    },
    ...costs.map(({ clusters, cost }) => {
      const isCompared = clusters !== least.clusters;
      return {
        name: `CPU per change at ${clusters} clusters`,
        value: cost,
        unit: 'µs',
        ...(isCompared
          ? { baseline: least.cost, ratio: cost / least.cost, aim: '≤ 1.5 ×', ok: cost / least.cost <= 1.5 }
          : {}),
      };
    }),
    ...costs.slice(0, -1).map(({ clusters, p50 }) => info(`put → applied, p50 at ${clusters} clusters`, p50, 'ms')),
  ];
}

process.exitCode = flags.inside === undefined ? await outside() : await inside(JSON.parse(flags.inside));
