/**
 *   npm run bench:mirror                                  real etcds with mTLS as peers of one apiserver; about 5 minutes
 *   npm run bench:mirror -- --quick                       at most a minute
 *   npm run bench:mirror -- --clusters 50 --keys 300000   more etcds with fewer keys each
 *   npm run bench:mirror -- --json                        figures as JSON on the last line
 *
 * The load of Cilium's CI scale test: `--keys` keys, spread over `--clusters` etcds. The apiserver is the built daemon in a process
 * of its own. Beside each figure: a bare copy with the same client, in a process of its own too. Progress on stderr.
 */
import { once } from 'node:events';
import { parseArgs } from 'node:util';
import type { Etcd } from '@clustermesh/kvstore';
import { type ChangeResult, changesPerSecond, openChanges } from './mirror/changes.ts';
import { allMirrored, differences, peerRecord } from './mirror/cold-start.ts';
import type { CopySettings, FromCopy } from './mirror/copy-process.ts';
import { checkShape, KEYS_PER_CLUSTER, type MirrorShape } from './mirror/load.ts';
import { type Measured, startMeasured, type Usage } from './mirror/processes.ts';
import { openStage, type Stage, writeConfig } from './mirror/stage.ts';
import { type Figure, mean, percentile, table } from './report.ts';
import { bundle } from './scale/children.ts';

const { values: flags } = parseArgs({
  options: {
    /** Source etcds. */
    clusters: { type: 'string', default: '10' },
    /** In all of them; rounded up to whole clusters of the scale test. */
    keys: { type: 'string', default: '300000' },
    /** Of churn. */
    minutes: { type: 'string', default: '2' },
    /** 10 s of churn. */
    quick: { type: 'boolean', default: false },
    /** Options of node for the measured daemon, as --cpu-prof. */
    'node-flags': { type: 'string', default: '' },
    json: { type: 'boolean', default: false },
  },
});

const COPY = 'bench-mirror-copy';
const progress = (text: string) => process.stderr.write(`bench: ${text}\n`);
const seconds = flags.quick ? 10 : Number(flags.minutes) * 60;
const singles = flags.quick ? 100 : 500;

interface Run {
  readonly coldSeconds: number;
  /** CPU of the process meanwhile. */
  readonly coldCpuSeconds: number;
  readonly single: ChangeResult;
  readonly churn: ChangeResult;
  readonly churnCpuSeconds: number;
  readonly usage: readonly Usage[];
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const since = performance.now();
  await work();
  return (performance.now() - since) / 1000;
}

/** What was started cold; `whole` resolves when all is at the target. */
async function measure(what: string, process: Measured, whole: () => Promise<unknown>, stage: Stage, target: Etcd) {
  const coldSeconds = await timed(() => Promise.race([whole(), process.ended]));
  const cold = process.usage();
  progress(`${what}: whole after ${coldSeconds.toFixed(1)} s, ${cold.cpuSeconds.toFixed(1)} s of CPU`);
  const changes = await openChanges({ shape, sources: stage.sources, target, absent });
  const usage: Usage[] = [];
  const sampler = setInterval(() => usage.push(process.usage()), 1000);
  try {
    const single = await changes.single(singles);
    progress(`${what}: single changes p99 ${percentile(single.latencies, 0.99).toFixed(1)} ms`);
    const before = process.usage().cpuSeconds;
    const churn = await changes.churn(seconds, (text) => progress(`${what}: ${text}`));
    progress(`${what}: churn p99 ${percentile(churn.latencies, 0.99).toFixed(1)} ms`);
    const churnCpuSeconds = process.usage().cpuSeconds - before;
    const run: Run = { coldSeconds, coldCpuSeconds: cold.cpuSeconds, single, churn, churnCpuSeconds, usage };
    return run;
  } finally {
    clearInterval(sampler);
    changes.close();
  }
}

async function measureCopy(stage: Stage): Promise<Run> {
  const { server, etcd } = await stage.target();
  const settings: CopySettings = {
    sources: stage.sources.map(({ peer, server: source }) => ({ peer, endpoint: source.endpoint })),
    target: server.endpoint,
    reader: stage.reader,
    admin: stage.admin,
  };
  const copy = startMeasured({ script: COPY, args: [JSON.stringify(settings)], nodeFlags: [] });
  try {
    const heard = async (type: FromCopy['type']) => {
      for (;;) {
        const [message] = (await once(copy.child, 'message')) as [FromCopy];
        if (message.type === type) return;
      }
    };
    const following = heard('following');
    return await measure('bare copy', copy, () => heard('copied').then(() => following), stage, etcd);
  } finally {
    await copy.stop();
    await server.close();
  }
}

