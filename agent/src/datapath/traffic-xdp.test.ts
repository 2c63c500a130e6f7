/**
 * XDP at the uplinks, with real sockets of a host of the world: see testing/two-nodes.ts for the picture. Uplinks are veths: natively
 * their other ends must take frames (another XDP program, or GRO), and senders must finish their checksums (`tx off`), or tc does it.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { waitFor } from '@clustermesh/runtime';
import type { Counter } from './dump.ts';
import { pinDirOf } from './index.ts';
import type { Received, Seen } from './testing/pod-process.ts';
import { sh, shIn } from './testing/sandbox.ts';
import { type Node, openTwoNodes, type Pod, type TwoNodes, WORLD } from './testing/two-nodes.ts';
import type { Protocol, ServiceRow } from './types.ts';

const NODE_PORT = 30_080;

interface XdpOnLink {
  xdp?: { prog: { id: number }; mode?: number; attached?: { mode: number; prog: { id: number } }[] };
}

/** Id of the program on a device of the node. */
const programOn = (node: Node, device: string): number | undefined =>
  (JSON.parse(sh('ip', '-n', node.netns, '-json', 'link', 'show', 'dev', device)) as XdpOnLink[])[0]?.xdp?.prog.id;

const pinsOf = (node: Node): string[] =>
  readdirSync(pinDirOf(node.config)).filter((name) => name.startsWith('link_xdp_'));

async function counted(node: Node, reason: string, direction: string): Promise<number> {
  const counters = await node.datapath.call<Counter[]>('dump', 'drops');
  return counters.find((one) => one.reason === reason && one.direction === direction)?.packets ?? 0;
}

