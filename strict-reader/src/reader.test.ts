/** The reader against a real etcd: data as it should be, and the same with one thing planted. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { readStrictly } from './reader.ts';
import { createReport, type ReportData } from './report.ts';
import { startEtcd, type TestEtcd } from './testing/etcd.ts';
import { bytesOf, CLUSTER, canary, config, FAMILIES, publish, reader, vectors } from './testing/source.ts';

const counts = (report: ReportData) =>
  Object.fromEntries(Object.entries(report.families).map(([name, family]) => [name, family.count]));
const expectedCounts = Object.fromEntries(
  FAMILIES.map((family) => [family, vectors.filter((vector) => vector.family === family).length]),
);
const found = (report: ReportData) => report.violations.map(({ rule, where, reason }) => `${rule} ${where}: ${reason}`);

/** Exactly these violations, in any order; patterns over "rule where: reason". */
function assertViolations(report: ReportData, ...patterns: RegExp[]): void {
  const lines = found(report);
  assert.equal(lines.length, patterns.length, lines.join('\n'));
  for (const pattern of patterns)
    assert.ok(
      lines.some((line) => pattern.test(line)),
      `${pattern}\n${lines.join('\n')}`,
    );
}

const now = () => new Date().toISOString();

async function eventually(what: string, condition: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 10_000; !condition(); await sleep(10))
    assert.ok(performance.now() < deadline, `${what} did not happen`);
}

/** Reads on until `end`; `live` is the report as it grows. */
function following(etcd: TestEtcd, change: Parameters<typeof reader>[1] = {}) {
  const stop = new AbortController();
  let onSynced = () => {};
  const synced = new Promise<void>((resolve) => {
    onSynced = resolve;
  });
  const options = reader(etcd, { followMs: 60_000, signal: stop.signal, onSynced, ...change });
  const report = createReport(options);
  const ended = readStrictly(options, report);
  return {
    synced,
    live: report.data,
    isSynced: () => Object.values(report.data.families).every((family) => family.synced),
    async end(): Promise<ReportData> {
      stop.abort();
      return ended;
    },
  };
}

for (const layout of ['state', 'cache'] as const) {
  test(`data as it should be is accepted to the last row in the ${layout} layout`, async (t) => {
    const etcd = await startEtcd(t);
    await publish(etcd, layout);
    const report = await readStrictly(reader(etcd, { layout, isUnchanging: true }));
    assertViolations(report);
    assert.deepEqual(counts(report), expectedCounts);
    assert.ok(Object.values(report.families).every((family) => family.synced && family.refused === 0));
    assert.equal(report.heartbeat.events, 1);
    assert.match(report.etcdClusterId ?? '', /^\d+$/);
  });
}

const identity = (id: number, cluster = CLUSTER): [string, string] => [
  `cilium/state/identities/v1/id/${id}`,
  `k8s:app=a;k8s:io.cilium.k8s.policy.cluster=${cluster};`,
];
const ipOf = (change: object) =>
  JSON.stringify({ IP: '10.244.9.9', HostIP: '172.18.0.3', ID: 199_472, Key: 0, Metadata: '', ...change });
const IP_KEY = 'cilium/state/ip/v1/default/10.244.9.9';
const changed = (family: string, change: object): [string, string] => {
  const vector = vectors.find((candidate) => candidate.family === family);
  return [vector?.state ?? '', JSON.stringify({ ...JSON.parse(vector?.value ?? ''), ...change })];
};

const planted: [string, [string, string | Buffer], RegExp[]][] = [
  ['an identity of another range', identity(262_145), [/^value .*262145: identity 262145 is outside 196608…262143/]],
  ['an identity of another cluster', identity(196_999, 'cluster4'), [/^value .*196999: cluster label is "cluster4"/]],
  ['an address with an identity of another range', [IP_KEY, ipOf({ ID: 70_000 })], [/^value .*ID 70000 is outside/]],
  [
    'an address under the key of another',
    [IP_KEY, ipOf({ IP: '10.244.9.8' })],
    [/^value .*10.244.9.8 under the key of/],
  ],
  [
    'an address spelled as Go would not spell it',
    ['cilium/state/ip/v1/default/FD00::1', ipOf({ IP: 'FD00::1' })],
    [/IP is "FD00::1", not in the form that Go writes/, /fd00::1 under the key of FD00::1/],
  ],
  ['a node of another cluster', changed('nodes', { Cluster: 'cluster4' }), [/^value .*node-1: Cluster is "cluster4"/]],
  ['a node with another cluster id', changed('nodes', { ClusterID: 4 }), [/^value .*ClusterID is 4, expected 3/]],
  ['a service with another cluster id', changed('services', { clusterID: 4 }), [/^value .*clusterID is 4, expected 3/]],
  [
    'a service under the key of another',
    [`cilium/state/services/v1/${CLUSTER}/foo/other`, changed('services', {})[1]],
    [/^value .*foo\/other: namespace\/name is "foo\/svc"/],
  ],
  ['a service that is not JSON', [changed('services', {})[0], '{'], [/^value .*foo\/svc: is not JSON/]],
  ['an export without a session affinity', changed('serviceexports', { sessionAffinity: '' }), [/sessionAffinity/]],
  [
    'a slice that is not compressed',
    [`cilium/state/endpointslices/v1/${CLUSTER}/foo/raw`, Buffer.from([10, 0])],
    [/^value .*foo\/raw: is no compressed slice/],
  ],
  [
    'a canary of the other layout',
    [canary('nodes', 'cache'), now()],
    [/^canary .*names no prefix of the state layout/],
  ],
  ['a canary that is no time', [canary('ip'), 'yes'], [/^value .*ip\/v1: value is "yes", not a time/]],
  ['a heartbeat that is no time', ['cilium/.heartbeat', 'alive'], [/^value cilium\/.heartbeat: value is "alive"/]],
];
for (const [what, [key, value], patterns] of planted) {
  test(`${what} is found, in a list and in a watch`, async (t) => {
    const etcd = await startEtcd(t);
    await publish(etcd);
    const follower = following(etcd);
    await follower.synced;
    const revision = await etcd.put(key, value);
    await eventually('found', () => follower.live.violations.length >= patterns.length);
    const watched = await follower.end();
    assertViolations(watched, ...patterns);
    assert.equal(watched.violations[0]?.revision, revision);
    assertViolations(await readStrictly(reader(etcd)), ...patterns);
  });
}

