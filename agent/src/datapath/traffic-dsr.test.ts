/**
 * Direct server return: a host of the world reaches pods through one node, and the other node, where they are, answers it. Real sockets,
 * real routes, real VXLAN. See testing/two-nodes.ts for the picture.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { maps as layouts } from '@clustermesh/bpf';
import { waitFor } from '@clustermesh/runtime';
import { openMap } from './bpf-map.ts';
import type { Counter } from './dump.ts';
import { pinDirOf } from './index.ts';
import * as libbpf from './libbpf.ts';
import type { Received, Seen } from './testing/pod-process.ts';
import { sh } from './testing/sandbox.ts';
import { type Node, openTwoNodes, type Pod, type TwoNodes, WORLD } from './testing/two-nodes.ts';
import type { Protocol, ServiceRow } from './types.ts';

const NODE_PORT = 30_080;

let mesh: TwoNodes;
let n1: Node, n2: Node;
let b: Pod, c: Pod, d: Pod;

before(async () => {
  mesh = await openTwoNodes();
  ({ n1, n2 } = mesh.nodes);
  ({ b, c, d } = mesh.pods);
  // Only the node that clients come to is told: the other answers for whoever asks it to.
  await n1.datapath.kill();
  n1.config.nodePortMode = 'dsr';
  await mesh.restart(n1);
  for (const [name, pod] of Object.entries(mesh.pods)) {
    for (const ip of [pod.endpoint.ip, pod.endpoint6.ip]) await pod.inside.call('tcpServe', { port: 8080, name, ip });
    await pod.inside.call('udpServe', { port: 5353, name, ip: pod.endpoint.ip });
    await pod.inside.call('udpServe', { port: 5354, name, ip: pod.endpoint6.ip });
  }
});

after(() => mesh?.close());

const at = (pod: Pod, isV6: boolean): string => (isV6 ? pod.endpoint6 : pod.endpoint).ip;

async function serve(ip: string, port: number, protocol: Protocol, pods: Pod[], backendPort: number): Promise<void> {
  const backends = pods.map((pod) => ({
    ip: at(pod, ip.includes(':')),
    port: backendPort,
    clusterId: pod.endpoint.identity >> 16,
  }));
  const row: ServiceRow = { frontend: { ip, port, protocol, scope: 'outside' }, backends, flags: 0 };
  await n1.datapath.call('update', { table: 'services', rows: [row] });
}

/** Packets that were given a service's address back: by what left a node, and by what came to it through the tunnel. */
async function answered(node: Node): Promise<{ direct: number; back: number }> {
  const counters = await node.datapath.call<Counter[]>('dump', 'drops');
  const of = (direction: string) =>
    counters.find((one) => one.reason === 'reply-translated' && one.direction === direction)?.packets ?? 0;
  return { direct: of('to-network'), back: of('overlay') };
}

/** Bytes that left a node towards the world. */
function sentBy({ netns }: Node): number {
  const [link] = JSON.parse(sh('ip', '-n', netns, '-s', '-j', 'link', 'show', 'eth1')) as [
    { stats64: { tx: { bytes: number } } },
  ];
  return link.stats64.tx.bytes;
}

const tcp = (ip: string, port: number): Promise<Seen> => mesh.world.call('tcpAsk', { ip, port });

