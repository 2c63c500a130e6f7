/** A peer whose traffic is moved away before it is disconnected. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLog } from '@clustermesh/runtime';
import { createPeerDirectory } from '../operations/index.ts';
import { connect, shopManifest, startCluster } from '../testing/control-plane.ts';

test('a peer that is drained loses its services here, keeps its addresses, and gets them back when it is connected again', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const us = await startCluster(t, { name: 'us', id: 2 });
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  await us.publishNode('n1', 1, [{ id: 'web-0', identity: 131_073, ipv4: '10.2.1.5' }]);
  await connect(eu, us);
  const count = async (family: string) => Object.keys(await eu.dump(`cilium/cache/${family}/v1/us/`)).length;
  const services = async () => (await count('services')) + (await count('endpointslices'));
  await eu.eventually('services and addresses', async () => (await services()) > 1 && (await count('ip')) > 0);
  const before = { ip: await count('ip'), nodes: await count('nodes') };

  const directory = createPeerDirectory({ dir: join(eu.root, 'clustermesh'), ownName: 'eu', log: silentLog() });
  assert.equal(await directory.drain('mars'), false);
  assert.equal(await directory.drain('us'), true);
  eu.plane.mirror.refresh();
  await eu.eventually('no services', async () => (await services()) === 0);
  const status = () => eu.plane.mirror.peers().find((peer) => peer.cluster === 'us');
  await eu.eventually('to be told', () => status()?.families['services']?.synced && status()?.ready);
  assert.deepEqual({ ip: await count('ip'), nodes: await count('nodes') }, before);
  assert.equal(status()?.families['services']?.count, 0);
  assert.ok((status()?.families['services']?.revision ?? 0) > 0, 'nodes can be compared with it');
  assert.match(status()?.error ?? '', /us is being drained/);

  await connect(eu, us);
  eu.plane.mirror.refresh();
  await eu.eventually('services again', async () => (await services()) > 1 && status()?.error === undefined);
});
