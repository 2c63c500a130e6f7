/** Any process of the control plane may die, for as long as it likes: traffic does not notice, and all converges again. */
import assert from 'node:assert/strict';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { STALL_LIMIT_MS, shopUrl } from './demo/steps.ts';
import { cgroupMount } from './netns/cgroup.ts';
import { capture } from './netns/exec.ts';
import { clusterPaths, instancePaths, nodeCgroup } from './netns/names.ts';
import {
  agentApplied,
  connect,
  converged,
  deployShop,
  inNode,
  mapOf,
  openLab,
  statusOf,
  type TestLab,
} from './testing/e2e.ts';
import { startLoad, startTransfer, type Transfer } from './traffic.ts';

let test: TestLab;
const CLIENT = 'us/default/client-0';

before(async () => {
  test = await openLab();
  await deployShop(test);
  await connect(test);
});
after(() => test?.close());

const TABLES = ['ipcache', 'services', 'backends', 'endpoints', 'nodes'] as const;

interface KernelState {
  /** Pin → map id. */
  readonly pins: Readonly<Record<string, number>>;
  readonly attached: readonly string[];
  readonly links: readonly string[];
  readonly filters: readonly string[];
  readonly tables: Readonly<Record<string, readonly string[]>>;
}

/** What is pinned (with the kernel's ids), attached and programmed on a node: everything that a restart must leave as it is. */
async function kernelState(cluster: string, node: string): Promise<KernelState> {
  const dir = join(instancePaths(test.instance).bpffs, 'clustermesh', cluster, node);
  const pins: Record<string, number> = {};
  for (const name of readdirSync(dir).sort()) {
    const shown = await capture('bpftool', ['-j', 'map', 'show', 'pinned', join(dir, name)]);
    if (shown.code === 0) pins[name] = (JSON.parse(shown.stdout) as { id: number }).id;
  }
  const cgroup = await capture('bpftool', [
    '-j',
    'cgroup',
    'show',
    join(cgroupMount(), nodeCgroup(test.instance, cluster, node)),
  ]);
  const attached = (JSON.parse(cgroup.stdout || '[]') as { attach_type: string; name: string }[]).map(
    (program) => `${program.attach_type} ${program.name}`,
  );
  const links = JSON.parse((await inNode(test, cluster, node, 'ip', '-j', 'link')).stdout) as {
    ifname: string;
    ifindex: number;
  }[];
  const filters: string[] = [];
  for (const { ifname } of links) {
    for (const hook of ['ingress', 'egress']) {
      const { stdout } = await inNode(test, cluster, node, 'tc', 'filter', 'show', 'dev', ifname, hook);
      filters.push(`${ifname} ${hook}: ${(stdout.match(/filter .* handle/g) ?? []).length}`);
    }
  }
  const tables: Record<string, readonly string[]> = {};
  for (const name of TABLES) {
    // The generation of a service counts its changes; a restart may write a row again, but must not change what it says.
    const rows = (await mapOf(test, `${cluster}/${node}`, name)).map((row) =>
      JSON.stringify({ ...row, generation: undefined }),
    );
    tables[name] = rows.sort();
  }
  return {
    pins,
    attached: attached.sort(),
    links: links.map((link) => `${link.ifindex} ${link.ifname}`).sort(),
    filters,
    tables,
  };
}

const flows = (transfer: Transfer, bytes: number) => {
  const target = transfer.bytesSoFar() + bytes;
  return waitFor(() => transfer.bytesSoFar() >= target, {
    what: `${bytes} more bytes of the transfer`,
    timeoutMs: 30_000,
  });
};

/** Runs `faults` under a 20 MB/s transfer from eu to a pod of us; nothing may be lost, nothing may stall. */
async function underTransfer(title: string, faults: (transfer: Transfer) => Promise<void>): Promise<void> {
  const transfer = await startTransfer(
    test.lab,
    CLIENT,
    `${await shopUrl(test.lab, 'us', 'shop-remote')}/stream?rate=20000000`,
  );
  await flows(transfer, 10e6);
  await faults(transfer);
  await flows(transfer, 10e6);
  const result = await transfer.finish();
  console.log(
    `      ${title}: ${(result.bytes / 1e6).toFixed(0)} MB in ${(result.ms / 1000).toFixed(1)} s, longest stall ${result.longestStallMs} ms`,
  );
  assert.equal(result.error, undefined);
  assert.match(result.servedBy ?? '', /"cluster":"eu"/);
  assert.ok(result.intact, `received ${result.bytes} of ${result.sentBytes} bytes, or the checksum differs`);
  assert.ok(result.longestStallMs <= STALL_LIMIT_MS, `stalled for ${result.longestStallMs} ms`);
}

