/** Several control planes on one etcd: one writes. And what nobody else may change. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { connect, disconnect, shopManifest, startCluster, type TestCluster } from './testing/control-plane.ts';

const SERVICE = 'cilium/state/services/v1/eu/shop/web';
const CONFIG = 'cilium/cluster-config/eu';

interface Seen {
  readonly value: string;
  readonly revision: number;
}

/** Every version of a key from now on, as etcd had them. */
async function historyOf(t: TestContext, cluster: TestCluster, key: string): Promise<Seen[]> {
  const seen: Seen[] = [];
  const stop = new AbortController();
  t.after(() => stop.abort());
  const { header } = await cluster.admin.getWithHeader(key);
  const onEvents = (events: readonly { type: string; value: Buffer; modRevision: number }[]) => {
    for (const { type, value, modRevision } of events)
      seen.push({ value: type === 'delete' ? '' : value.toString(), revision: modRevision });
  };
  void cluster.admin
    .watch({ prefix: key, exact: true, startRevision: header.revision + 1, signal: stop.signal, onEvents })
    .catch(() => {});
  return seen;
}

/** Which of two replicas wrote a version: they were given different backends. */
const writers = (history: readonly Seen[]) =>
  history.flatMap(({ value }) => (value.includes('10.1.1.5') ? ['a'] : value.includes('10.1.1.6') ? ['b'] : []));
const switches = (names: readonly string[]) => names.filter((name, index) => index > 0 && name !== names[index - 1]);

/** Replica `a` reaches its etcd through a proxy, `b` directly. `a` leads. */
async function replicas(t: TestContext) {
  const b = await startCluster(t, { name: 'eu', id: 1 });
  await b.stop();
  const proxy = await b.server.proxy();
  const a = await startCluster(t, { name: 'eu', id: 1, replicaOf: b, endpoint: proxy.endpoint });
  const history = await historyOf(t, b, SERVICE);
  a.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  b.manifest('shop.yaml', shopManifest(['10.1.1.6']));
  await a.eventually('the first leader', () => a.plane.isLeading());
  await a.eventually('its export', () => writers(history).includes('a'));
  await b.start();
  await b.eventually('the other stands by', () => b.plane.leader() !== undefined && b.plane.manifests.snapshot());
  return { a, b, proxy, history };
}

test('F44 of two control planes on one etcd one writes; the other knows who, is ready, and shows its peers', async (t) => {
  const { a, b, history } = await replicas(t);
  const us = await startCluster(t, { name: 'us', id: 2 });
  await connect(a, us);
  await a.eventually('the peer', () => a.plane.mirror.peers()[0]?.ready);
  await b.eventually('the peer, told by the leader', () => b.plane.mirror.peers()[0]?.cluster === 'us');
  assert.deepEqual([a.plane.isLeading(), b.plane.isLeading()], [true, false]);
  assert.equal(b.plane.leader(), a.plane.leader());
  assert.equal(b.plane.notReady(), undefined, 'it is as ready as it can be');
  a.manifest('shop.yaml', shopManifest(['10.1.1.5', '10.1.1.7']));
  await a.eventually('a change by the leader', () => history.some(({ value }) => value.includes('10.1.1.7')));
  assert.deepEqual([...new Set(writers(history))], ['a']);
  // The peer directories differ here: what the leader has mirrored, a replica without that peer must not drain.
  assert.ok(await b.admin.get('cilium/cluster-config/us'));
  disconnect(a, 'us');
});

test('F44 a leader that is cut off is followed; back again it writes nothing, and stands by', async (t) => {
  const { a, b, proxy, history } = await replicas(t);
  proxy.blackhole();
  await b.eventually('the second leader', () => b.plane.isLeading());
  await b.eventually('its export', () => writers(history).includes('b'));
  assert.equal(a.plane.isLeading(), true, 'cut off, it cannot know');
  a.manifest('shop.yaml', shopManifest(['10.1.1.5', '10.1.1.7']));
  proxy.heal();
  await a.eventually('the first one stands by', () => !a.plane.isLeading() && a.plane.leader() === b.plane.leader());
  b.manifest('shop.yaml', shopManifest(['10.1.1.6', '10.1.1.8']));
  await b.eventually('a change by the second leader', () => history.at(-1)?.value.includes('10.1.1.8'));
  assert.deepEqual(switches(writers(history)), ['b'], 'one change of hands, and never back');
  assert.ok(
    history.every(({ value }) => value !== ''),
    'the service was never gone',
  );

  await b.stop();
  await a.eventually('the first one leads again', () => a.plane.isLeading());
  await a.eventually('its export', () => history.at(-1)?.value.includes('10.1.1.7'));
  assert.deepEqual(switches(writers(history)), ['b', 'a']);
});

