/** Certificates and CA replaced while replication goes on: real etcd, the gate, a writer, and readers that must miss nothing. */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Etcd } from '@clustermesh/kvstore';
import {
  createKeyAndCsr,
  ensureClusterPki,
  isIssuedBy,
  issueClient,
  issuePeerCertificate,
  loadCa,
  loadCaBundle,
  nextCa,
  rotateCa,
  rotationDecision,
  rotationPhase,
} from '@clustermesh/pki';
import { silentLog } from '@clustermesh/runtime';
import { startCluster, type TestCluster } from '../testing/control-plane.ts';
import { gateSchema } from './config.ts';
import { startGate } from './gate.ts';

const PREFIX = 'cilium/state/test/';

interface Guarded {
  readonly cluster: TestCluster;
  readonly pkiDir: string;
  readonly ensure: () => Promise<unknown>;
  /** A peer with files of its own; `renew` and `takeCas` are what it does when it is told. */
  peer(name: string): Promise<{ readonly etcd: Etcd; renew(): Promise<string>; takeCas(): void }>;
}

async function startGuarded(t: TestContext): Promise<Guarded> {
  const cluster = await startCluster(t, { name: 'eu', id: 1, config: { peerAccess: 'gate' } });
  await cluster.eventually('bootstrap', () => cluster.plane.bootstrap.ready());
  const pkiDir = join(cluster.root, 'pki');
  const pki = (file: string) => join(pkiDir, file);
  const abort = new AbortController();
  const gate = await startGate({
    config: gateSchema.parse({
      cluster: 'eu',
      listen: { host: '127.0.0.1', port: 0 },
      tls: { caFile: pki('ca.crt'), certFile: pki('server.crt'), keyFile: pki('server.key') },
      etcd: { port: cluster.server.port, caFile: pki('ca.crt'), certFile: pki('gate.crt'), keyFile: pki('gate.key') },
      usersFile: join(cluster.root, 'users.yaml'),
      crlFile: pki('crl.pem'),
      http: { port: 0 },
    }),
    log: silentLog(),
    signal: abort.signal,
  });
  t.after(async () => {
    abort.abort();
    await gate.ended;
  });
  return {
    cluster,
    pkiDir,
    ensure: () => ensureClusterPki({ dir: pkiDir, cluster: 'eu' }),
    async peer(name) {
      const dir = join(cluster.root, 'peers-of-test', name);
      const files = { caFile: join(dir, 'ca.crt'), certFile: join(dir, 'tls.crt'), keyFile: join(dir, 'tls.key') };
      mkdirSync(dir, { recursive: true });
      await cluster.plane.bootstrap.addPeer(name);
      const renew = async () => {
        const { keyPem, csrPem } = await createKeyAndCsr({ commonName: `remote-${name}` });
        const certPem = await issuePeerCertificate({ pkiDir, peer: name, csrPem });
        writeFileSync(files.keyFile, keyPem, { mode: 0o600 });
        writeFileSync(files.certFile, certPem);
        return certPem;
      };
      const takeCas = () => copyFileSync(pki('ca.crt'), files.caFile);
      await renew();
      takeCas();
      const etcd = cluster.server.client({ endpoints: [`https://127.0.0.1:${gate.port}`], ...files });
      return { etcd, renew, takeCas };
    },
  };
}

