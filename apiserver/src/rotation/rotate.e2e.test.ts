/**
 * `clustermesh rotate ca` with real processes: the apiserver killed at each of its steps, etcd restarted by a supervisor that sees the
 * bundle change, a connected peer that takes part, and pods that come into being all the while.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import {
  type AdminMethods,
  endpointRecordKey,
  nodeRecordKey,
  nodeSyncedKey,
  type OperationInfo,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import {
  type CertificateAuthority,
  certificatesIn,
  isIssuedBy,
  issueClient,
  type KeyAndCertificate,
  loadCa,
  loadCaBundle,
} from '@clustermesh/pki';
import { dialRpc, type RpcClient, waitFor } from '@clustermesh/runtime';
import { runCli, startTestCluster, type TestCluster } from '../testing/apiserver-process.ts';

const TIMERS = { timers: { nodeGraceMs: 60_000, drainWaitMs: 200, peerRenewalMs: 500 } };
const TIMEOUT_MS = 120_000;
/** One before the command may have its answer, and one per step. */
const KILLS = [
  { step: '', line: 'operation started', afterMs: 0 },
  { step: 'announce-ca', line: 'step done', afterMs: 0 },
  { step: 'await-trust', line: 'step started', afterMs: 30 },
  { step: 'switch-ca', line: 'step started', afterMs: 12 },
  { step: 'await-renewal', line: 'step started', afterMs: 0 },
  { step: 'retire-ca', line: 'step started', afterMs: 5 },
] as const;

const eventually = <T>(what: string, condition: () => T | Promise<T>) =>
  waitFor(condition, { what, timeoutMs: TIMEOUT_MS, intervalMs: 200 });

const ends: (() => unknown)[] = [];
/** In the reverse order: what stands on something ends before it. */
const atEnd = (end: () => unknown) => ends.unshift(end);
after(async () => {
  for (const end of ends) await end();
});

async function startPair(): Promise<[TestCluster, TestCluster]> {
  const pair = await Promise.all([startTestCluster('eu', 1, TIMERS), startTestCluster('us', 2, TIMERS)]);
  atEnd(() => Promise.all(pair.map((cluster) => cluster.close())));
  await Promise.all(pair.map((cluster) => cluster.startApiserver()));
  const args = ['connect', '--context', pair[0].context, '--destination-context', pair[1].context, '--timeout', '90s'];
  const connected = await runCli(args);
  assert.equal(connected.code, 0, connected.out + connected.err);
  return pair;
}

const pkiOf = (cluster: TestCluster) => join(cluster.dir, 'pki');

function adminOf(cluster: TestCluster): Etcd {
  const file = (name: string) => join(pkiOf(cluster), name);
  const etcd = cluster.etcd.client({ caFile: file('ca.crt'), certFile: file('admin.crt'), keyFile: file('admin.key') });
  atEnd(() => etcd.close());
  return etcd;
}

const ipOf = (pod: number) => `10.1.${Math.floor(pod / 250)}.${2 + (pod % 250)}`;

