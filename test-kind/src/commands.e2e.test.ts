/** The lab's commands as the documentation prints them, through the built command line. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { manifestFile } from './demo/shop.ts';
import { agentCommand, clustermesh, connect, labCommand, openLab, type TestLab } from './testing/e2e.ts';

let test: TestLab;

async function lab(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await labCommand(test.instance, ...args);
  assert.equal(code, 0, `lab ${args.join(' ')} ended with ${code}: ${stderr}`);
  return stdout;
}
const json = async <T>(...args: string[]): Promise<T> => JSON.parse(await lab(...args, '-o', 'json')) as T;

before(async () => {
  test = await openLab({ topology: 'clusters: [{ name: eu, id: 1, nodes: 2 }, { name: us, id: 2, nodes: 1 }]' });
  for (const cluster of ['eu', 'us']) {
    const said = await lab('apply', '--cluster', cluster, '-f', manifestFile(cluster), '--wait');
    assert.match(said, /Service default\/shop: created/);
    assert.match(said, new RegExp(`4 pods of ${cluster} are ready`));
  }
  await connect(test);
});
after(() => test?.close());

describe('lab', () => {
  it('status, pods and services print tables, and JSON for programs', async () => {
    assert.match(await lab('status'), /eu\/agent\/n2 +running[\s\S]*pods: 8 of 8 ready\npartitions: none/);
    assert.equal((await json<{ phase: string }>('status')).phase, 'up');
    assert.match(await lab('pods'), /^CLUSTER +NAMESPACE +POD/);
    assert.equal((await json<unknown[]>('pods')).length, 8);
    assert.match(await lab('services'), /^eu +default +shop +10\.96\.\d+\.\d+ +80\/TCP/m);
    const services = await json<{ cluster: string; name: string; endpoints: string[] }[]>('services');
    assert.equal(services.find(({ cluster, name }) => cluster === 'us' && name === 'shop')?.endpoints.length, 2);
  });

  it('exec runs a command in a pod', async () => {
    const services = await json<{ cluster: string; name: string; clusterIP: string }[]>('services');
    const { clusterIP } = services.find(({ cluster, name }) => cluster === 'eu' && name === 'shop')!;
    assert.match(
      await lab('exec', 'eu/default/client-0', '--', 'curl', '-s', '-m', '5', `http://${clusterIP}/`),
      /"cluster":"(eu|us)"/,
    );
  });

  it('kill and start, pause and resume say what they did, and status shows it', async () => {
    const stateOf = async (name: string) =>
      (await json<{ daemons: { name: string; state: string }[] }>('status')).daemons.find((one) => one.name === name)
        ?.state;
    assert.equal(await lab('kill', 'us/redis'), 'us/redis killed\n');
    assert.equal(await stateOf('us/redis'), 'stopped');
    assert.equal(await lab('start', 'us/redis'), 'us/redis started\n');
    assert.equal(
      await lab('pause', 'eu/etcd', 'eu/agent/n*'),
      'eu/etcd paused\neu/agent/n1 paused\neu/agent/n2 paused\n',
    );
    assert.equal(await stateOf('eu/agent/n2'), 'paused');
    const answer = await labCommand(test.instance, 'etcdctl', 'eu', '--', '--command-timeout=1s', 'get', 'x');
    assert.notEqual(answer.code, 0, 'a paused etcd does not answer');
    await lab('resume', 'eu/etcd', 'eu/agent/*');
    assert.equal(await stateOf('eu/etcd'), 'running');
    assert.equal((await clustermesh('status', '--context', `${test.instance}/eu`, '--wait')).code, 0);
  });

  it('partition names planes and direction, heal ends all of it', async () => {
    const arrows = async (...args: string[]) => (await lab(...args)).trimEnd().split('\n').sort();
    assert.deepEqual(await arrows('partition', 'eu', 'us', '--data', '--one-way'), ['eu → us: data plane cut']);
    assert.deepEqual(await arrows('partition', 'eu', 'us', '--control'), [
      'eu → us: control plane cut',
      'eu → us: data plane cut',
      'us → eu: control plane cut',
    ]);
    assert.match(await lab('status'), /partitions:\n {2}eu → us/);
    assert.deepEqual(await arrows('heal', 'eu', 'us'), ['no partitions']);
  });

  it('etcdctl shows the etcd as whoever is to be tried', async () => {
    for (const role of ['admin', 'remote']) {
      const keys = await lab('etcdctl', 'eu', '--as', role, '--', 'get', '--prefix', '--keys-only', 'cilium/state/');
      assert.match(keys, /cilium\/state\/services\/v1\/eu\/default\/shop/);
    }
    assert.match(
      await lab('etcdctl', 'eu', '--as', 'node', '--', 'get', '--prefix', '--keys-only', 'cilium/cache/'),
      /us/,
    );
    assert.match(
      await lab('etcdctl', 'eu', '--as', 'local', '--', 'get', '--prefix', '--keys-only', 'cilium/cache/'),
      /us/,
    );
    for (const role of ['remote', 'nobody']) {
      const refused = await labCommand(
        test.instance,
        ...['etcdctl', 'eu', '--as', role, '--', '--command-timeout=2s', '--dial-timeout=2s', 'put', 'x', 'y'],
      );
      assert.notEqual(refused.code, 0, `${role} may write`);
    }
  });

  it('map shows what is in the kernel of a node', async () => {
    const pods = await json<{ cluster: string; ip: string; identity: number }[]>('pods');
    const rows = await json<{ prefix: string; identity: number }[]>('map', 'us/n1', 'ipcache');
    for (const pod of pods.filter(({ cluster }) => cluster === 'eu'))
      assert.equal(rows.find((row) => row.prefix === `${pod.ip}/32`)?.identity, pod.identity);
    for (const name of ['ipcache', 'services', 'backends']) assert.match(await lab('map', 'us/n1', name), /^[A-Z]/);
  });

  it("an agent's own commands show its kernel, and what it refused", async () => {
    const agent = async (...args: string[]) => {
      const { code, stdout, stderr } = await agentCommand(test.instance, 'eu', 'n1', ...args);
      assert.equal(code, 0, `${args.join(' ')} ended with ${code}: ${stdout}${stderr}`);
      return stdout;
    };
    const pods = await json<{ cluster: string; node: string; name: string; ip: string }[]>('pods');
    const ours = pods.filter(({ cluster, node }) => cluster === 'eu' && node === 'n1');
    const endpoints = JSON.parse(await agent('endpoint', 'list', '-o', 'json')) as { ipv4: string; state: string }[];
    assert.deepEqual(endpoints.map(({ ipv4 }) => ipv4).sort(), ours.map(({ ip }) => ip).sort());
    const maps = JSON.parse(await agent('map', 'list', '-o', 'json')) as { name: string; rows: number | null }[];
    assert.equal(maps.find(({ name }) => name === 'cm_endpoints')?.rows, ours.length);
    assert.match(await agent('map', 'get', 'ipcache', pods.find(({ cluster }) => cluster === 'us')!.ip), /^PREFIX/);
    assert.match(await agent('verify'), /^services +\d+ +\d+ +0$/m);

    // An address of the node's pods that nobody has: answered by the agent's programs, and shown.
    const pod = ours[0]!;
    const nobody = pod.ip.replace(/\d+$/, '250');
    await labCommand(
      test.instance,
      'exec',
      `eu/default/${pod.name}`,
      '--',
      'curl',
      '-s',
      '-m',
      '2',
      `http://${nobody}/`,
    );
    const shown = await agent('monitor', '--no-follow', '--last', '1', '--address', nobody, '-o', 'json');
    const { reason, verdict, source, destination } = JSON.parse(shown) as Record<string, { ip: string }>;
    assert.deepEqual([verdict, reason, source?.ip, destination?.ip], ['answered', 'no-endpoint', pod.ip, nobody]);
    assert.match(await agent('drops'), /^no-endpoint +answered +from-pod +\d+/m);
  });

  it('logs shows the last lines of daemons and pods', async () => {
    for (const target of ['eu/apiserver', 'eu/agent/n1', 'labd'])
      for (const line of (await lab('logs', target, '--tail', '2')).trimEnd().split('\n'))
        assert.doesNotThrow(() => JSON.parse(line), `${target}: ${line}`);
    assert.equal((await labCommand(test.instance, 'logs', 'eu/pod/default/shop-0')).code, 0);
    const unknown = await labCommand(test.instance, 'logs', 'eu/nothing');
    assert.equal(unknown.code, 1);
    assert.match(unknown.stderr, /logs there are: .*eu-apiserver/);
  });

  it('delete takes away what the manifests name', async () => {
    assert.match(await lab('delete', '--cluster', 'eu', '-f', manifestFile('eu')), /Deployment default\/shop: deleted/);
    assert.equal((await json<{ cluster: string }[]>('pods')).filter(({ cluster }) => cluster === 'eu').length, 0);
    await waitFor(async () => !/^eu /m.test(await lab('services')), {
      what: 'the services of eu to be gone',
      timeoutMs: 15_000,
    });
    assert.match(await lab('delete', '--cluster', 'eu', '-f', manifestFile('eu')), /Deployment default\/shop: absent/);
  });
});
