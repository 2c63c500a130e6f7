/** Without the tunnel: direct routing, both ways mixed, what may not come plain; and the node itself to remote pods. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import type { Counter } from './dump.ts';
import type { Received, Seen } from './testing/pod-process.ts';
import { netnsPath, sh, shIn } from './testing/sandbox.ts';
import { type Node, openTwoNodes, type Pod, type TwoNodes } from './testing/two-nodes.ts';
import type { IpcacheRow } from './types.ts';

let mesh: TwoNodes;
let a: Pod, b: Pod, c: Pod, d: Pod;
let n1: Node, n2: Node;

before(async () => {
  mesh = await openTwoNodes();
  ({ a, b, c, d } = mesh.pods);
  ({ n1, n2 } = mesh.nodes);
  for (const [name, pod] of Object.entries({ c, d })) {
    await pod.inside.call('tcpServe', { port: 8080, name, ip: '::' });
  }
});

after(() => mesh?.close());

const tcp = (from: Pod, ip: string): Promise<Seen> => from.inside.call('tcpAsk', { ip, port: 8080 });

async function count(node: Node, reason: string): Promise<number> {
  const counters = await node.datapath.call<Counter[]>('dump', 'drops');
  return counters.filter((c) => c.reason === reason).reduce((sum, c) => sum + c.packets, 0);
}

function ping(netns: string, ip: string, ...args: string[]): { ok: boolean; output: string } {
  const command = [`--net=${netnsPath(netns)}`, 'ping', '-n', '-c', '1', '-W', '2', ...args, ip];
  const { status, stdout } = spawnSync('nsenter', command);
  return { ok: status === 0, output: String(stdout) };
}

const isReached = (from: Pod, ip: string): Promise<unknown> =>
  waitFor(() => ping(from.netns, ip).ok, { what: `an answer from ${ip}`, timeoutMs: 10_000 });

describe('by the tunnel', () => {
  it('the node itself reaches remote pods, and is a remote node to them', async () => {
    for (const ip of [c.endpoint.ip, c.endpoint6.ip, d.endpoint.ip, d.endpoint6.ip])
      assert.ok(ping(n1.netns, ip).ok, ip);
    const flows = await n2.datapath.call<{ source: string; sourceIdentity: number }[]>('dump', 'ct');
    const fromHost = flows.filter(({ source }) => source.includes(n1.config.gatewayIp));
    assert.ok(fromHost.length > 0 && fromHost.every(({ sourceIdentity }) => sourceIdentity === 6));
  });

  it("a plain packet with the source of another cluster's pod is dropped, for that reason", async () => {
    const forged = '10.2.1.77';
    sh('ip', '-n', n2.netns, 'addr', 'add', `${forged}/32`, 'dev', 'lo');
    sh('ip', '-n', n2.netns, 'route', 'add', `${a.endpoint.ip}/32`, 'via', n1.config.nodeIp);
    const dropped = await count(n1, 'not-encapsulated');
    assert.ok(!ping(n2.netns, a.endpoint.ip, '-I', forged).ok);
    assert.equal(await count(n1, 'not-encapsulated'), dropped + 1);
    sh('ip', '-n', n2.netns, 'route', 'del', `${a.endpoint.ip}/32`);
    sh('ip', '-n', n2.netns, 'addr', 'del', `${forged}/32`, 'dev', 'lo');
  });
});

describe('plain, but not as plainly', () => {
  /** A second wire between the nodes, of which n1's agent was not told: a VLAN looks no different to it. */
  function addWire(): void {
    const peer = ['type', 'veth', 'peer', 'name', 'wire', 'netns', n2.netns];
    sh('ip', '-n', n1.netns, 'link', 'add', 'wire', 'address', mac, ...peer);
    for (const { netns } of [n1, n2]) sh('ip', '-n', netns, 'link', 'set', 'wire', 'up');
    for (const { ip } of [a.endpoint, a.endpoint6]) {
      sh('ip', '-n', n2.netns, 'neigh', 'replace', ip, 'lladdr', mac, 'dev', 'wire', 'nud', 'permanent');
    }
  }

  const mac = '02:cc:00:00:00:01';
  const FORGED = ['10.2.1.77', 'fd00:2:1::77'];

  before(() => {
    for (const ip of FORGED) sh('ip', '-n', n2.netns, 'addr', 'add', ip, 'dev', 'lo');
    addWire();
  });

  after(async () => {
    sh('ip', '-n', n1.netns, 'link', 'del', 'wire');
    for (const ip of FORGED) sh('ip', '-n', n2.netns, 'addr', 'del', ip, 'dev', 'lo');
  });

  const state = { endpointId: 1, egress: false, locked: false };
  const setIngress = (ingress: boolean, revision: number) =>
    n1.datapath.call('update', { table: 'policyStates', rows: [{ ...state, ingress, revision }] });

  /** Sends one echo request from n2 by this interface, and expects that the pod does not get it. */
  async function assertDropped(
    reason: string,
    dev: string,
    ip: string,
    from: string,
    ...args: string[]
  ): Promise<void> {
    const via = dev === 'eth0' ? ['via', n1.config.nodeIp] : [];
    sh('ip', '-n', n2.netns, 'route', 'add', ip, ...via, 'dev', dev);
    const dropped = await count(n1, reason);
    const got = ping(n2.netns, ip, '-W', '0.2', '-I', from, ...args);
    const what = `${from} to ${ip} by ${dev} ${args} dropped as ${reason}: ${got.output}`;
    assert.ok(!got.ok, what);
    await waitFor(async () => (await count(n1, reason)) === dropped + 1, { what, timeoutMs: 10_000 });
    sh('ip', '-n', n2.netns, 'route', 'del', ip, 'dev', dev);
  }

  it('a forged source is dropped also behind IP options, and by an interface that nobody told us of', async () => {
    const [ip, ip6] = [a.endpoint.ip, a.endpoint6.ip];
    await assertDropped('not-encapsulated', 'eth0', ip, FORGED[0]!, '-R');
    await assertDropped('not-encapsulated', 'wire', ip, FORGED[0]!);
    await assertDropped('not-encapsulated', 'wire', ip6, FORGED[1]!);
  });

  it('no way around the policies of a pod leads through the host', async () => {
    await setIngress(true, 2);
    const [ip, ip6] = [a.endpoint.ip, a.endpoint6.ip];
    const [from, from6] = [n2.config.nodeIp, n2.config.ipv6!.nodeIp!];
    for (const dev of ['eth0', 'wire']) {
      await assertDropped('ingress-denied', dev, ip, from);
      await assertDropped('ip-options', dev, ip, from, '-R');
    }
    await assertDropped('ingress-denied', 'wire', ip6, from6);
    await setIngress(false, 3);
  });
});

