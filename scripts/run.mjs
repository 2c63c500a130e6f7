// Runs an executable of dist/ in this very process, so that stdio, signals and the exit code are its own.
//
//   node scripts/run.mjs NAME [ARGS…]
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { executables, repoRoot, run } from './lib.mjs';

const [name, ...args] = process.argv.slice(2);
if (name === undefined || !Object.hasOwn(executables, name)) {
  console.error(`run: cannot run ${name ?? 'nothing'}: known are ${Object.keys(executables).join(', ')}`);
  process.exit(64);
}
const file = join(repoRoot, 'dist', `${name}.mjs`);
if (!existsSync(file)) {
  const code = await run('bash', ['scripts/setup.sh'], { stdio: ['ignore', process.stderr, 'inherit'] });
  if (code !== 0) process.exit(code);
}
process.argv = [process.argv[0], file, ...args];
await import(pathToFileURL(file).href);
