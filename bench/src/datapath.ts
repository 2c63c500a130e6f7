/**
 *   npm run bench:datapath                          every row, about four minutes
 *   npm run bench:datapath -- --only services       rows of one part: lookup, services, across, direct, programming (may be repeated)
 *   npm run bench:datapath -- --pairs 20            more alternated rounds for each figure (10 unless said otherwise)
 *   npm run bench:datapath -- --quick               three short rounds: whether it runs, not what it gives
 *   npm run bench:datapath -- --json                figures as JSON on the last line
 *
 * Each row is the median over alternated rounds, beside a baseline of the same rounds, and the ratio the median of the rounds'
 * ratios. All packets stay in network namespaces that the benchmark makes. Progress on stderr; exit code 1 if an aim is missed.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { netnsPath, openSandbox } from '@clustermesh/agent/testing/sandbox';
import { openTwoNodes, type TwoNodes } from '@clustermesh/agent/testing/two-nodes';
import { benchAcross } from './datapath/across.ts';
import { benchDirect } from './datapath/direct.ts';
import { addKernelPaths, type KernelPaths } from './datapath/kernel-paths.ts';
import { compileLoad, type Load } from './datapath/load.ts';
import { benchLookup } from './datapath/lookup.ts';
import { needPrograms } from './datapath/packages.ts';
import { benchProgramming } from './datapath/programming.ts';
import { benchServices } from './datapath/services.ts';
import { type Figure, table } from './report.ts';

const PARTS = ['lookup', 'services', 'across', 'direct', 'programming'] as const;
type Part = (typeof PARTS)[number];
const PREFIX = 'cm-bench-';

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
  }
}

async function withMesh(body: (mesh: TwoNodes, paths: KernelPaths, load: Load) => Promise<Figure[]>) {
  const mesh = await openTwoNodes(PREFIX);
  try {
    const load = compileLoad(`/run/${mesh.sandbox.name}`);
    return await body(mesh, addKernelPaths(mesh), load);
  } finally {
    await mesh.close();
  }
}

async function withSandbox(body: (sandbox: Awaited<ReturnType<typeof openSandbox>>) => Promise<Figure[]>) {
  const sandbox = await openSandbox(PREFIX);
  try {
    return await body(sandbox);
  } finally {
    await sandbox.close();
  }
}

const parts: Record<Part, () => Promise<Figure[]>> = {
  lookup: () => withSandbox((sandbox) => benchLookup(sandbox, pairs, flags.quick ? 20_000 : 1_000_000)),
  services: () => withMesh((mesh, paths, load) => benchServices({ mesh, paths, load, pairs })),
  across: () => withMesh((mesh, paths, load) => benchAcross({ mesh, paths, load, pairs })),
  direct: () => withMesh((mesh, paths, load) => benchDirect({ mesh, paths, load, pairs })),
  programming: () =>
    withSandbox((sandbox) =>
      benchProgramming(
        sandbox,
        pairs,
        flags.quick ? { backends: 10_000, ipcache: 50_000 } : { backends: 100_000, ipcache: 500_000 },
      ),
    ),
};

async function inside(): Promise<number> {
  process.once('SIGTERM', () => process.exit(143));
  if (chosen.includes('services')) needPrograms(['iptables-legacy-restore', 'nft'], progress);
  const figures: Figure[] = [];
  for (const part of chosen) {
    progress(`${part}, ${pairs} alternated rounds`);
    figures.push(...(await parts[part]()));
  }
  process.stdout.write(`${table(figures)}\n`);
  if (flags.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
  return figures.every((figure) => figure.ok !== false) ? 0 : 1;
}

process.exitCode = flags.inside ? await inside() : await outside();
