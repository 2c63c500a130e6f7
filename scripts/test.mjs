// Checks, build and tests, closed by one line: `N passed, N failed[, N skipped]`. Failed checks and a failed build count
// in it like failed tests.
//
//   node scripts/test.mjs               everything
//   node scripts/test.mjs contract pki  only test files whose path contains one of the words; no checks
//   node scripts/test.mjs --quick       without the *.e2e.test.ts files
import { spawn } from 'node:child_process';
import { parseArgs } from 'node:util';
import { runChecks } from './check.mjs';
import { findFiles, repoRoot, rooms, run } from './lib.mjs';

const { values: options, positionals: words } = parseArgs({
  options: { quick: { type: 'boolean', default: false } },
  allowPositionals: true,
});

// A whole-mesh test brings up many namespaces, etcds and agents: alone on the machine it means what it says about time.
// The time limits hold per file, not per test: Node 20 treats a file as the outermost test.
const groups = [
  { name: 'tests', accepts: (file) => !file.endsWith('.e2e.test.ts'), concurrency: 2, timeoutMs: 300_000 },
  { name: 'whole-mesh tests', accepts: (file) => file.endsWith('.e2e.test.ts'), concurrency: 1, timeoutMs: 480_000 },
];

const DEADLINE_MINUTES = Number(process.env.CM_TEST_DEADLINE_MINUTES ?? 35);

/** For tests to clean up after themselves. */
const LAST_WORDS_MS = 30_000;

const total = { passed: 0, failed: 0, skipped: 0 };

function fail(sentence) {
  total.failed++;
  console.log(`✖ ${sentence}`);
}

/** One `node --test` run, shown as it goes. The counts are those of its closing block. */
function runTests(files, { concurrency, timeoutMs }) {
  return new Promise((resolve, reject) => {
    const args = ['--import', 'tsx', '--enable-source-maps', '--test', '--test-reporter=spec'];
    args.push(`--test-concurrency=${concurrency}`, `--test-timeout=${timeoutMs}`, ...files);
    const child = spawn(process.execPath, args, { cwd: repoRoot, stdio: ['ignore', 'pipe', 'inherit'] });
    runner = child;
    const counts = {};
    let rest = '';
    child.stdout.setEncoding('utf8');
    child.stdout.on('data', (text) => {
      process.stdout.write(text);
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        const match = /^ℹ (tests|pass|fail|cancelled|skipped|todo) (\d+)$/.exec(line);
        if (match) counts[match[1]] = Number(match[2]);
      }
    });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      runner = null;
      resolve({ counts, ok: code === 0, ending: signal ?? `exit code ${code}` });
    });
  });
}

async function runGroup(group, files) {
  console.log(`\n${group.name}: ${files.length} files`);
  const { counts, ok, ending } = await runTests(files, group);
  const failed = (counts.fail ?? 0) + (counts.cancelled ?? 0);
  total.passed += counts.pass ?? 0;
  total.failed += failed;
  total.skipped += (counts.skipped ?? 0) + (counts.todo ?? 0);
  if (late) return;
  // Node 20 reports success when it found nothing to run, and a crashed runner prints no counts at all.
  if (!counts.tests) fail(`${group.name}: no test ran in ${files.length} files (${ending})`);
  else if (!ok && failed === 0) fail(`${group.name}: the test runner ended with ${ending}`);
}

// A test run leaves nothing running: an interrupt is passed on, and the runner's own ending is waited for.
let runner = null;
let interrupted = false;
let late = false;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    interrupted = true;
    if (runner === null) process.exit(1);
    runner.kill(signal);
  });
}

// Whoever waits for the run gets an answer, even when something hangs that no limit of its own ends.
setTimeout(() => {
  late = true;
  fail(`the run took longer than ${DEADLINE_MINUTES} minutes; what was running is ended, the rest is left out`);
  if (runner === null) finish();
  runner.kill('SIGTERM');
  setTimeout(finish, LAST_WORDS_MS).unref();
}, DEADLINE_MINUTES * 60_000).unref();

function finish() {
  runner?.kill('SIGKILL');
  console.log(
    `\n${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ''}`,
  );
  process.exit(total.failed > 0 ? 1 : 0);
}

if (words.length === 0) {
  const checks = await runChecks({ skip: ['types'] });
  total.passed += checks.passed;
  total.failed += checks.failed;
}
// The build includes the type check.
const built = (await run(process.execPath, ['scripts/build.mjs'])) === 0;
if (built) total.passed++;
else fail('build');

const chosen = [...rooms, 'scripts']
  .flatMap((dir) => findFiles(repoRoot, dir, (name) => /\.test\.(ts|mjs)$/.test(name)))
  .filter((file) => words.length === 0 || words.some((word) => file.includes(word)));
if (chosen.length === 0) fail(`no test file found${words.length > 0 ? ` for ${words.join(', ')}` : ''}`);

for (const group of groups) {
  const files = chosen.filter(group.accepts);
  if (files.length === 0) continue;
  if (group.concurrency === 1 && options.quick) console.log(`\n${group.name}: left out (--quick)`);
  else if (late) break;
  else if (interrupted) fail(`${group.name}: not run, because of an interrupt`);
  else if (group.concurrency === 1 && !built) fail(`${group.name}: not run, because the build failed`);
  else await runGroup(group, files);
}

finish();
