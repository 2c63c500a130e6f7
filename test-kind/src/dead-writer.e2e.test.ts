/** F10 end to end: what peers and their agents have of a cluster whose apiserver is gone for longer than any of its leases. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { shopUrl } from './demo/shop.ts';
import {
  agentApplied,
  connect,
  converged,
  deployShop,
  etcdctl,
  mapOf,
  openLab,
  statusOf,
  type TestLab,
} from './testing/e2e.ts';
import { startLoad } from './traffic.ts';

// One of either kind: what `us` publishes hangs on leases, what `eu` does not.
const TOPOLOGY = `clusters:
  - { name: eu, id: 1, nodes: 1 }
  - { name: us, id: 2, nodes: 1, exportLeaseSeconds: 600 }
`;
const LIMIT_MS = 60_000;
const TABLES = ['ipcache', 'services', 'backends', 'nodes'] as const;
const ANSWERED = 50;

describe('a writer that is gone for longer than any lease', () => {
  let test: TestLab;
  before(async () => {
    test = await openLab({ topology: TOPOLOGY });
    await deployShop(test);
    await connect(test);
  });
  after(() => test?.close());

  const until = (what: string, condition: () => Promise<boolean>) =>
    waitFor(condition, { what, timeoutMs: LIMIT_MS, intervalMs: 200 });
  async function admin(cluster: string, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await etcdctl(test, cluster, 'admin', ...args);
    assert.equal(code, 0, `etcdctl ${args.join(' ')}: ${stderr}`);
    return stdout.trim();
  }

  /** Before their time; etcd does the same when it has come. */
  async function endLeases(cluster: string, prefix: string): Promise<void> {
    const [, ...leases] = (await admin(cluster, 'lease', 'list')).split('\n');
    for (const lease of leases) {
      const held = await admin(cluster, 'lease', 'timetolive', lease, '--keys');
      if (held.includes(`[${prefix}`)) await admin(cluster, 'lease', 'revoke', lease);
    }
  }
  const published = async (cluster: string) =>
    (await admin(cluster, 'get', 'cilium/state/', '--prefix', '--keys-only')).length > 0;
  const errorAt = async (reader: string, peer: string) =>
    (await statusOf(test, reader)).peers.find(({ name }) => name === peer)?.error ?? '';

  async function tables(cluster: string): Promise<readonly string[]> {
    const rows = await Promise.all(TABLES.map((table) => mapOf(test, `${cluster}/n1`, table)));
    // The generation of a service counts its changes.
    return rows.flat().map((row) => JSON.stringify({ ...row, generation: undefined }));
  }

  for (const { writer, reader, how, end, back } of [
    {
      writer: 'us',
      reader: 'eu',
      how: 'stopped in its tracks, all that it published gone',
      end: 'pause',
      back: 'resume',
    },
    { writer: 'eu', reader: 'us', how: 'dead', end: 'kill', back: 'start' },
  ] as const)
    it(`F10 ${how}: no request notices, nothing leaves the kernel, and changes arrive again`, async () => {
      const load = await startLoad(test.lab, `${reader}/default/client-0`, `${await shopUrl(test.lab, reader)}/`);
      const before = (await tables(reader)).toSorted();
      const targets = [`${writer}/apiserver`];
      await test.lab.call('control', { action: end, targets });
      await endLeases(writer, 'cilium/.heartbeat');
      await until('the peer to notice', async () =>
        /its heartbeat has been silent for \d+ s: is its apiserver running\?/.test(await errorAt(reader, writer)),
      );
      await endLeases(writer, 'cilium/');
      const leader = () => admin(writer, 'get', 'clustermesh/election/', '--prefix', '--keys-only');
      await until('its leadership to end', async () => (await leader()) === '');
      assert.equal(await published(writer), writer === 'eu');
      // An agent that starts meanwhile has all of it from the mirror.
      await test.lab.kill(`${reader}/agent/n1`);
      await test.lab.start(`${reader}/agent/n1`);
      await agentApplied(test, reader, 'n1', LIMIT_MS);
      const target = load.results.length + ANSWERED;
      await until('requests', async () => load.results.length >= target);
      assert.deepEqual((await tables(reader)).toSorted(), before);

      await test.lab.call('control', { action: back, targets });
      const name = `probe-of-${writer}`;
      await test.lab.apply(
        writer,
        `kind: Pod\nmetadata: { name: ${name} }\nspec: { containers: [{ command: [sleep, infinity] }] }\n`,
      );
      const [pod] = await test.lab.podsReady((candidate) => candidate.name === name, LIMIT_MS);
      await until('the new pod in the kernel of the reader', async () =>
        (await mapOf(test, `${reader}/n1`, 'ipcache')).some((row) => row['prefix'] === `${pod?.ip}/32`),
      );
      await converged(test);
      const results = await load.stop();
      assert.deepEqual(
        results.filter(({ error }) => error !== undefined),
        [],
      );
      assert.ok(
        results.slice(target - ANSWERED, target).some(({ cluster }) => cluster === writer),
        `pods of ${writer} answered`,
      );
    });
});