test('F44 a leader that ends hands over at once, and one that starts again succeeds itself', async (t) => {
  const { a, b, history } = await replicas(t);
  const alone = await startCluster(t, { name: 'ap', id: 3, config: { election: { ttlSeconds: 60 } } });
  await alone.eventually('it leads', () => alone.plane.isLeading());
  await alone.stop();
  await alone.start();
  await alone.eventually('it leads again', () => alone.plane.isLeading());
  await a.stop();
  await b.eventually('the second one leads', () => b.plane.isLeading());
  await b.eventually('its export', () => writers(history).includes('b'));
});

test('F44 services keep their cluster addresses under another leader, whatever that one remembers', async (t) => {
  const auto = shopManifest(['10.1.1.5']).replace('clusterIP: 10.96.0.10, ', '');
  const b = await startCluster(t, { name: 'eu', id: 1 });
  await b.stop();
  const a = await startCluster(t, { name: 'eu', id: 1, replicaOf: b });
  a.manifest('shop.yaml', auto);
  const LOCAL = 'clustermesh/local/services/shop/web';
  const addressOf = (value: string) => JSON.parse(value).clusterIPs[0] as string;
  const first = await a.eventually('its address', async () => (await b.admin.get(LOCAL))?.value.toString());
  const history = await historyOf(t, b, LOCAL);
  // An allocation of its own, and another service that was given what the leader has published.
  const remembered = { 'shop/web': '10.96.200.1', 'shop/aaa': addressOf(first) };
  mkdirSync(join(b.root, 'state'), { recursive: true });
  const file = join(b.root, 'state', 'cluster-ips.json');
  writeFileSync(file, JSON.stringify({ version: 1, assigned: remembered }));
  b.manifest('shop.yaml', `${auto}---\n${auto.replaceAll('name: web', 'name: aaa')}`);
  await b.start();
  await b.eventually('it stands by', () => b.plane.leader() !== undefined && b.plane.manifests.snapshot());
  await a.stop();
  await b.eventually('it leads', () => b.plane.isLeading());
  const other = await b.eventually('its own service', async () =>
    (await b.admin.get('clustermesh/local/services/shop/aaa'))?.value.toString(),
  );
  await b.eventually('its export', () => b.plane.exporter.synced().size === 6);
  assert.deepEqual(
    history.map(({ value }) => (value === '' ? 'gone' : addressOf(value))).filter((ip) => ip !== addressOf(first)),
    [],
    'nobody has seen another address',
  );
  assert.notEqual(addressOf(other), addressOf(first));
  const { assigned } = JSON.parse(readFileSync(file, 'utf8'));
  assert.deepEqual(assigned, { 'shop/aaa': addressOf(other), 'shop/web': addressOf(first) }, 'and it remembers that');
});

test('a cluster config that somebody else alters or deletes is put right at once, and the status says so', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const value = await eu.eventually('the config', async () => (await eu.admin.get(CONFIG))?.value.toString());
  await eu.eventually('the first export', () => eu.plane.exporter.synced().size === 6);
  const history = await historyOf(t, eu, CONFIG);
  const startedAt = performance.now();
  await eu.admin.put(CONFIG, '{"id":9,"capabilities":{}}');
  await eu.eventually('the repair', () => history.at(-1)?.value === value && history.length === 2);
  await eu.admin.delete(CONFIG);
  await eu.eventually('the second repair', () => history.at(-1)?.value === value && history.length === 4);
  assert.ok(performance.now() - startedAt < 5_000, 'long before any periodic look');
  assert.equal(eu.plane.exporter.configRepairs(), 2);
  assert.match(
    eu.plane.local.problems().join(),
    /cilium\/cluster-config\/eu was changed by somebody else 2 times, and put right each time/,
  );
  await eu.server.wipe();
  await eu.eventually('it is back', async () => (await eu.admin.get(CONFIG))?.value.toString() === value);
  assert.equal(eu.plane.exporter.configRepairs(), 2, 'that a new etcd is empty is nobody’s doing');
});