async function measureMirror(stage: Stage) {
  const { server, etcd } = await stage.target();
  const { configFile } = writeConfig(stage, shape, server.endpoint);
  const daemon = startMeasured({
    script: 'clustermesh-apiserver',
    args: ['--config', configFile],
    nodeFlags: flags['node-flags'].split(' ').filter((flag) => flag !== ''),
  });
  try {
    const run = await measure('mirror', daemon, () => allMirrored(etcd, shape), stage, etcd);
    const records = await Promise.all(stage.sources.map(({ peer }) => peerRecord(etcd, peer)));
    const quarantined = records
      .flatMap((record) => Object.values(record?.families ?? {}))
      .reduce((sum, family) => sum + family.quarantined, 0);
    const notReady = records.filter((record) => record?.ready !== true || record.error !== undefined).length;
    return { ...run, quarantined, notReady, differing: await differences(etcd, stage.sources) };
  } finally {
    await daemon.stop();
    await server.close();
  }
}

function figuresOf(copy: Run, mirror: Awaited<ReturnType<typeof measureMirror>>): Figure[] {
  const p = ({ latencies }: ChangeResult, share: number) => percentile(latencies, share);
  const rate = (run: Run) => keys / run.coldSeconds;
  const info = (name: string, unit: string, value: number, baseline?: number): Figure => ({
    ...{ name, unit, value, baseline },
    ratio: baseline === undefined ? undefined : value / baseline,
  });
  const none = (name: string, value: number): Figure => ({ name, value, unit: '', aim: '= 0', ok: value === 0 });
  const third = Math.max(1, Math.floor(mirror.usage.length / 3));
  const memory = mirror.usage.map(({ rssMb }) => rssMb);
  return [
    info('source etcds', '', shape.peers),
    info('keys', '', keys),
    {
      ...info('cold start: from the start of the process to all mirrored', 'keys/s', rate(mirror), rate(copy)),
      aim: '≥ 20000',
      ok: rate(mirror) >= 20_000,
    },
    info('cold start', 's', mirror.coldSeconds, copy.coldSeconds),
    info('CPU a key, cold start', 'µs', (mirror.coldCpuSeconds / keys) * 1e6, (copy.coldCpuSeconds / keys) * 1e6),
    info('single change, source → mirrored, p50', 'ms', p(mirror.single, 0.5), p(copy.single, 0.5)),
    {
      ...info('single change, source → mirrored, p99', 'ms', p(mirror.single, 0.99), p(copy.single, 0.99)),
      aim: '≤ 20',
      ok: p(mirror.single, 0.99) <= 20,
    },
    info('changes a second', '/s', changesPerSecond(shape)),
    info('changes', '', mirror.churn.changes),
    info('under churn, p50', 'ms', p(mirror.churn, 0.5), p(copy.churn, 0.5)),
    {
      ...info('under churn, p99', 'ms', p(mirror.churn, 0.99), p(copy.churn, 0.99)),
      aim: '≤ 20',
      ok: p(mirror.churn, 0.99) <= 20,
    },
    info('CPU a change', 'µs', ...perChange(mirror, copy)),
    info('resident memory, peak', 'MB', Math.max(...mirror.usage.map(({ peakRssMb }) => peakRssMb))),
    info('memory, last third against first', 'MB', mean(memory.slice(-third)), mean(memory.slice(0, third))),
    none('changes lost', mirror.single.lost + mirror.churn.lost),
    none('objects quarantined', mirror.quarantined),
    none('peers not ready at the end', mirror.notReady),
    none('keys that differ from their source at the end', mirror.differing),
  ];
}

const perChange = (mirror: Run, copy: Run): [number, number] => [
  (mirror.churnCpuSeconds / mirror.churn.changes) * 1e6,
  (copy.churnCpuSeconds / copy.churn.changes) * 1e6,
];

const absent = new Set<string>();
const peers = Number(flags.clusters);
const shape: MirrorShape = { peers, worth: Math.ceil(Number(flags.keys) / (KEYS_PER_CLUSTER * peers)) };
checkShape(shape);
const keys = peers * shape.worth * KEYS_PER_CLUSTER;
await bundle({ [COPY]: 'bench/src/mirror/copy-process.ts' });
progress(`${peers} etcds: writing ${keys} keys`);
const stage = await openStage(shape);
try {
  const copy = await measureCopy(stage);
  const mirror = await measureMirror(stage);
  const figures = figuresOf(copy, mirror);
  process.stdout.write(`${table(figures)}\n`);
  if (flags.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
  process.exitCode = figures.every(({ ok }) => ok !== false) ? 0 : 1;
} finally {
  await stage.close();
}
