/** What the lab itself promises: it leaves nothing, touches nobody else's, and survives being killed half-way. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { holderOf } from './client.ts';
import { bundle } from './labd/daemons.ts';
import { cgroupMount } from './netns/cgroup.ts';
import { remains } from './netns/instance.ts';
import { clustermesh, freeInstance, labCommand, openLab, program, runInPod, type TestLab } from './testing/e2e.ts';

/** Processes that have to do with an instance: in its cgroup, or naming its files. */
function processesOf(instance: string): string[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
    .flatMap((pid) => {
      try {
        const commandLine = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
        const cgroups = readFileSync(`/proc/${pid}/cgroup`, 'utf8');
        if (commandLine === '') return []; // dead, and only waiting for init to take note of it
        const isOurs = commandLine.includes(`/run/cm-${instance}/`) || cgroups.includes(`/cm-${instance}/`);
        return isOurs ? [`${pid} ${commandLine}`] : [];
      } catch {
        return []; // ended meanwhile
      }
    });
}

const POD = (name: string, command: string) =>
  `kind: Pod\nmetadata: { name: ${name} }\nspec: { containers: [{ command: ${command}, ports: [{ containerPort: 8080 }] }] }\n`;
const SERVER = '[node, test-kind/demo/shop-server.mjs]';

describe('two instances side by side', () => {
  let first: TestLab;
  let second: TestLab;
  before(async () => {
    first = await openLab({ topology: 'clusters: [{ name: eu, id: 1, nodes: 1 }, { name: us, id: 2, nodes: 1 }]' });
    // The same addresses as the first, one cluster of the same name and one of the same id.
    second = await openLab({ topology: 'clusters: [{ name: asia, id: 1, nodes: 1 }, { name: eu, id: 9, nodes: 1 }]' });
    await first.lab.apply(
      'eu',
      POD('server', SERVER) +
        '---\n' +
        POD('idle', '[sleep, infinity]').replace(', ports: [{ containerPort: 8080 }]', ''),
    );
    await second.lab.apply('asia', POD('server', SERVER));
    await Promise.all([first.lab.podsReady(), second.lab.podsReady()]);
  });
  after(async () => {
    await first?.close();
    await second?.close();
  });

  const connectArgs = (a: string, b: string) => [
    'connect',
    '--context',
    a,
    '--destination-context',
    b,
    '--timeout',
    '15s',
  ];

  it('exec passes arguments, output and exit code through', async () => {
    const output = await runInPod(
      first,
      'eu/default/idle',
      'sh',
      '-c',
      'echo "$POD_NAME in $CLUSTER_NAME"; echo oops >&2; exit 7',
    );
    assert.deepEqual(output, { code: 7, stdout: 'idle in eu\n', stderr: 'oops\n' });
    const missing = await runInPod(first, 'eu/default/nobody', 'true');
    assert.equal(missing.code, 1);
    assert.match(
      missing.stderr,
      /error: entering pod eu\/default\/nobody: there is none of that name\n {2}hint: pods: eu\/default\/server/,
    );
  });

  it('readiness follows the process: gone at once when it is killed, back when its port answers', async () => {
    const server = async () => (await first.lab.pods()).find((pod) => pod.name === 'server')!;
    await first.lab.kill('eu/pod/default/server');
    assert.deepEqual([(await server()).ready, (await server()).phase], [false, 'stopped']);
    await first.lab.start('eu/pod/default/server');
    await first.lab.podsReady((pod) => pod.name === 'server');
  });

  it('one bad document of a file is reported and the others are applied', async () => {
    const output = await labCommand(first.instance, 'apply', '--cluster', 'eu', '-f', 'test-kind/demo/nowhere.yaml');
    assert.equal(output.code, 1);
    assert.match(output.stderr, /nowhere\.yaml/);
    const { results } = await first.lab.call('apply', {
      cluster: 'us',
      text: `kind: Nonsense\n---\n${POD('fine', SERVER)}`,
      source: 'mixed.yaml',
    });
    assert.deepEqual(
      results.map((result) => result.action),
      ['failed', 'created'],
    );
    assert.match(results[0]?.message ?? '', /"Nonsense" is not supported/);
    await first.lab.podsReady((pod) => pod.name === 'fine');
  });

  it('a second up of the same instance says that it is up and changes nothing', async () => {
    const { pid } = await first.lab.status();
    const output = await labCommand(first.instance, 'up');
    assert.equal(output.code, 0);
    assert.match(output.stdout, /is already up/);
    assert.equal((await first.lab.status()).pid, pid);
  });

  it('clusters of the same name, or with the same id, are refused at connect, and both go on', async () => {
    const sameName = await clustermesh(...connectArgs(`${first.instance}/eu`, `${second.instance}/eu`));
    assert.equal(sameName.code, 1, sameName.stderr);
    assert.match(sameName.stderr, /name/);
    const sameId = await clustermesh(...connectArgs(`${first.instance}/eu`, `${second.instance}/asia`));
    assert.equal(sameId.code, 1, sameId.stderr);
    assert.match(sameId.stderr, /id 1|same id/);
    for (const context of [`${first.instance}/eu`, `${second.instance}/asia`]) {
      const output = await clustermesh('status', '--context', context, '-o', 'json');
      assert.equal(output.code, 0, output.stderr);
    }
  });

  it('an unreachable endpoint is named at connect; when it can be reached again, connect goes through', async () => {
    const contexts = [`${first.instance}/eu`, `${first.instance}/us`] as const;
    await first.lab.call('partition', { from: 'eu', to: 'us', planes: ['control'], oneWay: false });
    // Left to itself, not cut short: it has to come to its own conclusion.
    const refused = await clustermesh('connect', '--context', contexts[0], '--destination-context', contexts[1]);
    assert.equal(refused.code, 1, refused.stderr);
    assert.match(
      refused.stderr,
      /error: (eu|us): reaching the etcd of cluster (eu|us): https:\/\/\S+ \(172\.31\.\d\.2\): no answer/,
    );
    const own = await runInPod(
      first,
      'eu/default/idle',
      'curl',
      '-s',
      '-m',
      '3',
      `http://${(await first.lab.pods()).find((pod) => pod.name === 'server')!.ip}:8080/`,
    );
    assert.equal(own.code, 0, 'what the cluster has of its own keeps working');
    await first.lab.call('heal', { a: 'eu', b: 'us' });
    const connected = await clustermesh('connect', '--context', contexts[0], '--destination-context', contexts[1]);
    assert.equal(connected.code, 0, connected.stdout + connected.stderr);
  });

  it('a partition of the data plane cuts pods but not the control plane, and the other way round', async () => {
    const target = (await first.lab.pods()).find((pod) => pod.cluster === 'us' && pod.name === 'fine')!;
    const reaches = async () =>
      (await runInPod(first, 'eu/default/idle', 'curl', '-s', '-m', '1', `http://${target.ip}:8080/`)).code === 0;
    await waitFor(reaches, { what: 'a pod of us to be reached from eu', timeoutMs: 15_000 });
    await first.lab.call('partition', { from: 'eu', to: 'us', planes: ['data'], oneWay: false });
    assert.equal(await reaches(), false, 'data plane cut');
    await first.lab.call('heal', { a: 'eu', b: 'us' });
    await first.lab.call('partition', { from: 'eu', to: 'us', planes: ['control'], oneWay: false });
    await waitFor(reaches, { what: 'the pod to be reached with only the control plane cut', timeoutMs: 15_000 });
    await first.lab.call('heal', { a: 'eu', b: 'us' });
  });

  it('down leaves nothing of the one and does not touch the other', async () => {
    const other = await second.lab.status();
    assert.ok(processesOf(first.instance).length > 5, 'the control: its processes are found while it is up');
    const output = await labCommand(first.instance, 'down');
    assert.equal(output.code, 0, output.stderr);
    assert.deepEqual(remains(first.instance), []);
    assert.deepEqual(processesOf(first.instance), []);
    assert.deepEqual(
      readdirSync('/run/netns').filter((name) => name.startsWith(`cm-${first.instance}-`)),
      [],
    );
    assert.equal(existsSync(join(cgroupMount(), `cm-${first.instance}`)), false);
    assert.ok(!readFileSync('/proc/mounts', 'utf8').includes(`/run/cm-${first.instance}/`));

    const now = await second.lab.status();
    assert.deepEqual(
      now.daemons.map((daemon) => [daemon.name, daemon.pid, daemon.restarts]),
      other.daemons.map((daemon) => [daemon.name, daemon.pid, daemon.restarts]),
    );
    const [server] = await second.lab.pods();
    const served = await runInPod(second, 'asia/default/server', 'curl', '-s', '-m', '3', `http://${server!.ip}:8080/`);
    assert.match(served.stdout, /"cluster":"asia"/);
  });
});