describe('directly', () => {
  it('a mixed mesh: one pod directly, its neighbour by the tunnel', async () => {
    await mesh.setDirect({ pods: [0] });
    sh('ip', '-n', n1.netns, 'route', 'add', `${c.endpoint.ip}/32`, 'via', n2.config.nodeIp);
    sh('ip', '-n', n2.netns, 'route', 'add', `${a.endpoint.ip}/32`, 'via', n1.config.nodeIp);
    await isReached(a, c.endpoint.ip);
    const before = { direct: await count(n1, 'to-network'), tunnel: await count(n1, 'to-tunnel') };
    assert.match((await tcp(a, c.endpoint.ip)).answer ?? '', /^c /);
    assert.ok((await count(n1, 'to-network')) > before.direct);
    assert.equal(await count(n1, 'to-tunnel'), before.tunnel);
    assert.match((await tcp(b, d.endpoint.ip)).answer ?? '', /^d /);
    assert.ok((await count(n1, 'to-tunnel')) > before.tunnel);
    sh('ip', '-n', n1.netns, 'route', 'del', `${c.endpoint.ip}/32`);
    sh('ip', '-n', n2.netns, 'route', 'del', `${a.endpoint.ip}/32`);
  });

  it('every pod, by routes that the agent makes: ping, TCP, every byte of a transfer, both families', async () => {
    await mesh.setDirect({ pods: [0, 1], all: true });
    assert.match(shIn(n1.netns, 'ip', 'route', 'show', n2.config.podCidr), /via 172\.31\.0\.2/);
    assert.match(shIn(n1.netns, 'ip', '-6', 'route', 'show', n2.config.ipv6!.podCidr), /via fd31::2/);
    const tunnelled = (await count(n1, 'to-tunnel')) + (await count(n2, 'to-tunnel'));
    for (const [name, pod] of Object.entries({ c, d })) {
      for (const { ip } of [pod.endpoint, pod.endpoint6]) {
        await isReached(a, ip); // the first packets find the neighbour
        assert.match((await tcp(a, ip)).answer ?? '', new RegExp(`^${name} `));
      }
    }
    for (const [ip, listen] of [
      [c.endpoint.ip, '0.0.0.0'],
      [c.endpoint6.ip, '::'],
    ] as const) {
      await c.inside.call('sink', { port: 9, ip: listen });
      const load = { ip, port: 9, ms: 300, bytesPerSecond: 20e6 };
      const sent = await a.inside.call<{ bytes: number; sha256: string }>('pump', load);
      const received = await c.inside.call<Received>('received', { port: 9 });
      assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
    }
    assert.equal((await count(n1, 'to-tunnel')) + (await count(n2, 'to-tunnel')), tunnelled);
    const flows = await n2.datapath.call<{ source: string; sourceIdentity: number }[]>('dump', 'ct');
    const fromA = flows.filter(({ source }) => source.startsWith(`${a.endpoint.ip}:`));
    assert.ok(fromA.length > 0 && fromA.every(({ sourceIdentity }) => sourceIdentity === a.endpoint.identity));
  });

  it('a route that somebody took, bent or left behind shows in the row of its prefix, and the row written again mends it', async () => {
    const read = () => n1.datapath.call<Record<string, IpcacheRow>>('read', 'ipcache');
    const wrong = async () =>
      Object.values(await read())
        .filter(({ route }) => route !== undefined)
        .map(({ prefix, route }) => [prefix, route]);
    const { podCidr } = n2.config;
    const podCidr6 = n2.config.ipv6!.podCidr;
    assert.deepEqual(await wrong(), []);
    sh('ip', '-n', n1.netns, '-6', 'route', 'del', podCidr6, 'proto', '201');
    assert.deepEqual(await wrong(), [], 'a direct route may be the network’s to make');
    await mesh.setDirect({ pods: [] });
    assert.deepEqual(await wrong(), []);
    sh('ip', '-n', n1.netns, '-6', 'route', 'del', podCidr6, 'proto', '201');
    sh('ip', '-n', n1.netns, 'route', 'replace', podCidr, 'via', n2.config.nodeIp, 'proto', '201');
    sh('ip', '-n', n1.netns, 'route', 'add', '10.77.0.0/16', 'via', n2.config.nodeIp, 'proto', '201');
    const found = new Map((await wrong()).map(([prefix, route]) => [prefix, route]));
    assert.equal(found.get(podCidr6), 'missing');
    assert.match(found.get(podCidr) ?? '', /^via 172\.31\.0\.2/);
    assert.match(found.get('10.77.0.0/16') ?? '', /^via /);
    await n1.datapath.call('remove', { table: 'ipcache', keys: ['10.77.0.0/16'] });
    await mesh.setDirect({ pods: [0, 1], all: true });
    assert.deepEqual(await wrong(), []);
  });

  it('each packet has a hop less, as after any router', async () => {
    for (const ip of [c.endpoint.ip, c.endpoint6.ip]) {
      const before = await count(n2, 'to-network');
      assert.match(ping(a.netns, ip).output, /ttl=63/);
      assert.ok((await count(n2, 'to-network')) > before);
    }
  });

  it('and back by the tunnel, when it is set so', async () => {
    await mesh.setDirect({ pods: [] });
    const before = await count(n1, 'to-tunnel');
    assert.match((await tcp(a, c.endpoint.ip)).answer ?? '', /^c /);
    assert.ok((await count(n1, 'to-tunnel')) > before);
    assert.match(shIn(n1.netns, 'ip', 'route', 'show', n2.config.podCidr), /encap ip/);
  });
});
