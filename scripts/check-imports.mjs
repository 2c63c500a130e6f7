// Keeps imports pointing inward: contract ← runtime ← kvstore, pki ← the daemons and tools. Reports
//   - an import of a room that this room may not know, by package name or by a relative path,
//   - node: modules or side effects from outside in contract/, which is pure,
//   - import cycles between the files of a room (type-only imports vanish at run time and do not count),
//   - packages that package.json does not list, or lists only for tests.
import { readFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, join, normalize } from 'node:path';
import { pathToFileURL } from 'node:url';
import { findFiles, repoRoot } from './lib.mjs';

const shared = ['contract', 'runtime', 'kvstore', 'pki'];

/** Folder → the rooms it may import. Daemons are in nobody's list: they meet in etcd and in .proto files. */
export const mayImport = {
  contract: [],
  runtime: ['contract'],
  kvstore: ['contract', 'runtime'],
  pki: ['contract', 'runtime'],
  bpf: ['contract', 'runtime'],
  apiserver: shared,
  agent: [...shared, 'bpf'],
  cli: shared,
  'test-kind': shared,
  bench: [...shared, 'bpf', 'agent'],
  // A second opinion on the wire: it would be none if it shared code with those that write it.
  'strict-reader': [],
};

/** Functions of Node's own modules that do no IO: the only ones contract/ may use. */
const pureFunctions = { 'node:net': ['isIP', 'isIPv4', 'isIPv6'] };

const folderOf = { lab: 'test-kind' };
const isTest = (file) => /\.test\.(ts|mjs)$/.test(file) || /(^|\/)test(s|ing)?\//.test(file);

// Statements are found at the start of a line, where Biome puts them, so comments and strings do not look like imports.
const statement = /^[ \t]*(import|export)\b(?![ \t]*\()([^'"`;]*?)\bfrom\s*['"]([^'"]+)['"]/gm;
const sideEffect = /^[ \t]*import\s*['"]([^'"]+)['"]/gm;
const dynamic = /^(?![ \t]*(?:\/\/|\*)).*?\bimport\(\s*['"]([^'"]+)['"]/gm;

/** The import specifiers of a source text, with the line and names of each and whether only types are meant. */
export function importsOf(source) {
  const found = [];
  const add = (match, specifier, clause) => {
    // An odd number of backticks before it: text inside a template, such as a code generator's.
    if (source.slice(0, match.index).split('`').length % 2 === 0) return;
    const line = source.slice(0, match.index + match[0].length).split('\n').length;
    const names = clause.match(/[\w$*]+/g) ?? [];
    found.push({ specifier, line, names, typeOnly: /^\s+type\b(?!\s*,|\s+from\b)/.test(clause) });
  };
  for (const match of source.matchAll(statement)) add(match, match[3], match[2]);
  for (const match of source.matchAll(sideEffect)) add(match, match[1], '');
  for (const match of source.matchAll(dynamic)) add(match, match[1], '*');
  return found;
}

const isBuiltin = (specifier) => specifier.startsWith('node:') || builtinModules.includes(specifier);
const packageOf = (specifier) => specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');

// A benchmark is no part of the product either: it measures real parts on what the tests run them on.
const isTestCode = (file) => file.endsWith('.test.ts') || file.includes('/testing/') || file.startsWith('bench/');

function checkImport(room, file, { specifier, names }, packages) {
  const known = mayImport[room];
  if (specifier.startsWith('.')) {
    const target = normalize(join(dirname(file), specifier));
    const targetRoom = target.split('/')[0];
    if (targetRoom === room) return null;
    return `reaches out of ${room}/ by a relative path into ${target.startsWith('..') ? 'another directory' : `${targetRoom}/`}; import rooms by package name`;
  }
  if (specifier.startsWith('@clustermesh/')) {
    const [, name, ...deeper] = specifier.split('/');
    const target = folderOf[name] ?? name;
    if (!(target in mayImport)) return `names the room ${name}, which does not exist`;
    if (target === room) return 'imports its own room by package name; use a relative path';
    if (!known.includes(target)) {
      return `${room} may import ${known.length > 0 ? known.join(', ') : 'no other room'}, not ${target}`;
    }
    if (deeper.length === 0) return null;
    // Helpers for tests have an entry point of their own, so that no daemon can carry one.
    if (deeper[0] === 'testing')
      return isTestCode(file) ? null : `imports the test helpers of ${target} outside of a test`;
    return `reaches into the inside of ${target}; import what its index exports`;
  }
  if (isBuiltin(specifier)) {
    const pure = names.every((name) => pureFunctions[specifier]?.includes(name));
    return room === 'contract' && !isTest(file) && !pure ? 'contract is pure: no node: modules, no IO, no clock' : null;
  }
  const name = packageOf(specifier);
  if (name in packages.dependencies) return null;
  if (!(name in packages.devDependencies)) return `package ${name} is not in package.json`;
  return isTest(file) || file.startsWith('bench/')
    ? null
    : `package ${name} is a devDependency: only tests may import it`;
}

/** One shortest-to-read path per cycle: strongly connected files, walked from the first by name. */
function findCycles(graph) {
  const cycles = [];
  const state = new Map(); // file → 'open' | 'done'
  const path = [];
  const visit = (file) => {
    state.set(file, 'open');
    path.push(file);
    for (const next of graph.get(file) ?? []) {
      if (state.get(next) === 'open') cycles.push([...path.slice(path.indexOf(next)), next]);
      else if (!state.has(next) && graph.has(next)) visit(next);
    }
    path.pop();
    state.set(file, 'done');
  };
  for (const file of [...graph.keys()].sort()) if (!state.has(file)) visit(file);
  return cycles;
}

/** All violations below `root`, as sentences that begin with file:line. */
export function checkImports(root) {
  const violations = [];
  const { dependencies = {}, devDependencies = {} } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  for (const room of Object.keys(mayImport)) {
    const graph = new Map();
    for (const file of findFiles(root, room, (name) => /\.(ts|mjs)$/.test(name) && !name.endsWith('.d.ts'))) {
      const edges = [];
      for (const found of importsOf(readFileSync(join(root, file), 'utf8'))) {
        const problem = checkImport(room, file, found, { dependencies, devDependencies });
        if (problem !== null) violations.push(`${file}:${found.line}: import of '${found.specifier}': ${problem}`);
        if (found.specifier.startsWith('.') && !found.typeOnly) {
          edges.push(normalize(join(dirname(file), found.specifier)));
        }
      }
      graph.set(file, edges);
    }
    for (const cycle of findCycles(graph)) violations.push(`${cycle[0]}:1: import cycle: ${cycle.join(' → ')}`);
  }
  return violations;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const violations = checkImports(repoRoot);
  for (const violation of violations) console.error(violation);
  process.exitCode = violations.length > 0 ? 1 : 0;
}