/** Follows by watch, resuming behind the last revision after every loss, as the reflector does. */
function follow(t: TestContext, etcd: Etcd) {
  const abort = new AbortController();
  const values: number[] = [];
  let resumes = 0;
  const done = (async () => {
    let next = 0;
    while (!abort.signal.aborted) {
      try {
        if (next === 0) next = (await etcd.getWithHeader(PREFIX)).header.revision + 1;
        await etcd.watch({
          prefix: PREFIX,
          startRevision: next,
          signal: abort.signal,
          onEvents(events) {
            for (const event of events) values.push(Number(event.value.toString()));
            next = events.at(-1)!.modRevision + 1;
          },
        });
      } catch {
        resumes++;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  })();
  t.after(async () => {
    abort.abort();
    await done;
  });
  return { values, resumes: () => resumes };
}

/** Numbers one after the other to one key; what etcd did not confirm is written again with the same number. */
function writer(etcd: Etcd) {
  let running = true;
  let written = 0;
  const done = (async () => {
    while (running) {
      const ok = await etcd.put(`${PREFIX}counter`, String(written + 1)).then(
        () => true,
        () => false,
      );
      if (ok) written++;
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  })();
  return {
    written: () => written,
    async stop() {
      running = false;
      await done;
      return written;
    },
  };
}

/** Every number in order; one may come twice when its first answer was lost. */
function assertNothingMissed(values: readonly number[], last: number): void {
  const distinct = [...new Set(values)];
  assert.deepEqual(
    distinct,
    Array.from(distinct, (_, index) => distinct[0]! + index),
    'a gap, or an event out of order',
  );
  assert.equal(distinct.at(-1), last);
}

test('F15 leaves are renewed under load: nobody is cut off and no event is missed', async (t) => {
  const { cluster, pkiDir, peer } = await startGuarded(t);
  const us = await peer('us');
  const seen = follow(t, us.etcd);
  const load = writer(cluster.admin);
  await cluster.eventually('events', () => seen.values.length > 20);
  const connection = us.etcd.connection;
  // All leaves at two thirds of their lifetime: server, gate, admin, local; and the peer's own.
  const { issued } = await ensureClusterPki({
    dir: pkiDir,
    cluster: 'eu',
    now: new Date(Date.now() + 800 * 86_400_000),
  });
  assert.ok(issued.length >= 4);
  await ensureClusterPki({ dir: pkiDir, cluster: 'eu' });
  await us.renew();
  const before = load.written();
  await cluster.eventually('more events', () => seen.values.length > before + 50);
  assert.equal(us.etcd.connection, connection, 'on the connection that was open');
  // And by a new one, with the new certificates on both sides.
  us.etcd.reconnect('test');
  const then = load.written();
  await cluster.eventually('events again', () => (seen.values.at(-1) ?? 0) > then + 50);
  const last = await load.stop();
  await cluster.eventually('the last', () => seen.values.at(-1) === last);
  assertNothingMissed(seen.values, last);
});

test('F16 the CA is rotated under load, with one restart of etcd: no event is missed, and the old CA is worth nothing after', async (t) => {
  const { cluster, pkiDir, ensure, peer } = await startGuarded(t);
  const [us, asia] = [await peer('us'), await peer('asia')];
  const follows = [follow(t, us.etcd), follow(t, asia.etcd)];
  const load = writer(cluster.admin);
  const flowing = async (what: string) => {
    const from = load.written();
    await cluster.eventually(what, () => follows.every(({ values }) => (values.at(-1) ?? 0) > from + 20));
  };
  await flowing('before');
  const old = loadCa(pkiDir);
  const rotate = (step: 'announce' | 'switch' | 'retire') => rotateCa({ pkiDir, cluster: 'eu', step });
  /** By trial: does etcd let in what the new CA has signed? */
  const isTrustedByEtcd = async () => {
    const pair = await issueClient({ ca: nextCa(pkiDir)!, commonName: 'admin-eu' });
    writeFileSync(join(cluster.root, 'trial.crt'), pair.certPem);
    writeFileSync(join(cluster.root, 'trial.key'), pair.keyPem, { mode: 0o600 });
    const trial = cluster.server.client({
      caFile: join(pkiDir, 'ca.crt'),
      certFile: join(cluster.root, 'trial.crt'),
      keyFile: join(cluster.root, 'trial.key'),
    });
    const isIn = await trial.get('cilium/state/x').then(
      () => true,
      () => false,
    );
    await trial.close();
    return isIn;
  };
  const decide = async (withoutBundle: string[], usersOfOldCa: string[]) =>
    rotationDecision({
      phase: rotationPhase(pkiDir),
      isTrustedByEtcd: rotationPhase(pkiDir) !== 'announced' || (await isTrustedByEtcd()),
      withoutBundle,
      usersOfOldCa,
      overlapEndsAtMs: 0,
      nowMs: Date.now(),
    });

  await rotate('announce');
  await ensure();
  assert.match(
    JSON.stringify(await decide(['us', 'asia'], [])),
    /restarted once/,
    'etcd keeps its CAs until a restart',
  );
  await cluster.server.restart();
  await flowing('after the restart of etcd');
  assert.match(JSON.stringify(await decide(['us', 'asia'], [])), /us, asia to take up/);
  us.takeCas();
  asia.takeCas();
  assert.deepEqual(await decide([], []), { next: 'switch' });
  await rotate('switch');
  await ensure();
  await flowing('after the switch');
  us.etcd.reconnect('test: with what is on disk now');
  await flowing('certificates of the old CA in the overlap');
  const renewed = await Promise.all([us.renew(), asia.renew()]);
  for (const pem of renewed) assert.ok(isIssuedBy(pem, loadCa(pkiDir).certPem) && !isIssuedBy(pem, old.certPem));
  await rotate('retire');
  await ensure();
  us.takeCas();
  asia.takeCas();
  assert.ok(!loadCaBundle(pkiDir).includes(old.certPem.trim()));
  await flowing('after the old CA has gone');

  const last = await load.stop();
  await cluster.eventually('the last', () => follows.every(({ values }) => values.at(-1) === last));
  for (const { values } of follows) assertNothingMissed(values, last);
  t.diagnostic(
    `${last} events written, none missed; resumed ${follows.map(({ resumes }) => resumes()).join(' and ')} times`,
  );

  // A certificate of the old CA, of a user that is still named, gets in nowhere.
  const stale = await issueClient({ ca: old, commonName: 'remote-us' });
  writeFileSync(join(cluster.root, 'stale.crt'), stale.certPem);
  writeFileSync(join(cluster.root, 'stale.key'), stale.keyPem, { mode: 0o600 });
  const stolen = cluster.server.client({
    endpoints: us.etcd.endpoints,
    caFile: join(pkiDir, 'ca.crt'),
    certFile: join(cluster.root, 'stale.crt'),
    keyFile: join(cluster.root, 'stale.key'),
  });
  await assert.rejects(stolen.get(`${PREFIX}counter`));
});

test('F16 a CA that is replaced without overlap: readers are refused with the exact cause, and come back with the new CA', async (t) => {
  const { cluster, pkiDir, ensure, peer } = await startGuarded(t);
  const us = await peer('us');
  await us.etcd.get(`${PREFIX}x`);
  for (const step of ['announce', 'switch', 'retire'] as const) await rotateCa({ pkiDir, cluster: 'eu', step });
  await ensure();
  await cluster.server.restart();
  await cluster.eventually('refused for the CA', async () => {
    us.etcd.reconnect('test');
    const reason = await us.etcd.get(`${PREFIX}x`).then(
      () => '',
      (error: Error) => error.message,
    );
    return /certificate|issuer|self.signed/i.test(reason);
  });
  us.takeCas();
  await us.renew();
  await cluster.eventually('in again', () =>
    us.etcd.get(`${PREFIX}x`).then(
      () => true,
      () => false,
    ),
  );
});