test('a canary before its keys is found, and one before its leftovers are gone', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  await etcd.put('cilium/state/identities/v1/id/196999', identity(196_999)[1]);
  await etcd.delete(vectors.find((vector) => vector.family === 'services')?.state ?? '');
  const report = await readStrictly(reader(etcd, { isUnchanging: true }));
  assertViolations(
    report,
    /^canary .*196999: was written after the canary of identities/,
    /^canary .*foo\/svc: was still there when the canary of services/,
  );
  assertViolations(await readStrictly(reader(etcd)));
});

test('a family without its canary is not begun, and said to be missing', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  await etcd.delete(canary('ip'));
  const report = await readStrictly(reader(etcd));
  assertViolations(report, /^timeout cilium\/state\/ip\/v1\/default\/: no canary within 500 ms/);
  assert.deepEqual([report.families['ip']?.pages, report.families['ip']?.synced], [0, false]);
});

test('a family is begun only when its canary is seen, and goes on when it goes away', async (t) => {
  const etcd = await startEtcd(t);
  await etcd.put('cilium/.heartbeat', now());
  await etcd.put(`cilium/cluster-config/${CLUSTER}`, config());
  // What a partial first list would show: gone again before the canary says that all is there.
  await etcd.put(...identity(262_145));
  const follower = following(etcd, { syncTimeoutMs: 30_000 });
  await eventually('the config', () => follower.live.config !== null);
  await etcd.delete('cilium/state/identities/v1/id/262145');
  for (const family of FAMILIES) await etcd.put(canary(family), now());
  await follower.synced;
  await etcd.delete(canary('nodes'));
  for (const vector of vectors) await etcd.put(vector.state, bytesOf(vector));
  await eventually('every row', () => isDeepStrictEqual(counts(follower.live), expectedCounts));
  const report = await follower.end();
  assertViolations(report);
  assert.deepEqual(counts(report), expectedCounts);
});

test('without canaries everything is read at once', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  for (const family of FAMILIES) await etcd.delete(canary(family));
  await etcd.put(`cilium/cluster-config/${CLUSTER}`, config({ syncedCanaries: undefined }));
  const report = await readStrictly(reader(etcd));
  assertViolations(report);
  assert.deepEqual(counts(report), expectedCounts);
});

test('a thousand rows come in pages of one revision, and changes meanwhile are not lost', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  for (let id = 0; id < 1000; id++) await etcd.put(...identity(197_000 + id));
  const follower = following(etcd);
  for (let id = 1000; id < 1100; id++) await etcd.put(...identity(197_000 + id));
  await follower.synced;
  await etcd.delete(identity(197_000)[0]);
  await eventually('the delete', () => follower.live.families['identities']?.deletes === 1);
  const report = await follower.end();
  assertViolations(report);
  assert.equal(report.families['identities']?.count, 1100);
  assert.ok((report.families['identities']?.pages ?? 0) >= 4);
});

test('a bad update keeps the good row, and a good one clears it', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  const follower = following(etcd);
  await follower.synced;
  await etcd.put(...changed('nodes', { Cluster: 'cluster4' }));
  await etcd.put(...changed('services', { clusterID: 4 }));
  await etcd.put(...changed('services', {}));
  await eventually('both', () => follower.live.families['services']?.upserts === 4);
  const report = await follower.end();
  assert.deepEqual(counts(report), expectedCounts);
  assert.deepEqual([report.families['nodes']?.refused, report.families['services']?.refused], [1, 0]);
  assert.equal(report.violations.length, 2);
});

