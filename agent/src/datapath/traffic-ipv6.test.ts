/** IPv6 between two nodes, and what is too large for the way between them: see testing/two-nodes.ts for the picture. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { isIpv4 } from '@clustermesh/contract';
import type { Counter } from './dump.ts';
import type { Received, Seen } from './testing/pod-process.ts';
import type { Remote } from './testing/remote.ts';
import { netnsPath, sh, shIn } from './testing/sandbox.ts';
import { type Node, openTwoNodes, type Pod, type TwoNodes } from './testing/two-nodes.ts';
import type { Protocol, ServiceRow } from './types.ts';

const SHOP = 'fd96::10';
const NOBODY = 'fd96::30';

let mesh: TwoNodes;
let a: Pod, b: Pod, c: Pod, d: Pod;
let n1: Node, n2: Node;
/** In a's namespace, but not in its node's cgroup: load-balanced per packet. */
let outsider: Remote;

const service = (ip: string, port: number, protocol: Protocol, pods: Pod[], backendPort: number): ServiceRow => ({
  frontend: { ip, port, protocol },
  backends: pods.map(({ endpoint, endpoint6 }) => ({
    ip: isIpv4(ip) ? endpoint.ip : endpoint6.ip,
    port: backendPort,
    clusterId: endpoint.identity >> 16,
  })),
  flags: 0,
});

before(async () => {
  mesh = await openTwoNodes();
  ({ a, b, c, d } = mesh.pods);
  ({ n1, n2 } = mesh.nodes);
  outsider = await mesh.outsider(a);
  for (const [name, pod] of Object.entries(mesh.pods)) {
    await pod.inside.call('tcpServe', { port: 8080, name, ip: pod.endpoint6.ip });
    await pod.inside.call('udpServe', { port: 5353, name, ip: pod.endpoint6.ip });
  }
  await mesh.setServices([
    service(SHOP, 80, 'TCP', [b, c, d], 8080),
    service(SHOP, 53, 'UDP', [d], 5353),
    service(SHOP, 9, 'TCP', [d], 9),
    service('10.96.0.10', 9, 'TCP', [c], 9),
    service(NOBODY, 80, 'TCP', [], 0),
    service(NOBODY, 53, 'UDP', [], 0),
  ]);
});

after(() => mesh?.close());

const tcp = (from: Remote, ip: string, port: number): Promise<Seen> => from.call('tcpAsk', { ip, port });
const udp = (from: Remote, ip: string, port: number): Promise<Seen> =>
  from.call('udpAsk', { ip, port, connected: true });

async function count(node: Node, reason: string): Promise<number> {
  const counters = await node.datapath.call<Counter[]>('dump', 'drops');
  return counters.filter((c) => c.reason === reason).reduce((sum, c) => sum + c.packets, 0);
}

function ping(netns: string, ip: string, ...args: string[]): { ok: boolean; output: string } {
  const command = [`--net=${netnsPath(netns)}`, 'ping', '-c', '1', '-W', '2', ...args, ip];
  const { status, stdout } = spawnSync('nsenter', command);
  return { ok: status === 0, output: String(stdout) };
}

describe('pods reach each other by IPv6', () => {
  it('on one node and across clusters, over an IPv4 and an IPv6 underlay, under their own addresses', async () => {
    for (const [name, pod] of [
      ['b', b],
      ['c', c], // over IPv4
      ['d', d], // over IPv6
    ] as const) {
      const { ip } = pod.endpoint6;
      assert.ok(ping(a.netns, ip).ok, `ping ${name}`);
      assert.equal((await tcp(a.inside, ip, 8080)).answer, `${name} ${a.endpoint6.ip}`);
      assert.equal((await udp(a.inside, ip, 5353)).answer, `${name} ${a.endpoint6.ip}`);
    }
    const dropped = await n2.datapath.call<Counter[]>('dump', 'drops');
    // Kernels also look for routers and groups, which nobody here answers.
    assert.deepEqual(
      dropped.filter((x) => x.class === 'dropped' && x.reason !== 'link-local'),
      [],
    );
  });

  it('and their own node, which reaches them too', () => {
    assert.ok(ping(a.netns, n1.config.ipv6!.gatewayIp).ok);
    assert.ok(ping(a.netns, n1.config.ipv6!.nodeIp!).ok);
    assert.ok(ping(n1.netns, a.endpoint6.ip).ok);
  });

  it('a pod that nobody has is "unreachable" at once, here and on the other node', async () => {
    for (const ip of ['fd00:1:1::99', 'fd00:2:1::99']) {
      const seen = await tcp(a.inside, ip, 80);
      assert.equal(seen.error, 'EHOSTUNREACH', ip);
    }
  });
});

describe('a service by IPv6', () => {
  it('is served by all its backends, near and far, by socket and by packet', async () => {
    for (const client of [a.inside, outsider]) {
      const hits = await client.call<Record<string, number>>('tcpSpread', { ip: SHOP, port: 80, n: 100 });
      assert.deepEqual(Object.keys(hits).sort(), ['b', 'c', 'd']);
      assert.equal((await udp(client, SHOP, 53)).answer, `d ${a.endpoint6.ip}`);
    }
    assert.ok((await count(n1, 'service-translated')) > 100);
  });

  it('without backends refuses at once, TCP and UDP', async () => {
    for (const client of [a.inside, outsider]) {
      for (const seen of [await tcp(client, NOBODY, 80), await udp(client, NOBODY, 53)]) {
        assert.equal(seen.error, 'ECONNREFUSED');
      }
    }
  });
});

describe('F43: what is larger than the way through the tunnel', () => {
  before(() => {
    // As a pod whose CNI knows nothing of the tunnel.
    sh('ip', '-n', a.netns, 'link', 'set', 'eth0', 'mtu', '1500');
    sh('ip', '-n', n1.netns, 'link', 'set', a.endpoint.interface, 'mtu', '1500');
  });

  for (const [what, ip, to, mtu] of [
    ['IPv4 to a pod', '', 'c', 1450],
    ['IPv6 over IPv4 to a pod', '6', 'c', 1450],
    ['IPv6 over IPv6 to a pod', '6', 'd', 1430],
    ['IPv4 to a service, by packet', '10.96.0.10', 'c', 1450],
    ['IPv6 to a service, by packet', SHOP, 'd', 1430],
  ] as const) {
    it(`${what}: the sender is told, sends smaller, and every byte arrives`, async () => {
      const pod = to === 'c' ? c : d;
      const target = ip === '' ? pod.endpoint.ip : ip === '6' ? pod.endpoint6.ip : ip;
      const isV4 = isIpv4(target);
      sh('ip', '-n', a.netns, 'route', 'flush', 'cache');
      sh('ip', '-n', a.netns, '-6', 'route', 'flush', 'cache');
      // Segments as the MSS of the receiver allows: its MTU must not be what saves us.
      sh('ip', '-n', pod.netns, 'link', 'set', 'eth0', 'mtu', '1500');
      const told = await count(n1, 'too-big');
      await pod.inside.call('sink', { port: 9, ip: isV4 ? '0.0.0.0' : pod.endpoint6.ip });
      const sent = await outsider.call<{ bytes: number; sha256: string }>('pump', {
        ip: target,
        port: 9,
        ms: 300,
        bytesPerSecond: 5e6,
      });
      const received = await pod.inside.call<Received>('received', { port: 9 });
      assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
      assert.ok((await count(n1, 'too-big')) > told, 'nothing was too big');
      assert.match(shIn(a.netns, 'ip', 'route', 'get', target), new RegExp(`mtu ${mtu}\\b`));
    });
  }
});
