/** Connecting and parting whole clusters: by one command, again and again, and with a peer that is dead. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { clustermesh, etcdctl, inNode, mapOf, openLab, type TestLab } from './testing/e2e.ts';

const cluster = (name: string, id: number) => `  - name: ${name}
    id: ${id}
    region: ${name}-1
    podCIDR: 10.${id}.0.0/16
    serviceCIDR: 10.${95 + id}.0.0/16
    nodes: [{ name: n1, zone: ${name}-1a }]
`;
const TOPOLOGY = `clusters:\n${cluster('eu', 1)}${cluster('us', 2)}${cluster('ap', 3)}`;
/** npm run soak:connect takes 100. */
const ROUNDS = Number(process.env.CM_SOAK_ROUNDS ?? 5);
const TABLES = ['ipcache', 'services', 'backends', 'nodes'] as const;

/** What must not grow: per cluster, what processes, etcd and kernel hold. */
type Counts = Readonly<Record<string, number>>;

describe('three clusters', () => {
  let test: TestLab;
  before(async () => {
    test = await openLab({ topology: TOPOLOGY });
  });
  after(() => test?.close());

  const context = (name: string) => `${test.instance}/${name}`;
  async function command(...args: string[]): Promise<string> {
    const output = await clustermesh(...args);
    assert.equal(output.code, 0, `clustermesh ${args.join(' ')}:\n${output.stdout}${output.stderr}`);
    return output.stdout;
  }
  const lines = async (name: string, ...args: string[]) =>
    (await etcdctl(test, name, 'admin', ...args)).stdout.split('\n').filter((line) => line !== '');
  const keysOf = (name: string) => lines(name, 'get', '', '--prefix', '--keys-only');

  async function count(name: string): Promise<Counts> {
    const { daemons } = await test.lab.status();
    const fds = (daemon: string) => {
      const { pid } = daemons.find((one) => one.name.startsWith(`${name}/${daemon}`)) ?? assert.fail(daemon);
      return readdirSync(`/proc/${pid}/fd`).length;
    };
    const counts: Record<string, number> = {
      apiserverFds: fds('apiserver'),
      agentFds: fds('agent'),
      // The first line says how many there are.
      leases: (await lines(name, 'lease', 'list')).length - 1,
      users: (await lines(name, 'user', 'list')).length,
      keys: (await keysOf(name)).length,
      routes: (await inNode(test, name, 'n1', 'ip', 'route')).stdout.split('\n').length,
    };
    for (const table of TABLES) counts[table] = (await mapOf(test, `${name}/n1`, table)).length;
    return counts;
  }

  it('are measured before they are connected: what packets really get from node to node', async () => {
    const ways = async () => {
      const pair = ['--context', context('eu'), '--destination-context', context('us')];
      const reports = JSON.parse(await command('preflight', ...pair, '-o', 'json')) as {
        checks: { name: string; state: string; what: string }[];
      }[];
      return reports.map(({ checks }) => checks.find(({ name }) => name === 'paths'));
    };
    for (const way of await ways())
      assert.match(way?.what ?? '', /packets of 1500 bytes arrive unbroken on all of 1 ways/);
    // The nodes have told 1500, and do not look again: as if something between them carried less.
    await inNode(test, 'us', 'n1', 'ip', 'link', 'set', 'eth0', 'mtu', '1400');
    try {
      for (const way of await ways()) {
        assert.equal(way?.state, 'warning');
        assert.match(way.what, /packets of 1500 bytes are lost, those of 1400 arrive/);
      }
    } finally {
      await inNode(test, 'us', 'n1', 'ip', 'link', 'set', 'eth0', 'mtu', '1500');
    }
  });

  it('become a mesh by one command, applied on every node', async () => {
    const connected = await command(
      ...['connect', '--context', context('eu'), '--destination-context', `${context('us')},${context('ap')}`],
      ...['--mode', 'mesh'],
    );
    assert.equal(connected.match(/applied on every node \(2\) after/g)?.length, 3, connected);
    console.log(connected.match(/^connected .*$/gm)?.join('\n'));
    for (const name of ['eu', 'us', 'ap']) {
      const status = JSON.parse(await command('status', '--context', context(name), '--wait', '-o', 'json')) as {
        peers: { nodesApplied: number }[];
      };
      assert.deepEqual(
        status.peers.map((peer) => peer.nodesApplied),
        [1, 1],
      );
    }
  });

  it(`F39 part and meet again ${ROUNDS} times, and nothing grows`, async () => {
    const pair = ['--context', context('eu'), '--destination-context', context('us')];
    const took: number[] = [];
    const round = async () => {
      await command('disconnect', ...pair);
      assert.ok(!(await keysOf('eu')).some((key) => key.split('/').includes('us')), 'nothing of it is left in etcd');
      const connected = /applied on every node .* after ([\d.]+) s/.exec(await command('connect', ...pair));
      took.push(Number(connected?.[1]));
      await command('connect', ...pair);
    };
    await round();
    const before = { eu: await count('eu'), us: await count('us') };
    for (let done = 0; done < ROUNDS; done++) await round();
    let now = before;
    const grown = () =>
      (['eu', 'us'] as const).flatMap((name) =>
        Object.entries(now[name]).flatMap(([what, value]) =>
          value > before[name][what]! ? [`${name}: ${what} ${before[name][what]} → ${value}`] : [],
        ),
      );
    // A connection that is being closed, or a lease that has a moment to live, is no leak.
    await waitFor(
      async () => {
        now = { eu: await count('eu'), us: await count('us') };
        return grown().length === 0;
      },
      { what: 'what is held to be what was held', timeoutMs: 60_000, intervalMs: 1000 },
    ).catch((error: Error) => assert.fail(`${error.message}: ${grown().join('; ')}`));
    took.sort((a, b) => a - b);
    console.log(
      `${took.length} connects, from command to applied on every node: median ${took[took.length >> 1]} s, longest ${took.at(-1)} s`,
    );
    for (const name of ['eu', 'us'] as const)
      console.log(
        `${name} after ${ROUNDS} rounds: ${JSON.stringify(now[name])} (before: ${JSON.stringify(before[name])})`,
      );
  });

  it('F38 a dead one is parted from locally, and nothing of it is left', async () => {
    await test.lab.call('control', { action: 'kill', targets: ['ap/apiserver', 'ap/etcd'] });
    const startedAt = performance.now();
    const output = await command('disconnect', '--context', context('eu'), '--destination-context', context('ap'));
    console.log(`disconnected from a dead peer in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
    assert.match(output, /disconnected eu from ap/);
    assert.deepEqual(
      (await keysOf('eu')).filter((key) => key.split('/').includes('ap')),
      [],
    );
    assert.ok(!(await lines('eu', 'user', 'list')).includes('remote-ap'));
    for (const table of TABLES)
      assert.ok(!JSON.stringify(await mapOf(test, 'eu/n1', table)).includes('"10.3.'), `${table} holds nothing of ap`);
    assert.doesNotMatch((await inNode(test, 'eu', 'n1', 'ip', 'route')).stdout, /10\.3\./);
    const status = JSON.parse(await command('status', '--context', context('eu'), '--wait', '-o', 'json')) as {
      peers: { name: string }[];
    };
    assert.deepEqual(
      status.peers.map((peer) => peer.name),
      ['us'],
      'the other peer is as it was',
    );
  });
});