describe('the demonstration', () => {
  it('is refused while another runs in its instance; killed half-way, the next one runs to its end and leaves nothing', async () => {
    const instance = freeInstance();
    const command = [bundle('clustermesh-demo'), '--instance', instance, '--once', '--json'];
    const killed = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'pipe'] });
    let seen = '';
    killed.stderr.setEncoding('utf8').on('data', (text: string) => {
      seen += text;
    });
    try {
      await waitFor(() => seen.includes('Two regions come up (') && seen.includes('A shop in both'), {
        what: 'the first demonstration to get going',
        timeoutMs: 60_000,
      });
      const second = await program(process.execPath, command);
      assert.equal(second.code, 1);
      assert.match(second.stderr, /it is in use by pid \d+/);
      assert.notEqual(holderOf(instance), undefined, 'the refused one did not take down the first');
    } finally {
      killed.kill('SIGKILL');
    }
    const again = await program(process.execPath, command);
    assert.equal(again.code, 0, again.stderr);
    const report = JSON.parse(again.stdout.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>;
    assert.deepEqual(Object.keys(report), ['ok', 'clusters', 'steps', 'failover', 'restart', 'versions']);
    assert.equal(report['ok'], true);
    assert.deepEqual(Object.keys(report['failover'] as object), ['requests', 'failed', 'lastFailureMs', 'recoveredMs']);
    assert.deepEqual(Object.keys(report['restart'] as object), ['bytesLost', 'throughputDipMs']);
    assert.deepEqual(remains(instance), []);
    assert.deepEqual(processesOf(instance), []);
  });
});