describe('kill -9 of an agent under a transfer across clusters', () => {
  let node: string;
  let unchanged: KernelState;
  before(async () => {
    node = (await test.lab.pods()).find((pod) => pod.cluster === 'us' && pod.name === 'client-0')!.node;
  });

  it('loses nothing and stalls nowhere; afterwards the kernel holds what it held, under the same ids', async () => {
    unchanged = await kernelState('us', node);
    assert.ok(Object.keys(unchanged.pins).length >= 5, `pins: ${JSON.stringify(unchanged.pins)}`);
    assert.ok(
      Object.values(unchanged.tables).every((rows) => rows.length > 0),
      JSON.stringify(unchanged.tables),
    );
    assert.ok(unchanged.attached.length > 0);
    await underTransfer('agent killed', async (transfer) => {
      await test.lab.kill(`us/agent/${node}`);
      await flows(transfer, 10e6);
      await test.lab.start(`us/agent/${node}`);
      await agentApplied(test, 'us', node);
    });
    assert.deepEqual(await kernelState('us', node), unchanged);
  });

  it("the same with the cluster's etcd down while the agent starts", async () => {
    await underTransfer('etcd down', async (transfer) => {
      await test.lab.kill('us/etcd', `us/agent/${node}`);
      await flows(transfer, 5e6);
      await test.lab.start(`us/agent/${node}`);
      await waitFor(async () => (await mapOf(test, `us/${node}`, 'ipcache')).length > 0, {
        what: 'the agent to answer',
        timeoutMs: 20_000,
      });
      await flows(transfer, 20e6);
      await test.lab.start('us/etcd');
      await agentApplied(test, 'us', node, 90_000);
    });
    await converged(test);
    assert.deepEqual(await kernelState('us', node), unchanged);
  });

  it('the same with etcd wiped', async () => {
    await underTransfer('etcd wiped', async (transfer) => {
      await test.lab.kill('us/etcd', `us/agent/${node}`);
      const { etcd } = clusterPaths(test.instance, 'us');
      for (const entry of readdirSync(etcd)) rmSync(join(etcd, entry), { recursive: true });
      await test.lab.start('us/etcd', `us/agent/${node}`);
      await flows(transfer, 10e6);
      await agentApplied(test, 'us', node, 120_000);
    });
    await converged(test);
    assert.deepEqual(await kernelState('us', node), unchanged);
  });
});

describe('the control plane', () => {
  // The last outage is longer than every timer that could end something by itself: the agents' leases (30 s), the heartbeat.
  for (const [what, outageMs, targets] of [
    ['both apiservers', 3_000, ['eu/apiserver', 'us/apiserver']],
    ['both etcds', 3_000, ['eu/etcd', 'us/etcd']],
    ['both Redis', 3_000, ['eu/redis', 'us/redis']],
    [
      'everything that is no pod',
      40_000,
      ['eu/apiserver', 'us/apiserver', 'eu/etcd', 'us/etcd', 'eu/redis', 'us/redis', 'eu/agent/*', 'us/agent/*'],
    ],
  ] as const) {
    it(`${what} killed for ${outageMs / 1000} s and started again: no request notices, and changes arrive again`, async () => {
      const load = await startLoad(test.lab, CLIENT, `${await shopUrl(test.lab, 'us')}/`);
      const more = (count: number) => {
        const target = load.results.length + count;
        return waitFor(() => load.results.length >= target, { what: 'the load to go on', timeoutMs: 90_000 });
      };
      await more(50);
      await test.lab.kill(...targets);
      await more(outageMs / 20);
      await test.lab.start(...targets);
      // Convergence shows in a change that happens now: it has to arrive at the other cluster's nodes.
      const name = `probe-${what.replaceAll(/[^a-z]/gi, '').toLowerCase()}`;
      const manifest = `kind: Pod\nmetadata: { name: ${name}, labels: { app: ${name} } }\nspec: { containers: [{ command: [sleep, infinity] }] }\n`;
      await test.lab.apply('eu', manifest);
      const [pod] = await test.lab.podsReady((candidate) => candidate.name === name, 60_000);
      await waitFor(
        async () =>
          (await mapOf(test, 'us/n1', 'ipcache')).some(
            (row) => row['prefix'] === `${pod!.ip}/32` && row['identity'] === pod!.identity,
          ),
        {
          what: `the new pod ${pod!.ip} in the ipcache of us/n1`,
          timeoutMs: 60_000,
        },
      );
      await converged(test);
      await waitFor(async () => (await statusOf(test, 'us')).redisConnected, {
        what: 'Redis to be connected',
        timeoutMs: 30_000,
      });
      const results = await load.stop();
      const failed = results.filter((result) => result.error !== undefined);
      assert.deepEqual(failed, [], `${failed.length} of ${results.length} requests failed`);
      await test.lab.call('delete', { cluster: 'eu', text: manifest, source: 'inline' });
      await waitFor(
        async () => !(await mapOf(test, 'us/n1', 'ipcache')).some((row) => row['prefix'] === `${pod!.ip}/32`),
        {
          what: `the deleted pod ${pod!.ip} to leave the ipcache of us/n1`,
          timeoutMs: 30_000,
        },
      );
    });
  }
});
