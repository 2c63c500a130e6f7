/**
 *   npm run bench:datapath                          every row, about four minutes
 *   npm run bench:datapath -- --only services       rows of one part: lookup, services, across, direct, programming (may be repeated)
 *   npm run bench:datapath -- --pairs 20            more alternated rounds for each figure (10 unless said otherwise)
 *   npm run bench:datapath -- --quick               three short rounds: whether it runs, not what it gives
 *   npm run bench:datapath -- --json                figures as JSON on the last line
 *
 * Each row is the median over alternated rounds, beside a baseline of the same rounds, and the ratio the median of the rounds'
 * ratios. All packets stay in network namespaces that the benchmark makes. On stderr each figure as soon as it is measured; a part that
 * fails is a row of the table, beside those of the others. Exit code 1 if an aim was missed or a part failed.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { netnsPath, openSandbox } from '@clustermesh/agent/testing/sandbox';
import { openTwoNodes, type TwoNodes } from '@clustermesh/agent/testing/two-nodes';
import { messageOf } from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { benchAcross } from './datapath/across.ts';
import { benchDirect } from './datapath/direct.ts';
import { addKernelPaths, type KernelPaths } from './datapath/kernel-paths.ts';
import { compileLoad, type Load } from './datapath/load.ts';
import { benchLookup } from './datapath/lookup.ts';
import { benchXdpLookup } from './datapath/lookup-xdp.ts';
import { needPrograms } from './datapath/packages.ts';
import { benchProgramming } from './datapath/programming.ts';
import { benchServices } from './datapath/services.ts';
import { type Emit, type Figure, line, table } from './report.ts';

const PARTS = ['lookup', 'services', 'across', 'direct', 'programming'] as const;
type Part = (typeof PARTS)[number];
const PREFIX = 'cm-bench-';

/** How long a part may take: several times what it does. */
const LIMIT_MS = { fixed: 120_000, perRound: 60_000 };

const { values: flags } = parseArgs({
  options: {
    only: { type: 'string', multiple: true, default: [] },
    pairs: { type: 'string' },
    quick: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    inside: { type: 'boolean', default: false },
  },
});

const progress = (text: string) => process.stderr.write(`bench: ${text}\n`);

function refuse(text: string): never {
  process.stderr.write(`bench: ${text}\n`);
  process.exit(2);
}

const isPart = (name: string): name is Part => (PARTS as readonly string[]).includes(name);
const chosen: Part[] =
  flags.only.length === 0
    ? [...PARTS]
    : flags.only.map((name) => (isPart(name) ? name : refuse(`no part ${name}; parts are ${PARTS.join(', ')}`)));
const pairs = Number(flags.pairs ?? (flags.quick ? 3 : 10));
if (!Number.isInteger(pairs) || pairs < 1) refuse(`--pairs ${flags.pairs}: must be a number from 1`);

/** In a namespace of its own, so that devices made on the way are not the machine's. */
async function outside(): Promise<number> {
  const sandbox = await openSandbox(PREFIX);
  try {
    const netns = sandbox.netns('main');
    const self = [process.execPath, '--import', 'tsx', fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    const command = [`--net=${netnsPath(netns)}`, 'setpriv', '--pdeathsig', 'TERM', ...self, '--inside'];
    const child = spawn('nsenter', command, { stdio: 'inherit' });
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => child.kill('SIGTERM'));
    const [code] = (await once(child, 'exit')) as [number | null];
    return code ?? 1;
  } finally {
    await sandbox.close();
    // A child that was ended, or gave up on a part, could not take away what it had made: opening does.
    await (await openSandbox(PREFIX)).close();
  }
}

async function withMesh(body: (mesh: TwoNodes, paths: KernelPaths, load: Load) => Promise<void>) {
  const mesh = await openTwoNodes(PREFIX);
  try {
    const load = compileLoad(`/run/${mesh.sandbox.name}`);
    await body(mesh, addKernelPaths(mesh), load);
  } finally {
    await mesh.close();
  }
}

async function withSandbox(body: (sandbox: Awaited<ReturnType<typeof openSandbox>>) => Promise<void>) {
  const sandbox = await openSandbox(PREFIX);
  try {
    await body(sandbox);
  } finally {
    await sandbox.close();
  }
}

const parts: Record<Part, (emit: Emit) => Promise<void>> = {
  lookup: (emit) =>
    withSandbox(async (sandbox) => {
      const repeat = flags.quick ? 20_000 : 1_000_000;
      await benchLookup(sandbox, pairs, repeat, emit);
      await benchXdpLookup(sandbox, pairs, repeat, emit);
    }),
  async services(emit) {
    needPrograms(['iptables-legacy-restore', 'nft'], progress);
    await withMesh((mesh, paths, load) => benchServices({ mesh, paths, load, pairs, emit }));
  },
  across: (emit) => withMesh((mesh, paths, load) => benchAcross({ mesh, paths, load, pairs, emit })),
  direct: (emit) => withMesh((mesh, paths, load) => benchDirect({ mesh, paths, load, pairs, emit })),
  programming: (emit) =>
    withSandbox((sandbox) =>
      benchProgramming(
        sandbox,
        pairs,
        flags.quick ? { backends: 10_000, ipcache: 50_000 } : { backends: 100_000, ipcache: 500_000 },
        emit,
      ),
    ),
};

const failure = (part: Part, failed: string): Figure => ({
  name: part,
  value: Number.NaN,
  unit: '',
  ok: false,
  failed,
});

/** Ends with 'late' where the part has not ended: it still runs, so nothing else can be measured beside it. */
async function run(part: Part, emit: Emit): Promise<'ended' | 'late'> {
  const limitMs = LIMIT_MS.fixed + LIMIT_MS.perRound * pairs;
  const stop = new AbortController();
  const measured = parts[part](emit)
    .catch((error: unknown) => emit(failure(part, messageOf(error))))
    .then(() => 'ended' as const);
  const outcome = await Promise.race([measured, systemClock.sleep(limitMs, stop.signal).then(() => 'late' as const)]);
  stop.abort();
  if (outcome === 'late') emit(failure(part, `it has not ended within ${limitMs / 1000} s`));
  return outcome;
}

async function inside(): Promise<number> {
  process.once('SIGTERM', () => process.exit(143));
  const figures: Figure[] = [];
  const emit: Emit = (...measured) => {
    figures.push(...measured);
    for (const figure of measured) progress(line(figure));
  };
  for (const [i, part] of chosen.entries()) {
    progress(`${part}, ${pairs} alternated rounds`);
    if ((await run(part, emit)) === 'ended') continue;
    emit(...chosen.slice(i + 1).map((name) => failure(name, `not begun, for ${part} has not ended`)));
    break;
  }
  process.stdout.write(`${table(figures)}\n`);
  if (flags.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
  return figures.every((figure) => figure.ok !== false) ? 0 : 1;
}

if (flags.inside) process.exit(await inside());
process.exitCode = await outside();
