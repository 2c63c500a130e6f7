/** F28, the upgrade: another version's maps, of another layout, while sockets are in the middle of something. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, before, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pinDirOf } from './index.ts';
import { makeOlder } from './testing/older-layouts.ts';
import type { Received } from './testing/pod-process.ts';
import { openTwoNodes, type TwoNodes } from './testing/two-nodes.ts';
import type { MapInfo } from './types.ts';

const SHOP = '10.96.0.10';
let mesh: TwoNodes;
before(async () => {
  mesh = await openTwoNodes();
});
after(() => mesh?.close());

it('a transfer outlives an agent that lays its maps out otherwise: every byte, every row, every id', async () => {
  const { a, c } = mesh.pods;
  const nodes = Object.values(mesh.nodes);
  const outsider = await mesh.outsider(a); // balanced per packet: lives by its row of cm_ct
  const sessions = [
    { client: a.inside, port: 9100 },
    { client: outsider, port: 9101 },
  ];
  await mesh.setServices(
    sessions.map(({ port }) => ({
      frontend: { ip: SHOP, port, protocol: 'TCP' },
      backends: [{ ip: c.endpoint.ip, port, clusterId: 2 }],
      flags: 0,
    })),
  );
  /** A hash map's order is its own, and another one's is another. */
  const inOrder = (rows: object[]) => rows.map((row) => JSON.stringify(row)).sort();
  const held = () =>
    Promise.all(
      nodes.map(async ({ datapath }) => ({
        services: inOrder(await datapath.call('dump', 'services')),
        backends: inOrder(await datapath.call('dump', 'backends')),
        ipcache: await datapath.call('list', 'ipcache'),
        endpoints: await datapath.call('list', 'endpoints'),
      })),
    );
  const before = await held();
  const idsOf = async (node: (typeof nodes)[number]) =>
    new Map((await node.datapath.call<MapInfo[]>('maps')).map(({ name, id }) => [name, id]));
  const idsBefore = await idsOf(nodes[0]!);

  const pumped = sessions.map(async ({ client, port }) => {
    await c.inside.call('sink', { port });
    return client.call<Received>('pump', { ip: SHOP, port, ms: 4000, bytesPerSecond: 5e6 });
  });
  await sleep(300); // the transfer is well under way; nothing observable to wait for
  for (const node of nodes) {
    await node.datapath.kill();
    const older = await makeOlder(pinDirOf(node.config));
    assert.deepEqual(older, ['cm_ct', 'cm_endpoints', 'cm_ipcache', 'cm_services']);
    await mesh.restart(node);
  }
  for (const [i, sent] of (await Promise.all(pumped)).entries()) {
    const received = await c.inside.call<Received>('received', { port: sessions[i]!.port });
    assert.deepEqual([received.bytes, received.sha256], [sent.bytes, sent.sha256]);
  }
  assert.deepEqual(await held(), before);
  const idsAfter = await idsOf(nodes[0]!);
  const changed = [...idsBefore.keys()].filter((name) => idsAfter.get(name) !== idsBefore.get(name)).sort();
  assert.deepEqual(changed, ['cm_ct', 'cm_endpoints', 'cm_ipcache', 'cm_services']);
  assert.ok(!readdirSync(pinDirOf(nodes[0]!.config)).some((name) => name.endsWith('_next')));
  const flows = await nodes[0]!.datapath.call<{ source: string; translated: string | null }[]>('dump', 'ct');
  assert.ok(flows.some(({ translated }) => translated === `${SHOP}:9101`));
});