for (const { family, isV6, node, external, client } of [
  { family: 'IPv4', isV6: false, node: '172.31.0.1', external: '192.0.2.1', client: WORLD.ip },
  { family: 'IPv6', isV6: true, node: 'fd31::1', external: '2001:db8:1::1', client: WORLD.ip6 },
]) {
  /** What of `body` was answered by which node. */
  async function watched<T>(body: () => Promise<T>): Promise<{ result: T; byGateway: number; byBackend: number }> {
    const before = [await answered(n1), await answered(n2)] as const;
    const result = await body();
    const now = [await answered(n1), await answered(n2)] as const;
    return {
      result,
      byGateway: now[0].back - before[0].back + now[0].direct - before[0].direct,
      byBackend: now[1].direct - before[1].direct,
    };
  }

  /** A pod of the other node answers, sees the client, and its own node speaks for the service. */
  async function assertDirect(ask: () => Promise<Seen>, expected: string, peer: string): Promise<void> {
    const { result, byGateway, byBackend } = await watched(ask);
    assert.deepEqual([result.answer, result.error, result.peer], [expected, undefined, peer]);
    assert.equal(byGateway, 0, 'answers came by the first node');
    assert.ok(byBackend > 0, 'no answer came from the backend’s node');
  }

  describe(`a host of the world, by ${family}`, () => {
    it('reaches a pod of another node by a NodePort: the pod sees who it is, and answers past the first node', async () => {
      for (const [name, pod] of Object.entries({ c, d })) {
        await serve(node, NODE_PORT, 'TCP', [pod], 8080);
        await assertDirect(() => tcp(node, NODE_PORT), `${name} ${client}`, `${node}:${NODE_PORT}`);
        await serve(external, 80, 'TCP', [pod], 8080);
        await assertDirect(() => tcp(external, 80), `${name} ${client}`, `${external}:80`);
      }
    });

    it('by UDP, the same', async () => {
      await serve(external, 53, 'UDP', [c], isV6 ? 5354 : 5353);
      for (const connected of [true, false]) {
        const ask = () => mesh.world.call<Seen>('udpAsk', { ip: external, port: 53, connected });
        await assertDirect(ask, `c ${client}`, `${external}:53`);
      }
    });

    it('and where pods are reached without the tunnel', async () => {
      await mesh.setDirect({ pods: [0, 1], all: true });
      try {
        await serve(external, 80, 'TCP', [c], 8080);
        await assertDirect(() => tcp(external, 80), `c ${client}`, `${external}:80`);
      } finally {
        await mesh.setDirect({ pods: [] });
      }
    });

    it('reaches a pod of the first node as ever', async () => {
      await serve(node, NODE_PORT, 'TCP', [b], 8080);
      const { result, byGateway, byBackend } = await watched(() => tcp(node, NODE_PORT));
      assert.deepEqual([result.answer, result.error], [`b ${client}`, undefined]);
      assert.ok(byGateway > 0);
      assert.equal(byBackend, 0);
    });

    it('gets every byte of a transfer, whose flow the first node forgets meanwhile', async () => {
      await serve(external, 9, 'TCP', [c], 9000);
      await c.inside.call('sink', { port: 9000, ip: isV6 ? '::' : '0.0.0.0' });
      const fd = libbpf.pinned(join(pinDirOf(n1.config), 'cm_nat'))!;
      const flows = openMap('cm_nat', fd, layouts.cm_nat);
      const before = sentBy(n1);
      let isOver = false;
      const pump = async () => {
        const load = { ip: external, port: 9, ms: 400, bytesPerSecond: 20e6 };
        try {
          return await mesh.world.call<{ bytes: number; sha256: string }>('pump', load);
        } finally {
          isOver = true;
        }
      };
      const pumped = pump();
      let forgotten = 0;
      while (!isOver && forgotten < 10_000) {
        const keys = (await flows.entries()).map(([key]) => key);
        await flows.remove(keys);
        forgotten += keys.length;
        await new Promise(setImmediate);
      }
      libbpf.closeFd(fd);
      const sent = await pumped;
      const received = await c.inside.call<Received>('received', { port: 9000 });
      assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
      assert.ok(forgotten > 2, `${forgotten} rows were forgotten`);
      assert.ok(sentBy(n1) - before < 10_000, `the first node sent the client ${sentBy(n1) - before} bytes`);
    });

    it('gets what a pod has to send, as large as segments come', async () => {
      await serve(external, 84, 'TCP', [c], 8081);
      await c.inside.call('tcpHold', { port: 8081, ip: at(c, isV6) });
      await mesh.world.call('tcpOpen', { ip: external, port: 84 });
      const { result, byGateway } = await watched(async () => {
        for (let i = 0; i < 20; i++) {
          const text = `${i} `.repeat(500);
          assert.equal(await mesh.world.call('tcpSay', { text }), text);
        }
      });
      assert.deepEqual([result, byGateway], [undefined, 0]);
    });

    it('has its connection reset when the backend is withdrawn', async () => {
      assert.equal(await mesh.world.call('tcpSay', { text: 'there?' }), 'there?');
      await serve(external, 84, 'TCP', [d], 8081);
      assert.equal(await mesh.world.call('tcpSay', { text: 'still there?' }), 'ECONNRESET');
    });

    it('is refused at once where nobody listens, and where nobody is', async () => {
      await serve(external, 83, 'UDP', [c], 7);
      const unheard = await mesh.world.call<Seen>('udpAsk', { ip: external, port: 83, connected: true });
      assert.equal(unheard.error, 'ECONNREFUSED');
      await serve(external, 85, 'TCP', [c], 7);
      assert.equal((await tcp(external, 85)).error, 'ECONNREFUSED');
      const gone = { ip: isV6 ? 'fd00:2:1::99' : '10.2.1.99', port: 80, clusterId: 2 };
      const frontend = { ip: external, port: 86, protocol: 'TCP', scope: 'outside' } as const;
      await n1.datapath.call('update', { table: 'services', rows: [{ frontend, backends: [gone], flags: 0 }] });
      const seen = await waitFor(async () => (await tcp(external, 86)).error, { what: 'an error', timeoutMs: 20_000 });
      assert.equal(seen, 'EHOSTUNREACH');
    });
  });
}
