/** Connecting and parting whole clusters: by one command, again and again, and with a peer that is dead. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { waitFor } from '@clustermesh/runtime';
import { manifestFile, shopManifest } from './demo/shop.ts';
import { clustermesh, etcdctl, inNode, mapOf, openLab, type TestLab } from './testing/e2e.ts';
import { describeFds, moreFds } from './testing/fds.ts';

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

  async function pidOf(name: string, daemon: string): Promise<number> {
    const { daemons } = await test.lab.status();
    const { pid } = daemons.find((one) => one.name.startsWith(`${name}/${daemon}`)) ?? assert.fail(daemon);
    return pid ?? assert.fail(`${name}/${daemon} does not run`);
  }

  async function count(name: string): Promise<Counts> {
    const fds = async (daemon: string) => readdirSync(`/proc/${await pidOf(name, daemon)}/fd`).length;
    const counts: Record<string, number> = {
      apiserverFds: await fds('apiserver'),
      agentFds: await fds('agent'),
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
    // A global service with backends on both sides, so that rows of services and backends come and go.
    for (const name of ['eu', 'us']) await test.lab.apply(name, shopManifest(name), manifestFile(name));
    await test.lab.podsReady();
    await round();
    const all = async () => ({ eu: await count('eu'), us: await count('us') });
    const fds = async () =>
      new Map(
        await Promise.all(
          ['eu', 'us'].flatMap((name) =>
            ['apiserver', 'agent'].map(
              async (daemon) => [`${name}/${daemon}`, describeFds(await pidOf(name, daemon))] as const,
            ),
          ),
        ),
      );
    let before = await all();
    // What is being opened or closed when it is counted is no measure.
    await waitFor(
      async () => {
        const last = before;
        before = await all();
        return isDeepStrictEqual(before, last);
      },
      { what: 'what is held to be steady', timeoutMs: 60_000, intervalMs: 1000 },
    );
    const fdsBefore = await fds();
    assert.ok(before.eu['backends']! > 0 && before.us['services']! > 0, JSON.stringify(before));
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
        now = await all();
        return grown().length === 0;
      },
      { what: 'what is held to be what was held', timeoutMs: 60_000, intervalMs: 1000 },
    ).catch(async (error: Error) => {
      const more = [...(await fds())].flatMap(([daemon, held]) =>
        moreFds(fdsBefore.get(daemon)!, held).map((what) => `${daemon}: ${what}`),
      );
      assert.fail(`${error.message}: ${grown().join('; ')}\nfile descriptors: ${more.join('; ')}`);
    });
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
