import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { netnsPath, openSandbox, sh } from './sandbox.ts';

/** Number of a process that has ended. */
async function endedPid(): Promise<number> {
  const child = spawn('true');
  await once(child, 'exit');
  return child.pid as number;
}

test('what killed test runs have left is removed, however many test files start at the same moment', async () => {
  const pids = await Promise.all(Array.from({ length: 4 }, endedPid));
  const netns = pids.flatMap((pid) => [0, 1, 2, 3].map((n) => `cm-dpt-${pid}-${n}`));
  for (const name of netns) sh('ip', 'netns', 'add', name);
  const directories = pids.map((pid) => `/run/cm-dpt-${pid}`);
  for (const directory of directories) mkdirSync(join(directory, 'bpf'), { recursive: true });

  const script = `
    import { openSandbox } from '${new URL('./sandbox.ts', import.meta.url).href}';
    const sandbox = await openSandbox();
    await sandbox.close();
  `;
  const args = ['--import', 'tsx', '--input-type=module', '--eval', script];
  const start = () => promisify(execFile)(process.execPath, args);
  await Promise.all(Array.from({ length: 4 }, start));
  for (const path of [...netns.map(netnsPath), ...directories]) assert.ok(!existsSync(path), path);
});

test('a sandbox leaves nothing behind, and may be closed twice', async () => {
  const sandbox = await openSandbox();
  const netns = netnsPath(sandbox.netns('a'));
  const cgroup = sandbox.cgroup('b/c');
  await sandbox.close();
  await sandbox.close();
  for (const path of [netns, cgroup, sandbox.bpffs]) assert.ok(!existsSync(path), path);
});
