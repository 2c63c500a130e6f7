/** F31 and F34: this cluster's own etcd fails, and peers cannot be reached at the start. What is served, what is said, how it ends. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect, shopManifest, startCluster, type TestCluster } from './testing/control-plane.ts';
import { etcdctl } from './testing/etcdctl.ts';

const peerOf = (cluster: TestCluster, name: string) =>
  cluster.plane.mirror.peers().find(({ cluster: peer }) => peer === name);
const copyOf = async (cluster: TestCluster, peer: string) =>
  (await cluster.admin.get(`cilium/cache/services/v1/${peer}/shop/web`))?.value.toString();
const problems = (cluster: TestCluster) => cluster.plane.local.problems().join('\n');

test('F31 an etcd without space: its readers go on, the status says why nothing new comes, deletes go through, all resumes', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1, etcdArgs: ['--quota-backend-bytes', String(8 << 20)] });
  const us = await startCluster(t, { name: 'us', id: 2 });
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  eu.manifest('other.yaml', shopManifest(['10.1.1.6']).replaceAll('web', 'other').replace('10.96.0.10', '10.96.0.11'));
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  await connect(eu, us);
  await connect(us, eu);
  for (const [reader, peer] of [
    [eu, 'us'],
    [us, 'eu'],
  ] as const)
    await reader.eventually(peer, async () => peerOf(reader, peer)?.ready && copyOf(reader, peer));

  const fill = async () => {
    for (let i = 0; ; i++) await eu.admin.put(`ballast/${i}`, Buffer.alloc(1 << 20, 'x'));
  };
  await assert.rejects(fill(), { code: 'exhausted' });
  eu.manifest('shop.yaml', shopManifest(['10.1.1.7']));
  us.manifest('shop.yaml', shopManifest(['10.2.1.7']));
  await eu.eventually('the reason of its own', () =>
    /\d+ keys wait to be written to etcd: .*database space exceeded/.test(problems(eu)),
  );
  await eu.eventually('the reason at the peer', () =>
    /\d+ of its objects wait to be written here: .*database space exceeded/.test(peerOf(eu, 'us')?.error ?? ''),
  );
  assert.match((await copyOf(us, 'eu')) ?? '', /10\.1\.1\.5/, 'the last state is served');
  assert.match((await copyOf(eu, 'us')) ?? '', /10\.2\.1\.5/, 'here as well');
  eu.manifest('other.yaml', undefined);
  await us.eventually(
    'a delete',
    async () => (await us.admin.get('cilium/cache/services/v1/eu/shop/other')) === undefined,
  );

  await eu.admin.deletePrefix('ballast/');
  await eu.admin.compact((await eu.admin.status()).revision);
  await etcdctl(eu, 'defrag');
  await etcdctl(eu, 'alarm', 'disarm');
  await us.eventually('what had waited', async () => (await copyOf(us, 'eu'))?.includes('10.1.1.7'));
  await eu.eventually('what had waited here', async () => (await copyOf(eu, 'us'))?.includes('10.2.1.7'));
  await eu.eventually('nothing to complain of', () => problems(eu) === '' && peerOf(eu, 'us')?.error === undefined);
});

test('F31 an etcd that is lost and comes back: peers keep what they have, the reason is said, changes of meanwhile arrive', async (t) => {
  const [eu, us] = await Promise.all([startCluster(t, { name: 'eu', id: 1 }), startCluster(t, { name: 'us', id: 2 })]);
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  await connect(us, eu);
  await us.eventually('eu', async () => peerOf(us, 'eu')?.ready && copyOf(us, 'eu'));
  await eu.server.kill();
  eu.manifest('shop.yaml', shopManifest(['10.1.1.6']));
  await us.eventually('the reason', () => /^not connected for \d+ s: /.test(peerOf(us, 'eu')?.error ?? ''));
  await eu.eventually('the reason at home', () => /keys wait to be written to etcd: .*ECONNREFUSED/.test(problems(eu)));
  assert.match((await copyOf(us, 'eu')) ?? '', /10\.1\.1\.5/);
  await eu.server.start();
  await us.eventually('the change', async () => (await copyOf(us, 'eu'))?.includes('10.1.1.6'));
  await us.eventually('nothing to complain of', () => peerOf(us, 'eu')?.ready && peerOf(us, 'eu')?.error === undefined);
});

test('F34 a start with peers that cannot be reached: the others are served, it is ready, and the status says which wait and why', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const [us, ap, sa] = await Promise.all(
    (['us', 'ap', 'sa'] as const).map((name, index) => startCluster(t, { name, id: index + 2 })),
  );
  assert.ok(us && ap && sa);
  for (const { manifest, id } of [eu, us, ap, sa]) manifest('shop.yaml', shopManifest([`10.${id}.1.5`]));
  await eu.stop();
  const hole = await ap.server.proxy();
  hole.blackhole();
  await connect(eu, us);
  await connect(eu, ap, { endpoint: hole.endpoint });
  await connect(eu, sa, { endpoint: 'https://127.0.0.1:1' });
  await eu.start();
  await eu.eventually('us', async () => peerOf(eu, 'us')?.ready && (await copyOf(eu, 'us')));
  await eu.eventually('its own export', () => eu.plane.exporter.synced().size === 6);
  await eu.eventually(
    'both reasons',
    () =>
      /^not connected for \d+ s: .*(no answer|nothing received)/.test(peerOf(eu, 'ap')?.error ?? '') &&
      /^not connected for \d+ s: .*ECONNREFUSED/.test(peerOf(eu, 'sa')?.error ?? ''),
  );
  const waiting = eu.plane.notReady();
  if (waiting !== undefined) assert.match(waiting, /^mirror: .*ap: .*; sa: /);
  await eu.eventually('to be ready without them', () => eu.plane.notReady() === undefined);
  assert.deepEqual([await copyOf(eu, 'ap'), await copyOf(eu, 'sa')], [undefined, undefined]);
  assert.equal(peerOf(eu, 'us')?.error, undefined, 'undisturbed');
  us.manifest('shop.yaml', shopManifest(['10.2.1.6']));
  await eu.eventually('a change of us', async () => (await copyOf(eu, 'us'))?.includes('10.2.1.6'));
  hole.heal();
  await eu.eventually('the one that is back', async () => peerOf(eu, 'ap')?.ready && (await copyOf(eu, 'ap')));
});
