// Builds everything that runs: eBPF objects and their generated layouts, then one bundle per executable in dist/.
//
//   node scripts/build.mjs            build what changed (types are checked first)
//   node scripts/build.mjs --force    build even if nothing changed
//   node scripts/build.mjs --no-types leave the type check to the caller
//
// All output goes to stderr. Exit code 1 if any step failed.
import { createHash } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { bin, executables, findFiles, repoRoot, rooms, run, seconds, shown } from './lib.mjs';

const dist = join(repoRoot, 'dist');
const stampFile = join(dist, '.inputs');
const present = Object.entries(executables).filter(([, source]) => existsSync(join(repoRoot, source)));

/** Path, size and time of every file the build reads: cheap enough to compute each time, and any edit changes it. */
function fingerprint() {
  const hash = createHash('sha256');
  const inputs = [
    ...rooms.flatMap((room) => findFiles(repoRoot, room, (name) => /\.(ts|mjs|c|h|proto|json)$/.test(name))),
    ...findFiles(repoRoot, 'scripts', (name) => name.endsWith('.mjs')),
    'package.json',
    'package-lock.json',
    'tsconfig.json',
  ];
  for (const path of inputs) {
    const stat = statSync(join(repoRoot, path));
    hash.update(`${path} ${stat.size} ${stat.mtimeMs}\n`);
  }
  return hash.digest('hex');
}

function isUpToDate(inputs) {
  if (!existsSync(stampFile) || readFileSync(stampFile, 'utf8') !== inputs) return false;
  const outputs = present.map(([name]) => join(dist, `${name}.mjs`));
  return [...outputs, join(repoRoot, 'bpf', 'build')].every((path) => existsSync(path));
}

async function step(name, body) {
  const start = performance.now();
  process.stderr.write(`build: ${name} … `);
  try {
    await body();
  } catch (error) {
    process.stderr.write(`failed (${seconds(start)})\n${error instanceof Error ? error.message : error}\n`);
    return false;
  }
  process.stderr.write(`${seconds(start)}\n`);
  return true;
}

async function command(program, args) {
  // The tools' findings belong on stderr with everything else.
  const code = await run(program, args, { stdio: ['ignore', process.stderr, process.stderr] });
  if (code !== 0) throw new Error(`${basename(program)} ended with exit code ${code}`);
}

async function bundle() {
  const { build } = await import('esbuild');
  const { dependencies } = JSON.parse(readFileSync(join(repoRoot, 'package.json'), 'utf8'));
  const result = await build({
    absWorkingDir: repoRoot,
    entryPoints: present.map(([out, source]) => ({ in: source, out })),
    outdir: 'dist',
    outExtension: { '.js': '.mjs' },
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    // Third-party packages stay in node_modules (koffi is native, the others are CommonJS); our rooms are bundled.
    external: Object.keys(dependencies).flatMap((name) => [name, `${name}/*`]),
    banner: { js: '#!/usr/bin/env node' },
    sourcemap: true,
    logLevel: 'silent',
    write: false,
  }).catch(async (failure) => {
    const { formatMessages } = await import('esbuild');
    throw new Error((await formatMessages(failure.errors ?? [], { kind: 'error' })).join('\n') || failure.message);
  });
  for (const file of result.outputFiles) {
    // By rename: a daemon that is being started at this moment reads the old bundle or the new one, never half of one.
    const temporary = `${file.path}.${process.pid}.tmp`;
    writeFileSync(temporary, file.contents);
    if (file.path.endsWith('.mjs')) chmodSync(temporary, 0o755);
    renameSync(temporary, file.path);
  }
}

const { values: options } = parseArgs({ options: { force: { type: 'boolean' }, 'no-types': { type: 'boolean' } } });
const inputs = fingerprint();
if (!options.force && isUpToDate(inputs)) {
  process.stderr.write('build: up to date\n');
  process.exit(0);
}

mkdirSync(dist, { recursive: true });
rmSync(stampFile, { force: true });
// Layouts are generated from the compiled objects, so eBPF goes before everything that imports them.
const steps = [];
if (existsSync(join(repoRoot, 'bpf/build.mjs'))) {
  steps.push(['eBPF programs and layouts', () => command(process.execPath, ['bpf/build.mjs'])]);
}
if (!options['no-types']) steps.push(['types', () => command(bin('tsc'), ['-p', '.'])]);
steps.push([`${present.length} bundles in ${shown(dist)}/`, bundle]);

// Every step runs even if an earlier one failed: one run shows all there is to mend.
let failed = 0;
for (const [name, body] of steps) {
  if (!(await step(name, body))) failed++;
}
if (failed > 0) process.exit(1);
writeFileSync(stampFile, inputs);