for (const mode of ['generic', 'native'] as const) {
  describe(`XDP, ${mode}`, () => {
    let mesh: TwoNodes;
    let n1: Node, c: Pod;

    const at = (pod: Pod, isV6: boolean): string => (isV6 ? pod.endpoint6 : pod.endpoint).ip;
    const tcp = (ip: string, port: number): Promise<Seen> => mesh.world.call('tcpAsk', { ip, port });

    async function serve(
      ip: string,
      port: number,
      protocol: Protocol,
      pods: Pod[],
      backendPort: number,
    ): Promise<void> {
      const backends = pods.map((pod) => ({
        ip: at(pod, ip.includes(':')),
        port: backendPort,
        clusterId: pod.endpoint.identity >> 16,
      }));
      const row: ServiceRow = { frontend: { ip, port, protocol, scope: 'outside' }, backends, flags: 0 };
      await n1.datapath.call('update', { table: 'services', rows: [row] });
    }

    /** Senders finish their checksums, or leave them to others. */
    function setOffload(state: 'on' | 'off'): void {
      shIn(`${mesh.sandbox.name}-x`, 'ethtool', '-K', 'n1', 'tx', state);
      for (const pod of Object.values(mesh.pods)) shIn(pod.netns, 'ethtool', '-K', 'eth0', 'tx', state);
    }

    before(async () => {
      mesh = await openTwoNodes(undefined, { xdp: mode });
      n1 = mesh.nodes.n1;
      c = mesh.pods.c;
      for (const device of ['n1', 'n2']) shIn(`${mesh.sandbox.name}-x`, 'ethtool', '-K', device, 'gro', 'on');
      for (const [name, pod] of Object.entries(mesh.pods)) {
        for (const ip of [pod.endpoint.ip, pod.endpoint6.ip])
          await pod.inside.call('tcpServe', { port: 8080, name, ip });
        await pod.inside.call('udpServe', { port: 5353, name, ip: pod.endpoint.ip });
        await pod.inside.call('udpServe', { port: 5354, name, ip: pod.endpoint6.ip });
      }
      setOffload('off');
    });
    after(() => mesh?.close());

    it('is on every uplink, and nothing is amiss', async () => {
      for (const node of Object.values(mesh.nodes)) {
        for (const device of ['eth0', 'eth1']) assert.ok(programOn(node, device) !== undefined, device);
        assert.equal(pinsOf(node).length, 2);
        assert.deepEqual(await node.datapath.call('problems'), []);
      }
    });

    for (const { family, isV6, node, external, gateway } of [
      { family: 'IPv4', isV6: false, node: '172.31.0.1', external: '192.0.2.1', gateway: '10.1.1.1' },
      { family: 'IPv6', isV6: true, node: 'fd31::1', external: '2001:db8:1::1', gateway: 'fd00:1:1::1' },
    ]) {
      it(`${family}: carries a host of the world to another node’s pod by the tunnel, over either underlay`, async () => {
        for (const [name, pod] of [
          ['c', c],
          ['d', mesh.pods.d],
        ] as const) {
          await serve(node, NODE_PORT, 'TCP', [pod], 8080);
          await serve(external, 53, 'UDP', [pod], isV6 ? 5354 : 5353);
          // The first packet may find the neighbour, which is tc's.
          await tcp(node, NODE_PORT);
          const [byXdp, byTc] = [await counted(n1, 'to-tunnel', 'xdp'), await counted(n1, 'to-tunnel', 'from-network')];
          const seen = await tcp(node, NODE_PORT);
          assert.deepEqual([seen.answer, seen.error], [`${name} ${gateway}`, undefined]);
          const datagram = await mesh.world.call<Seen>('udpAsk', { ip: external, port: 53, connected: true });
          assert.deepEqual([datagram.answer, datagram.error], [`${name} ${gateway}`, undefined]);
          // Handshake, request's end, close, and the datagram.
          assert.ok((await counted(n1, 'to-tunnel', 'xdp')) >= byXdp + 4);
          assert.equal(await counted(n1, 'to-tunnel', 'from-network'), byTc);
        }
      });

      it(`${family}: carries both ways of a flow with a backend that is routed to`, async () => {
        await mesh.setDirect({ pods: [0, 1], all: true });
        try {
          await serve(external, 80, 'TCP', [c], 8080);
          const ask = async () => (await tcp(external, 80)).answer;
          assert.equal(await waitFor(ask, { what: 'an answer', timeoutMs: 10_000 }), `c ${node}`);
          const before = await Promise.all(
            ['service-translated', 'reply-translated'].map((reason) => counted(n1, reason, 'xdp')),
          );
          const byTc = await counted(n1, 'reply-translated', 'from-network');
          assert.equal(await ask(), `c ${node}`);
          assert.ok((await counted(n1, 'service-translated', 'xdp')) >= before[0]! + 3);
          assert.ok((await counted(n1, 'reply-translated', 'xdp')) >= before[1]! + 3);
          assert.equal(await counted(n1, 'reply-translated', 'from-network'), byTc);
        } finally {
          await mesh.setDirect({ pods: [] });
        }
      });

      it(`${family}: leaves to tc what a sender’s offloads left half done, and every byte arrives`, async () => {
        setOffload('on');
        try {
          await serve(external, 9, 'TCP', [c], 9000);
          await c.inside.call('sink', { port: 9000, ip: isV6 ? '::' : '0.0.0.0' });
          const byTc = await counted(n1, 'to-tunnel', 'from-network');
          const load = { ip: external, port: 9, ms: 300, bytesPerSecond: 20e6 };
          const sent = await mesh.world.call<{ bytes: number; sha256: string }>('pump', load);
          const received = await c.inside.call<Received>('received', { port: 9000 });
          assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
          assert.ok((await counted(n1, 'to-tunnel', 'from-network')) > byTc);
        } finally {
          setOffload('off');
        }
      });

      it(`${family}: what is for this node’s pods, and for nobody, is as without it`, async () => {
        await serve(external, 80, 'TCP', [mesh.pods.b], 8080);
        assert.equal((await tcp(external, 80)).answer, `b ${isV6 ? WORLD.ip6 : WORLD.ip}`);
        await serve(external, 81, 'TCP', [], 0);
        assert.equal((await tcp(external, 81)).error, 'ECONNREFUSED');
      });
    }

    it('goes on while no agent runs, gives way to a newer one, and not a byte of a transfer is lost', async () => {
      const port = 9001;
      await serve('192.0.2.1', 9, 'TCP', [c], port);
      await c.inside.call('sink', { port, ip: '0.0.0.0' });
      const load = { ip: '192.0.2.1', port: 9, ms: 3000, bytesPerSecond: 2e6 };
      const pumped = mesh.world.call<{ bytes: number; sha256: string }>('pump', load);
      const [older, pins, byXdp] = [programOn(n1, 'eth1'), pinsOf(n1), await counted(n1, 'to-tunnel', 'xdp')];
      await n1.datapath.kill();
      assert.equal(programOn(n1, 'eth1'), older);
      await mesh.restart(n1);
      assert.notEqual(programOn(n1, 'eth1'), older);
      assert.deepEqual(pinsOf(n1), pins);
      assert.deepEqual(await n1.datapath.call('problems'), []);
      const sent = await pumped;
      const received = await c.inside.call<Received>('received', { port });
      assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
      assert.ok((await counted(n1, 'to-tunnel', 'xdp')) > byXdp + 100);
    });

    const onJumbo = async () => {
      const setMtu = (mtu: string) => {
        for (const [netns, device] of [
          [n1.netns, 'eth1'],
          [`${mesh.sandbox.name}-x`, 'n1'],
        ] as const)
          sh('ip', '-n', netns, 'link', 'set', 'dev', device, 'mtu', mtu);
      };
      setMtu('9000');
      const byXdp = await counted(n1, 'to-tunnel', 'xdp');
      await serve('172.31.0.1', NODE_PORT, 'TCP', [c], 8080);
      assert.equal((await tcp('172.31.0.1', NODE_PORT)).answer, 'c 10.1.1.1');
      assert.ok((await counted(n1, 'to-tunnel', 'xdp')) > byXdp);
      setMtu('1500');
    };
    if (mode === 'native') it('stays on a device that is given jumbo frames', onJumbo);

    it('is taken off when the setting is off, and services are served on', async () => {
      await n1.datapath.kill();
      n1.config.xdp = 'off';
      await mesh.restart(n1);
      assert.deepEqual([programOn(n1, 'eth0'), programOn(n1, 'eth1'), pinsOf(n1)], [undefined, undefined, []]);
      await serve('172.31.0.1', NODE_PORT, 'TCP', [c], 8080);
      const byXdp = await counted(n1, 'to-tunnel', 'xdp');
      assert.equal((await tcp('172.31.0.1', NODE_PORT)).answer, 'c 10.1.1.1');
      assert.equal(await counted(n1, 'to-tunnel', 'xdp'), byXdp);
    });

    it('leaves a device alone on which somebody else has a program, and says so', async () => {
      const object = join('/run', mesh.sandbox.name, 'foreign.o');
      const source = fileURLToPath(new URL('testing/foreign.bpf.c', import.meta.url));
      const multiarch = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu';
      sh('clang', '-O2', '-g', '-target', 'bpf', `-I/usr/include/${multiarch}`, '-c', source, '-o', object);
      const kind = mode === 'native' ? 'xdpdrv' : 'xdpgeneric';
      sh('ip', '-n', n1.netns, 'link', 'set', 'dev', 'eth1', kind, 'obj', object, 'sec', 'xdp');
      const foreign = programOn(n1, 'eth1');
      assert.ok(foreign !== undefined);
      await n1.datapath.kill();
      n1.config.xdp = mode;
      await mesh.restart(n1);
      assert.equal(programOn(n1, 'eth1'), foreign);
      assert.deepEqual(await n1.datapath.call('problems'), [
        `attaching XDP (${mode}) to eth1: XDP program ${foreign} of somebody else is on it, and stays`,
      ]);
      assert.ok(programOn(n1, 'eth0') !== undefined);
      // eth0 may not send by a device that does not take part, nor does eth1 ask it to: tc does both.
      await serve('172.31.0.1', NODE_PORT, 'TCP', [c], 8080);
      assert.equal((await tcp('172.31.0.1', NODE_PORT)).answer, 'c 10.1.1.1');
    });
  });
}

describe('XDP, auto', () => {
  it('leaves veths alone, and drivers that cannot, without calling it a problem', async () => {
    const mesh = await openTwoNodes(undefined, { xdp: 'auto' });
    try {
      const { n1 } = mesh.nodes;
      assert.deepEqual([programOn(n1, 'eth0'), pinsOf(n1)], [undefined, []]);
      assert.deepEqual(await n1.datapath.call('problems'), []);
      // Loopback has a driver that knows nothing of XDP.
      for (const [xdp, problems] of [
        ['auto', []],
        ['native', ['attaching XDP (native) to lo: the driver refuses it: Operation not supported (EOPNOTSUPP)']],
      ] as const) {
        await n1.datapath.kill();
        Object.assign(n1.config, { xdp, uplinks: ['lo'] });
        await mesh.restart(n1);
        assert.deepEqual(await n1.datapath.call('problems'), problems);
      }
    } finally {
      await mesh.close();
    }
  });
});
