/** Services as a host of the world reaches them: real sockets, real routes, real VXLAN. See testing/two-nodes.ts for the picture. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import type { Received, Seen } from './testing/pod-process.ts';
import { openTwoNodes, type Pod, type TwoNodes, WORLD } from './testing/two-nodes.ts';
import type { Protocol, ServiceRow } from './types.ts';

const NODE_PORT = 30_080;

let mesh: TwoNodes;
let a: Pod, b: Pod, c: Pod, d: Pod;

before(async () => {
  mesh = await openTwoNodes();
  ({ a, b, c, d } = mesh.pods);
  for (const [name, pod] of Object.entries(mesh.pods)) {
    for (const ip of [pod.endpoint.ip, pod.endpoint6.ip]) await pod.inside.call('tcpServe', { port: 8080, name, ip });
    await pod.inside.call('udpServe', { port: 5353, name, ip: pod.endpoint.ip });
    await pod.inside.call('udpServe', { port: 5354, name, ip: pod.endpoint6.ip });
  }
});

after(() => mesh?.close());

const at = (pod: Pod, isV6: boolean): string => (isV6 ? pod.endpoint6 : pod.endpoint).ip;

/** The service as other hosts see it, and nodes and pods themselves. */
async function serve(ip: string, port: number, protocol: Protocol, pods: Pod[], backendPort: number): Promise<void> {
  const backends = pods.map((pod) => ({
    ip: at(pod, ip.includes(':')),
    port: backendPort,
    clusterId: pod.endpoint.identity >> 16,
  }));
  const row: ServiceRow = { frontend: { ip, port, protocol }, backends, flags: 0 };
  await mesh.nodes.n1.datapath.call('update', {
    table: 'services',
    rows: [row, { ...row, frontend: { ...row.frontend, scope: 'outside' } }],
  });
}

const tcp = (ip: string, port: number): Promise<Seen> => mesh.world.call('tcpAsk', { ip, port });

for (const { family, isV6, node, external, client, gateway } of [
  { family: 'IPv4', isV6: false, node: '172.31.0.1', external: '192.0.2.1', client: WORLD.ip, gateway: '10.1.1.1' },
  { family: 'IPv6', isV6: true, node: 'fd31::1', external: '2001:db8:1::1', client: WORLD.ip6, gateway: 'fd00:1:1::1' },
]) {
  describe(`a host of the world, by ${family}`, () => {
    it('reaches a pod of the node by its NodePort; the pod sees who it is', async () => {
      await serve(node, NODE_PORT, 'TCP', [b], 8080);
      const seen = await tcp(node, NODE_PORT);
      assert.deepEqual([seen.answer, seen.error], [`b ${client}`, undefined]);
    });

    it('reaches a pod of another node by the tunnel, which sees the first node’s gateway', async () => {
      for (const [name, pod] of Object.entries({ c, d })) {
        await serve(external, 80, 'TCP', [pod], 8080);
        const seen = await tcp(external, 80);
        assert.deepEqual([seen.answer, seen.error], [`${name} ${gateway}`, undefined]);
      }
    });

    it('by UDP, the same, and the answers come from whom it asked', async () => {
      for (const [name, pod, source] of [
        ['b', b, client],
        ['c', c, gateway],
      ] as const) {
        await serve(external, 53, 'UDP', [pod], isV6 ? 5354 : 5353);
        for (const connected of [true, false]) {
          const seen = await mesh.world.call<Seen>('udpAsk', { ip: external, port: 53, connected });
          assert.deepEqual([seen.answer, seen.error], [`${name} ${source}`, undefined]);
          assert.equal(seen.peer, `${external}:53`);
        }
      }
    });

    it('gets every byte of a transfer across nodes, as large as segments come', async () => {
      await serve(external, 9, 'TCP', [c], 9000);
      await c.inside.call('sink', { port: 9000, ip: isV6 ? '::' : '0.0.0.0' });
      const load = { ip: external, port: 9, ms: 300, bytesPerSecond: 20e6 };
      const sent = await mesh.world.call<{ bytes: number; sha256: string }>('pump', load);
      const received = await c.inside.call<Received>('received', { port: 9000 });
      assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
    });

    it('is refused at once where the service has nobody', async () => {
      await serve(external, 81, 'TCP', [], 0);
      assert.equal((await tcp(external, 81)).error, 'ECONNREFUSED');
      await serve(external, 82, 'UDP', [], 0);
      const seen = await mesh.world.call<Seen>('udpAsk', { ip: external, port: 82, connected: true });
      assert.equal(seen.error, 'ECONNREFUSED');
    });

    it('learns that nobody listens, from the pod that it asked', async () => {
      for (const pod of [b, c]) {
        await serve(external, 83, 'UDP', [pod], 7);
        const seen = await mesh.world.call<Seen>('udpAsk', { ip: external, port: 83, connected: true });
        assert.equal(seen.error, 'ECONNREFUSED');
      }
    });

    it('has its connection reset when the backend is withdrawn', async () => {
      await serve(external, 84, 'TCP', [c], 8081);
      await c.inside.call('tcpHold', { port: 8081, ip: at(c, isV6) });
      await mesh.world.call('tcpOpen', { ip: external, port: 84 });
      assert.equal(await mesh.world.call('tcpSay', { text: 'there?' }), 'there?');
      await serve(external, 84, 'TCP', [d], 8081);
      assert.equal(await mesh.world.call('tcpSay', { text: 'still there?' }), 'ECONNRESET');
    });

    it('reaches a pod of another node by routes, which sees the first node itself', async () => {
      await mesh.setDirect({ pods: [0, 1], all: true });
      try {
        await serve(external, 80, 'TCP', [c], 8080);
        // The first packets find the neighbour.
        const ask = async () => (await tcp(external, 80)).answer;
        assert.equal(await waitFor(ask, { what: 'an answer', timeoutMs: 10_000 }), `c ${node}`);
      } finally {
        await mesh.setDirect({ pods: [] });
      }
    });

    it('and pods and sockets of the node reach its NodePort and external addresses as well', async () => {
      await serve(node, NODE_PORT, 'TCP', [c], 8080);
      await serve(external, 80, 'TCP', [c], 8080);
      const outsider = await mesh.outsider(a);
      for (const from of [a.inside, outsider]) {
        for (const [ip, port] of [
          [node, NODE_PORT],
          [external, 80],
        ] as const) {
          const seen = await from.call<Seen>('tcpAsk', { ip, port });
          assert.deepEqual([seen.answer, seen.error], [`c ${at(a, isV6)}`, undefined], `${ip}:${port}`);
        }
      }
    });
  });
}
