import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ADMIN_METHOD_ROLES, type AdminMethods, MeshError } from '@clustermesh/contract';
import {
  certificatesIn,
  createKeyAndCsr,
  ensureClusterPki,
  isIssuedBy,
  isKeyOf,
  issuePeerCertificate,
  loadCa,
  loadCaBundle,
  rotateCa,
} from '@clustermesh/pki';
import {
  type Clock,
  createLog,
  type Handlers,
  type Log,
  serveRpc,
  silentLog,
  systemClock,
  waitFor,
} from '@clustermesh/runtime';
import { authorized } from './admin/authorize.ts';
import { readClusterInfo } from './admin/cluster-info.ts';
import { listenForAdmin } from './admin/tls.ts';
import { createPeerDirectory } from './operations/index.ts';
import { createPeerIssuer, createPeerRenewal } from './peer-renewal.ts';

const DAY_MS = 86_400_000;

test("a peer's new CA arrives before it signs, our certificate there follows it, and is renewed when due", async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'cm-peer-renewal-'));
  const pkiDir = join(root, 'pki');
  const usersFile = join(root, 'users.yaml');
  const letIn = (users: string) => writeFileSync(usersFile, `users: [${users}]`);
  letIn('{ name: remote-us, role: remote }');
  await ensureClusterPki({ dir: pkiDir, cluster: 'eu' });
  let offsetMs = 0;
  const clock: Clock = {
    ...systemClock,
    nowMs: () => performance.now() + offsetMs,
    wallMs: () => Date.now() + offsetMs,
  };

  // eu, as its apiserver shows itself on the network.
  const abort = new AbortController();
  const info = () =>
    readClusterInfo({
      own: { name: 'eu', id: 1, maxConnectedClusters: 255, podCidr: '', podCidrV6: '', serviceCidrs: [] },
      region: '',
      advertise: { endpoints: ['https://127.0.0.1:1'], hostAliases: [], admin: [] },
      pkiDir,
    });
  const issue = createPeerIssuer({ pkiDir, caPem: () => info().caPem, clock });
  const others = Object.keys(ADMIN_METHOD_ROLES).map((method) => [method, () => assert.fail(`${method} was called`)]);
  const handlers = {
    ...Object.fromEntries(others),
    GetCluster: async () => info(),
    RenewPeer: ({ csrPem }: { csrPem: string }) => issue('us', csrPem),
  } as unknown as Handlers<AdminMethods>;
  const rpc = await serveRpc<AdminMethods>(
    'admin',
    join(root, 'admin.sock'),
    authorized(handlers, 'eu', { write: () => {} }),
  );
  const network = await listenForAdmin({
    ...{ rpc, pkiDir, usersFile, log: silentLog(), signal: abort.signal },
    listen: { host: '127.0.0.1', port: 0 },
  });
  t.after(async () => {
    abort.abort();
    await network.close();
    await rpc.close();
    rmSync(root, { recursive: true });
  });

  // us, connected with it; the first address is one where nobody is.
  const warnings: string[] = [];
  const log = createLog('test');
  log.level = 'silent';
  log.child = (() => log) as unknown as Log['child'];
  log.warn = ((fields: { reason: string }) => warnings.push(fields.reason)) as Log['warn'];
  const directory = createPeerDirectory({ dir: join(root, 'clustermesh'), ownName: 'us', log });
  const { keyPem, csrPem } = await createKeyAndCsr({ commonName: 'remote-us' });
  await directory.write({
    name: 'eu',
    endpoints: ['https://127.0.0.1:1'],
    hostAliases: [],
    caPem: info().caPem,
    certPem: await issuePeerCertificate({ pkiDir, peer: 'us', csrPem }),
    keyPem,
    agreed: { id: 1, podCidr: '', podCidrV6: '' },
    adminEndpoints: ['127.0.0.1:1', `127.0.0.1:${network.port}`],
  });
  const [peer] = await directory.list();
  const held = () => ({
    cas: certificatesIn(readFileSync(peer!.caFile, 'utf8')).map((pem) => pem.trim()),
    cert: readFileSync(peer!.certFile, 'utf8'),
    config: readFileSync(join(root, 'clustermesh/eu'), 'utf8'),
  });
  const { run } = createPeerRenewal({ own: 'us', directory, log, clock });
  const trusted = () => certificatesIn(loadCaBundle(pkiDir)).map((pem) => pem.trim());
  const rotate = async (step: 'announce' | 'switch' | 'retire') => {
    await rotateCa({ pkiDir, cluster: 'eu', step });
    await ensureClusterPki({ dir: pkiDir, cluster: 'eu' });
    offsetMs += 60_000;
  };

  const first = held();
  assert.equal(await run(), undefined, 'nothing is due');
  assert.deepEqual(held(), first);

  await rotate('announce');
  assert.equal(await run(), 'eu: its CAs were taken up');
  assert.deepEqual(held().cas.toSorted(), [...trusted()].sort());
  assert.equal(held().cas.length, 2);
  assert.equal(held().cert, first.cert, 'the old CA signs still');
  assert.equal(await run(), undefined);

  await rotate('switch');
  assert.match((await run()) ?? '', /our certificate there was renewed \(another CA signs there now\)/);
  const switched = held();
  assert.ok(isIssuedBy(switched.cert, loadCa(pkiDir).certPem) && isKeyOf(switched.cert, keyPem));
  assert.equal(switched.config, first.config, 'open connections go on: nothing but certificates has changed');
  assert.equal(await run(), undefined);

  await rotate('retire');
  assert.equal(await run(), 'eu: its CAs were taken up');
  assert.deepEqual(held().cas, [loadCa(pkiDir).certPem.trim()]);

  offsetMs += 800 * DAY_MS;
  assert.match((await run()) ?? '', /renewed \(it was due\)/);
  assert.notEqual(held().cert, switched.cert);
  assert.deepEqual(warnings, []);
  // By this clock it is due for ever: whoever asks again and again is refused.
  assert.equal(await run(), undefined);
  assert.match(warnings.join('\n'), /renewing the certificate of us: it was renewed less than 30 s ago/);

  letIn('');
  const last = held();
  await waitFor(
    async () => {
      await run();
      return warnings.length > 1;
    },
    { what: 'the refusal of one that is let in no more', timeoutMs: 60_000 },
  );
  assert.deepEqual(held(), last);
});

test('a peer has its certificate signed for its own name only', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'cm-peer-issuer-'));
  t.after(() => rmSync(root, { recursive: true }));
  await ensureClusterPki({ dir: root, cluster: 'eu' });
  const issue = createPeerIssuer({ pkiDir: root, caPem: () => loadCaBundle(root) });
  const { csrPem } = await createKeyAndCsr({ commonName: 'remote-asia' });
  await assert.rejects(issue('us', csrPem), (error) => error instanceof MeshError && /remote-asia/.test(error.message));
});
