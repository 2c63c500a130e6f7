import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { waitFor } from '@clustermesh/runtime';
import { inNetns, netnsOfCgroup, openOwnNetns } from './netns.ts';
import { netnsPath, openSandbox, type Sandbox } from './testing/sandbox.ts';

const inodeOf = (path: string): bigint => statSync(path, { bigint: true }).ino;
const inodeHere = (): bigint => inodeOf('/proc/thread-self/ns/net');

let sandbox: Sandbox;
const children: ReturnType<typeof spawn>[] = [];

before(async () => {
  sandbox = await openSandbox('cm-netns-');
});

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await sandbox?.close();
});

describe('being in another network namespace', () => {
  it('lasts as long as the body, also one that throws', () => {
    const path = netnsPath(sandbox.netns('other'));
    const [own, other] = [openOwnNetns(), openSync(path, 'r')];
    const here = inodeHere();
    try {
      assert.equal(inNetns(own, other, inodeHere), inodeOf(path));
      assert.equal(inodeHere(), here);
      assert.throws(() =>
        inNetns(own, other, () => {
          throw new Error('on purpose');
        }),
      );
      assert.equal(inodeHere(), here);
      const file = openSync('/proc/self/status', 'r');
      assert.throws(() => inNetns(own, file, inodeHere), /entering a network namespace: Invalid argument/);
      closeSync(file);
      assert.equal(inodeHere(), here);
    } finally {
      closeSync(own);
      closeSync(other);
    }
  });

  it('a process that finds no way back ends at once, and says why', () => {
    const path = netnsPath(sandbox.netns('trap'));
    const module = fileURLToPath(new URL('netns.ts', import.meta.url));
    const script = `
      import { openSync } from 'node:fs';
      import { inNetns } from ${JSON.stringify(module)};
      try {
        inNetns(openSync('/proc/self/status', 'r'), openSync(${JSON.stringify(path)}, 'r'), () => console.log('there'));
      } finally {
        console.log('went on');
      }`;
    const args = ['--import', 'tsx', '--input-type=module', '--eval', script];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    assert.deepEqual([status, stdout], [70, 'there\n']);
    assert.match(stderr, /coming back from a network namespace: Invalid argument.* cannot go on in another one/);
  });
});

it('a process that we may not look at is told of', async () => {
  const cgroup = sandbox.cgroup('hidden');
  const child = spawn('sleep', ['1000'], { stdio: 'ignore', uid: 65534, gid: 65534 });
  children.push(child);
  writeFileSync(join(cgroup, 'cgroup.procs'), String(child.pid));
  const module = fileURLToPath(new URL('netns.ts', import.meta.url));
  const script = `
    import { netnsOfCgroup } from ${JSON.stringify(module)};
    const denied = [];
    let found = 0;
    for await (const _ of netnsOfCgroup(${JSON.stringify(cgroup)}, (pid) => denied.push(pid))) found++;
    console.log(JSON.stringify({ denied, found }));`;
  const look = (...drop: string[]) => {
    const node = [process.execPath, '--import', 'tsx', '--input-type=module', '--eval', script];
    const { stdout, stderr } = spawnSync('setpriv', [...drop, ...node], { encoding: 'utf8' });
    assert.equal(stderr, '');
    return JSON.parse(stdout) as object;
  };
  assert.deepEqual(look(), { denied: [], found: 1 });
  const drop = ['--bounding-set=-sys_ptrace', '--inh-caps=-sys_ptrace'];
  assert.deepEqual(look(...drop), { denied: [String(child.pid)], found: 0 });
});

it('namespaces of a cgroup: each once, of the cgroups below it too, of no others', async () => {
  const cgroups = ['pods', 'pods/a', 'pods/a/b', 'elsewhere'].map((part) => sandbox.cgroup(part));
  const [one, two, three] = ['one', 'two', 'three'].map((name) => netnsPath(sandbox.netns(name))) as [
    string,
    string,
    string,
  ];
  const places = [
    [cgroups[0]!, one],
    [cgroups[1]!, one],
    [cgroups[2]!, two],
    [cgroups[3]!, three],
  ] as const;
  for (const [cgroup, netns] of places) {
    const child = spawn('nsenter', [`--net=${netns}`, 'sleep', '1000'], { stdio: 'ignore' });
    children.push(child);
    writeFileSync(join(cgroup, 'cgroup.procs'), String(child.pid));
    await waitFor(() => readFileSync(`/proc/${child.pid}/comm`, 'utf8').startsWith('sleep'), {
      what: 'a process in its namespace',
      timeoutMs: 30_000,
    });
  }
  const found: bigint[] = [];
  for await (const fd of netnsOfCgroup(cgroups[0]!)) found.push(inodeOf(`/proc/self/fd/${fd}`));
  assert.deepEqual(found.sort(), [inodeOf(one), inodeOf(two)].sort());
});