/** Pods of eu that come into being one after the other, every few milliseconds, as its agent would tell of them. */
async function startPods(etcd: Etcd) {
  const record = { name: 'n1', internalIp: '172.31.1.10', gatewayIp: '10.1.0.1', podCidr: '10.1.0.0/16' };
  await etcd.put(nodeRecordKey('n1'), JSON.stringify(record));
  await etcd.put(nodeSyncedKey('n1'), new Date().toISOString());
  let isRunning = true;
  let count = 0;
  const labels = 'k8s:app=web;k8s:io.cilium.k8s.policy.cluster=eu;k8s:io.kubernetes.pod.namespace=shop;';
  const done = (async () => {
    while (isRunning) {
      const id = `web-${count}`;
      const pod = { id, namespace: 'shop', pod: id, labels, identity: 65_540, ipv4: ipOf(count) };
      // Not confirmed: written again, until it is.
      const isWritten = await etcd.put(endpointRecordKey('n1', id), JSON.stringify(pod)).then(
        () => true,
        () => false,
      );
      if (isWritten) count++;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  })();
  const stop = async () => {
    isRunning = false;
    await done;
    return count;
  };
  atEnd(stop);
  return { stop };
}

/** Restarts etcd whenever the bundle changes, as deploy/systemd does; held back until `release`. */
function supervise(cluster: TestCluster) {
  const bundle = () => readFileSync(join(pkiOf(cluster), 'ca.crt'), 'utf8');
  let seen = bundle();
  let isHeld = true;
  let isRunning = true;
  let restarts = 0;
  const done = (async () => {
    while (isRunning) {
      if (!isHeld && bundle() !== seen) {
        seen = bundle();
        await cluster.etcd.restart();
        restarts++;
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  })();
  atEnd(async () => {
    isRunning = false;
    await done;
  });
  return {
    release: () => {
      isHeld = false;
    },
    restarts: () => restarts,
  };
}

function adminInterface(cluster: TestCluster): RpcClient<AdminMethods> {
  const client = dialRpc<AdminMethods>('admin', `unix://${join(cluster.dir, 'apiserver.sock')}`);
  atEnd(() => client.close());
  return client;
}

async function rotationOf(admin: RpcClient<AdminMethods>): Promise<OperationInfo | undefined> {
  return (await admin.ListOperations({})).operations.find(({ kind }) => kind === 'rotate');
}

/** Whether etcd lets a client of this certificate in. */
async function isLetIn(cluster: TestCluster, pair: KeyAndCertificate): Promise<boolean> {
  const [certFile, keyFile] = [join(cluster.dir, 'trial.crt'), join(cluster.dir, 'trial.key')];
  writeFileSync(certFile, pair.certPem);
  writeFileSync(keyFile, pair.keyPem, { mode: 0o600 });
  const client = cluster.etcd.client({ caFile: join(pkiOf(cluster), 'ca.crt'), certFile, keyFile });
  try {
    return await client.get('x').then(
      () => true,
      () => false,
    );
  } finally {
    await client.close();
  }
}

test('F16 rotate ca: killed at each step it goes on, says what it waits for, and no pod of the other cluster is missed', async (t) => {
  const [eu, us] = await startPair();
  const admin = adminInterface(eu);
  const old: CertificateAuthority = loadCa(pkiOf(eu));
  const stale = await issueClient({ ca: old, commonName: 'admin-eu' });
  const pods = await startPods(adminOf(eu));
  const supervisor = supervise(eu);
  const mirrored = adminOf(us);
  const seen = async () =>
    new Set((await mirrored.range('cilium/cache/ip/v1/eu/')).kvs.map(({ key }) => key.split('/').at(-1)));
  await eventually('pods of eu at us', async () => (await seen()).size > 50);

  const killed: string[] = [];
  let killing: Promise<unknown> = Promise.resolve();
  const stop = eu.onLog((line) => {
    const kill = KILLS.find(
      ({ step, line: when }) =>
        line.includes(step === '' ? '"rotate-' : `"${step}"`) && line.includes(`"${when}"`) && !killed.includes(step),
    );
    if (kill === undefined) return;
    killed.push(kill.step);
    // In turn: what a process has logged before it died may ask for the next one already.
    killing = killing
      .then(() => new Promise((resolve) => setTimeout(resolve, kill.afterMs)))
      .then(() => eu.killApiserver())
      .then(() => eu.startApiserver());
  });
  const rotating = runCli(['rotate', 'ca', '--context', eu.context, '--overlap', '1s']);
  await eventually('it to say that it waits for etcd', async () =>
    (await rotationOf(admin))?.steps.some(
      ({ step, message }) => step === 'await-trust' && /waiting for etcd to be restarted once/.test(message),
    ),
  );
  assert.equal(certificatesIn(loadCaBundle(pkiOf(eu))).length, 2);
  supervisor.release();
  const rotated = await rotating;
  await killing;
  stop();
  assert.equal(rotated.code, 0, rotated.out + rotated.err);
  const { operations } = await admin.ListOperations({});
  assert.equal(operations.filter(({ kind }) => kind === 'rotate').length, 1, 'its start was repeated, and started one');
  assert.deepEqual(
    killed,
    KILLS.map(({ step }) => step),
  );
  for (const { step } of KILLS) assert.match(rotated.out, new RegExp(step), rotated.out);
  await eventually('the operation to be done', async () => (await rotationOf(admin))?.state === 'done');

  const now = loadCa(pkiOf(eu));
  assert.notEqual(now.certPem, old.certPem);
  assert.equal(loadCaBundle(pkiOf(eu)).trim(), now.certPem.trim());
  assert.ok(!existsSync(join(pkiOf(eu), 'ca-next.key')));
  const heldByUs = (file: string) => readFileSync(join(us.dir, 'clustermesh', file), 'utf8');
  assert.ok(isIssuedBy(heldByUs('eu.etcd-client.crt'), now.certPem), 'us shows a certificate of the new CA');
  await eventually(
    'us to hold the new CA alone',
    () => heldByUs('eu.etcd-client-ca.crt').trim() === now.certPem.trim(),
  );
  await eventually('etcd to be restarted for the last time', async () => supervisor.restarts() >= 2);
  await eventually('the old CA to be worth nothing', async () => !(await isLetIn(eu, stale)));
  await eventually('us to be connected', async () =>
    (await adminInterface(us).GetStatus({})).peers.every((peer) => peer.ready && peer.connected),
  );

  const count = await pods.stop();
  const expected = Array.from({ length: count }, (_, pod) => ipOf(pod));
  let missing: string[] = expected;
  await eventually('every pod at us', async () => {
    const there = await seen();
    missing = expected.filter((ip) => !there.has(ip));
    return missing.length === 0;
  }).catch((error: Error) => assert.fail(`${error.message}: of ${count} ${missing.slice(0, 10).join(', ')}`));
  t.diagnostic(rotated.out);
  t.diagnostic(`${count} pods, each arrived; ${killed.length} kills, ${supervisor.restarts()} restarts of etcd`);

  // Killed between a key and its certificate: the next one mends that before it logs in anywhere.
  await eu.killApiserver();
  writeFileSync(join(pkiOf(eu), 'admin.key'), stale.keyPem);
  await eu.startApiserver();
  await eventually('etcd to be connected', async () => (await admin.GetStatus({})).etcdConnected);
});
