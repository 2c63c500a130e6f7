// Everything that can be said about the sources without running them. `npm run check`.
import { pathToFileURL } from 'node:url';
import { checkFaults } from './check-faults.mjs';
import { checkRepositoryFiles } from './check-files.mjs';
import { checkImports } from './check-imports.mjs';
import { bin, repoRoot, run, seconds } from './lib.mjs';

function list(violations) {
  for (const violation of violations) console.log(`  ${violation}`);
  return violations.length === 0;
}

const checks = {
  'lint and format (biome)': async () =>
    (await run(bin('biome'), ['check', '--no-errors-on-unmatched', '--max-diagnostics=20', '.'])) === 0,
  'import directions': async () => list(checkImports(repoRoot)),
  'lock file, npmrc, paths': async () => list(checkRepositoryFiles(repoRoot)),
  'faults and their tests': async () => list(checkFaults(repoRoot)),
  types: async () => (await run(bin('tsc'), ['-p', '.'])) === 0,
};

/** Runs the checks, printing each; resolves to how many passed and failed. */
export async function runChecks({ skip = [] } = {}) {
  const result = { passed: 0, failed: 0 };
  for (const [name, check] of Object.entries(checks)) {
    if (skip.includes(name)) continue;
    const start = performance.now();
    const ok = await check();
    result[ok ? 'passed' : 'failed']++;
    console.log(`${ok ? '✔' : '✖'} ${name} (${seconds(start)})`);
  }
  return result;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { failed } = await runChecks();
  process.exitCode = failed > 0 ? 1 : 0;
}