for (const mode of ['services', 'endpointslices-only'] as const)
  test(`export mode ${mode}: the other form and its canary go, the config says which`, async (t) => {
    const eu = await startCluster(t, { name: 'eu', id: 1 });
    eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
    const published = async () =>
      Object.keys({ ...(await eu.dump('cilium/state/')), ...(await eu.dump('cilium/synced/')) }).filter((key) =>
        /services|endpointslices/.test(key),
      );
    await eu.eventually('both', async () => (await published()).length === 4);
    await eu.stop();
    const other = await startCluster(t, {
      name: 'eu',
      id: 1,
      replicaOf: eu,
      config: { export: { endpointSlices: mode } },
    });
    other.manifest('shop.yaml', shopManifest(['10.1.1.5']));
    const family = mode === 'services' ? 'services' : 'endpointslices';
    await other.eventually('one of them', async () => (await published()).length === 2);
    await other.eventually('readiness', () => other.plane.notReady() === undefined);
    assert.deepEqual(await published(), [
      `cilium/state/${family}/v1/eu/shop/web${mode === 'services' ? '' : '-1'}`,
      `cilium/synced/eu/cilium/state/${family}/v1`,
    ]);
    const said = JSON.parse((await eu.admin.get(CONFIG))?.value.toString() ?? '').capabilities;
    assert.equal(said.endpointSlicesExportMode, mode === 'services' ? undefined : mode);
    const peer = await startCluster(t, { name: 'us', id: 2 });
    await connect(peer, other);
    await peer.eventually('it is mirrored', () => peer.plane.mirror.peers()[0]?.ready);
    assert.deepEqual(
      Object.keys(await peer.dump('cilium/cache/')).filter((key) => /services|slices/.test(key)).length,
      1,
    );
  });

test('services that are left out from now on stay, and stay right, while readers of this etcd look for what replaces them', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  await eu.eventually('the service', () => eu.admin.get(SERVICE));
  await eu.stop();
  const config = { export: { endpointSlices: 'endpointslices-only' } };
  const other = await startCluster(t, {
    ...{ name: 'eu', id: 1, replicaOf: eu, config },
    timers: { withdrawWaitMs: 3_600_000 },
  });
  other.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  await other.eventually('the word of it', async () =>
    (await eu.admin.get(CONFIG))?.value.toString().includes('endpointslices-only'),
  );
  await other.eventually('the slices', () => other.plane.exporter.synced().has('endpointslices'));
  other.manifest('shop.yaml', shopManifest(['10.1.1.6']));
  await other.eventually('the change of the service', async () =>
    (await eu.admin.get(SERVICE))?.value.toString().includes('10.1.1.6'),
  );
  assert.equal(other.plane.notReady(), undefined);
});

test('a peer that offers a mirror of itself is refused: nothing is learnt at second hand', async (t) => {
  const [eu, us] = await Promise.all([startCluster(t, { name: 'eu', id: 1 }), startCluster(t, { name: 'us', id: 2 })]);
  await us.eventually('the first export', () => us.plane.exporter.synced().size === 6);
  await connect(eu, us);
  await eu.eventually('us', () => eu.plane.mirror.peers()[0]?.ready);
  await us.stop();
  await eu.stop();
  await us.admin.put('cilium/cluster-config/us', '{"id":2,"capabilities":{"cached":true,"syncedCanaries":true}}');
  await eu.start();
  await eu.eventually('the refusal', () =>
    /cluster us offers a mirror of itself \(capability "cached"\) in place of its own state; a mirror is never mirrored onward/.test(
      eu.plane.mirror.peers()[0]?.error ?? '',
    ),
  );
});
