// Small things the scripts share. Plain JavaScript: these run before anything is built.
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

export const repoRoot = dirname(dirname(fileURLToPath(import.meta.url)));

/** The bundled executables and where each starts. */
export const executables = {
  'clustermesh-apiserver': 'apiserver/src/main.ts',
  'clustermesh-gate': 'apiserver/src/gate/main.ts',
  'clustermesh-agent': 'agent/src/main.ts',
  clustermesh: 'cli/src/main.ts',
  'clustermesh-lab': 'test-kind/src/lab-main.ts',
  'clustermesh-demo': 'test-kind/src/demo-main.ts',
};

/** Folders that hold code of ours, by folder name. */
export const rooms = [
  'contract',
  'runtime',
  'kvstore',
  'pki',
  'apiserver',
  'agent',
  'bpf',
  'cli',
  'test-kind',
  'bench',
  'strict-reader',
];

const generated = new Set(['node_modules', 'dist', '.git', 'bpf/build', 'bpf/generated']);

/** Files below `dir` (relative to `root`, sorted) whose name `accepts`; never generated ones. */
export function findFiles(root, dir, accepts) {
  const found = [];
  const visit = (path) => {
    let entries;
    try {
      entries = readdirSync(join(root, path), { withFileTypes: true });
    } catch (error) {
      if (error.code === 'ENOENT') return; // a room that is not there, or a folder removed meanwhile
      throw error;
    }
    for (const entry of entries) {
      const child = path === '.' ? entry.name : `${path}/${entry.name}`;
      if (entry.isDirectory()) {
        if (!generated.has(entry.name) && !generated.has(child)) visit(child);
      } else if (accepts(entry.name)) found.push(child);
    }
  };
  visit(dir === '' ? '.' : dir);
  return found.sort();
}

/** Runs a program with our stdout and stderr and no stdin; resolves to its exit code. */
export function run(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: repoRoot, stdio: ['ignore', 'inherit', 'inherit'], ...options });
    child.on('error', reject);
    child.on('close', (code, signal) => resolve(code ?? (signal ? 128 : 1)));
  });
}

export const bin = (name) => join(repoRoot, 'node_modules', '.bin', name);

export const shown = (path) => relative(repoRoot, path) || '.';

/** Elapsed time for people: `0.4 s`. */
export const seconds = (sinceMs) => `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`;
