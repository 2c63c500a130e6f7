// Compiles the eBPF programs with every clang that is installed and loads each into this kernel. `npm run check:clang`, as root.
//
// Also says which newer clang the distribution offers; nothing is installed.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compile, programs } from '../bpf/compile.mjs';

const versionOf = (clang) =>
  Number(/clang version (\d+)/.exec(spawnSync(clang, ['--version'], { encoding: 'utf8' }).stdout)?.[1]);

function installed() {
  const found = new Map();
  for (const directory of (process.env.PATH ?? '').split(':')) {
    let names = [];
    try {
      names = readdirSync(directory);
    } catch {
      // not there
    }
    for (const name of names.filter((name) => /^clang(-\d+)?$/.test(name))) {
      const path = join(directory, name);
      const version = versionOf(path);
      if (version > 0 && !found.has(version)) found.set(version, path);
    }
  }
  return [...found].sort(([a], [b]) => a - b);
}

function offered() {
  const { stdout } = spawnSync('apt-cache', ['pkgnames', 'clang-'], { encoding: 'utf8' });
  return Math.max(0, ...(stdout ?? '').split('\n').map((name) => Number(/^clang-(\d+)$/.exec(name)?.[1] ?? 0)));
}

const work = mkdtempSync(join(tmpdir(), 'cm-check-clang-'));
const bpffs = join(work, 'bpf');
mkdirSync(bpffs);
execFileSync('mount', ['-t', 'bpf', 'bpf', bpffs]);
let failed = 0;
try {
  const clangs = installed();
  for (const [version, clang] of clangs) {
    for (const source of programs) {
      const pins = join(bpffs, `v${version}`);
      try {
        const { linked } = compile(source, work, clang);
        execFileSync('bpftool', ['prog', 'loadall', linked, pins], {
          stdio: ['ignore', 'pipe', 'pipe'],
          encoding: 'utf8',
        });
        console.log(`✔ clang ${version}: ${source}`);
      } catch (error) {
        failed++;
        const said = (error.stderr ?? error.message).trim().split('\n');
        console.log(`✖ clang ${version}: ${source}\n  ${said.slice(-6).join('\n  ')}`);
      } finally {
        rmSync(pins, { recursive: true, force: true });
      }
    }
  }
  const newest = Math.max(...clangs.map(([version]) => version));
  if (offered() > newest)
    console.log(`clang ${offered()} is offered, ${newest} the newest installed: apt-get install clang-${offered()}`);
} finally {
  execFileSync('umount', [bpffs]);
  rmSync(work, { recursive: true, force: true });
}
process.exitCode = failed > 0 ? 1 : 0;