test('after an interruption it lists again and finds what went meanwhile', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  const follower = following(etcd, { syncTimeoutMs: 20_000 });
  await follower.synced;
  await etcd.restart();
  await etcd.delete(vectors[0]?.state ?? '');
  // Beyond the delete: compacted at its very revision, etcd forgets it without telling a watch that begins there (etcd#19179).
  await etcd.compact(await etcd.put('cilium/.heartbeat', now()));
  const { families } = follower.live;
  const gone = () => {
    const family = families[vectors[0]?.family ?? ''];
    return (family?.deletes ?? 0) + (family?.synthesisedDeletes ?? 0);
  };
  await eventually('the delete', () => gone() === 1);
  const report = await follower.end();
  assertViolations(report);
  assert.ok(report.restarts.length > 0);
});

test('a rebuilt etcd is read anew, with its canaries; the same cluster id for it is a violation', async (t) => {
  const etcd = await startEtcd(t);
  for (const identity of ['new', 'same'] as const) {
    await publish(etcd);
    const follower = following(etcd, { syncTimeoutMs: 20_000, configTimeoutMs: 20_000 });
    await follower.synced;
    await etcd.wipe(identity);
    await eventually('the new session', () => !follower.isSynced());
    // Rows of before do not go until the canaries say that the new ones are complete.
    assert.deepEqual(counts(follower.live), expectedCounts);
    await publish(etcd);
    await eventually('synced again', follower.isSynced);
    const report = await follower.end();
    if (identity === 'new') assertViolations(report);
    else {
      assert.ok(report.violations.length > 0);
      for (const line of found(report)) assert.match(line, /^revision .*went backwards under the same cluster id/);
    }
    assert.deepEqual(counts(report), expectedCounts);
    const removed = Object.values(report.families).map((family) => family.deletes + family.synthesisedDeletes);
    assert.deepEqual(
      removed,
      removed.map(() => 0),
      'nothing was removed in between',
    );
  }
});

test('a config that is missing, refused, changed or gone is found', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  const key = `cilium/cluster-config/${CLUSTER}`;
  const read = async (value: string | undefined) => {
    if (value === undefined) await etcd.delete(key);
    else await etcd.put(key, value);
    return readStrictly(reader(etcd));
  };
  assertViolations(await read(undefined), /^config .*: is missing/);
  assertViolations(await read(config({ maxConnectedClusters: 511 })), /maxConnectedClusters is 511/);
  assertViolations(await read(config({ endpointSlicesExportMode: 'all' })), /unknown "all"/);
  assertViolations(await read(config({ cached: true })), /cached is true/);
  await etcd.put(key, config());
  const follower = following(etcd);
  await follower.synced;
  await etcd.put(key, config().replace('"id":3', '"id":4'));
  assertViolations(await follower.end(), /^config .*id changed from 3 to 4/);
});

test('a silent heartbeat is found, and a missing one as well', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  const silent = /^heartbeat cilium\/.heartbeat: silent for more than 200 ms/;
  assertViolations(await readStrictly(reader(etcd, { followMs: 400, heartbeatLimitMs: 200 })), silent);
  const beats = setInterval(() => void etcd.put('cilium/.heartbeat', now()), 50);
  t.after(() => clearInterval(beats));
  assertViolations(await readStrictly(reader(etcd, { followMs: 600, heartbeatLimitMs: 400 })));
  clearInterval(beats);
  await sleep(100);
  await etcd.delete('cilium/.heartbeat');
  const report = await readStrictly(reader(etcd, { followMs: 400, heartbeatLimitMs: 200 }));
  assertViolations(report, silent);
  assert.equal(report.heartbeat.events, 0);
});

async function command(t: TestContext, args: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const main = fileURLToPath(new URL('./main.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', 'tsx', main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill('SIGKILL'));
  let out = '';
  let err = '';
  child.stdout.on('data', (data) => (out += data));
  child.stderr.on('data', (data) => (err += data));
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { code, out, err };
}

test('the command prints what it found and ends with 0, 1 or 64', async (t) => {
  const etcd = await startEtcd(t);
  await publish(etcd);
  const args = ['--endpoint', etcd.endpoint, '--cluster', CLUSTER, '--layout', 'state', '--sync-timeout-ms', '2000'];
  const good = await command(t, [...args, '-o', 'json', '--unchanging']);
  assert.equal(good.code, 0, good.err);
  assert.deepEqual(counts(JSON.parse(good.out)), expectedCounts);
  await etcd.put(...identity(262_145));
  const bad = await command(t, args);
  assert.equal(bad.code, 1, bad.err);
  assert.match(bad.out, /VIOLATION \(value\) .*262145 at revision \d+: identity 262145 is outside/);
  assert.match(bad.out, /^1 violations$/m);
  const misused = await command(t, ['--endpoint', 'nowhere', '--cluster', CLUSTER, '--layout', 'state']);
  assert.equal(misused.code, 64);
  assert.match(misused.err, /--endpoint nowhere is no http/);
  assert.equal((await command(t, ['--what'])).code, 64);
  const alone = ['--endpoint', 'http://127.0.0.1:9', ...args.slice(2), '--connect-timeout-ms', '500'];
  const unreachable = await command(t, alone);
  assert.equal(unreachable.code, 1);
  assert.match(unreachable.out, /VIOLATION \(timeout\).*could not be listed within 500 ms: .*UNAVAILABLE/);
});
