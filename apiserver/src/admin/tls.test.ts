import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import {
  ADMIN_METHOD_ROLES,
  type AdminMethods,
  type AdminRole,
  adminRoleOf,
  type ClusterInfo,
  type MeshError,
} from '@clustermesh/contract';
import {
  certificateFacts,
  createCa,
  createInvite,
  createKeyAndCsr,
  ensureClusterPki,
  fetchPinnedCa,
  issueClient,
  issuePeerCertificate,
  type KeyAndCertificate,
  loadCa,
  revokePeerCertificates,
  rotateCa,
  SERVER_COMMON_NAME,
} from '@clustermesh/pki';
import {
  dialRpc,
  type Handlers,
  type RpcClient,
  type RpcServer,
  serveRpc,
  silentLog,
  waitFor,
} from '@clustermesh/runtime';
import { protocolsOf } from '../testing/tls-protocols.ts';
import { type Audit, type AuditEntry, openAudit } from './audit.ts';
import { authorized } from './authorize.ts';
import { listenForAdmin } from './tls.ts';

/** Their `peer` is a message, not a name. */
const isAboutMessage = (method: string) => ['Preflight', 'StartConnect', 'RedeemInvite'].includes(method);
const METHODS = Object.keys(ADMIN_METHOD_ROLES) as (keyof AdminMethods)[];

describe('the admin interface over TLS', () => {
  const root = mkdtempSync(join(tmpdir(), 'cm-admin-tls-'));
  const pkiDir = join(root, 'pki');
  const usersFile = join(root, 'users.yaml');
  const abort = new AbortController();
  const audited: AuditEntry[] = [];
  const audit: Audit = { write: (entry) => void audited.push(entry) };
  const clients: { close(): void }[] = [];
  let rpc: RpcServer;
  let network: Awaited<ReturnType<typeof listenForAdmin>>;

  before(async () => {
    await ensureClusterPki({ dir: pkiDir, cluster: 'eu' });
    writeFileSync(usersFile, 'users: [{ name: remote-us, role: remote }]');
    const answer = async () => ({ name: 'eu' }) as ClusterInfo;
    const handlers = Object.fromEntries(
      METHODS.map((method) => [
        method,
        method === 'WatchOperation'
          ? async function* () {
              yield {};
            }
          : answer,
      ]),
    ) as unknown as Handlers<AdminMethods>;
    rpc = await serveRpc<AdminMethods>('admin', join(root, 'admin.sock'), authorized(handlers, 'eu', audit));
    network = await listenForAdmin({
      ...{ rpc, pkiDir, usersFile, log: silentLog(), signal: abort.signal },
      listen: { host: '127.0.0.1', port: 0 },
    });
  });
  after(async () => {
    for (const client of clients) client.close();
    abort.abort();
    await network.close();
    await rpc.close();
    rmSync(root, { recursive: true, force: true });
  });

  const endpoint = () => `127.0.0.1:${network.port}`;
  const dial = (pair?: KeyAndCertificate): RpcClient<AdminMethods> => {
    const caPem = loadCa(pkiDir).certPem;
    const client = dialRpc<AdminMethods>('admin', endpoint(), { caPem, serverName: SERVER_COMMON_NAME, ...pair });
    clients.push(client);
    return client;
  };
  const issue = (commonName: string) => issueClient({ ca: loadCa(pkiDir), commonName });
  const peerCertificate = async (peer: string) => {
    const { keyPem, csrPem } = await createKeyAndCsr({ commonName: `remote-${peer}` });
    return { keyPem, certPem: await issuePeerCertificate({ pkiDir, peer, csrPem }) };
  };
  /** What becomes of a call of every method: ok, or the code of the refusal. */
  async function calls(client: RpcClient<AdminMethods>): Promise<Record<string, string>> {
    const outcome = async (method: keyof AdminMethods) => {
      try {
        if (method === 'WatchOperation') for await (const _ of client.WatchOperation({ id: 'x' })) break;
        else
          await (client[method] as (request: object) => Promise<unknown>)(isAboutMessage(method) ? {} : { peer: 'us' });
        return 'ok';
      } catch (error) {
        return (error as MeshError).code;
      }
    };
    return Object.fromEntries(await Promise.all(METHODS.map(async (method) => [method, await outcome(method)])));
  }
  const expected = (role: AdminRole, refusal: string) =>
    Object.fromEntries(METHODS.map((method) => [method, ADMIN_METHOD_ROLES[method].includes(role) ? 'ok' : refusal]));

  it('lets each role call what is granted to it, and nobody else anything', async () => {
    const of = async (pair?: KeyAndCertificate) => calls(dial(pair));
    assert.deepEqual(await of(await issue('operator-ann')), expected('operator', 'permission-denied'));
    assert.deepEqual(await of(await issue('admin-eu')), expected('operator', 'permission-denied'));
    assert.deepEqual(await of(await issue('viewer-bob')), expected('viewer', 'permission-denied'));
    assert.deepEqual(await of(await peerCertificate('us')), expected('peer', 'permission-denied'));
    for (const name of ['admin-us', 'node-n1', 'local-eu', 'gate-eu', 'operator-', 'nobody'])
      assert.deepEqual(await of(await issue(name)), expected('anyone', 'permission-denied'), name);
    assert.deepEqual(await of(), expected('anyone', 'unauthenticated'));
    const foreign = await issueClient({ ca: await createCa({ cluster: 'eu' }), commonName: 'operator-ann' });
    assert.deepEqual(await of(foreign), expected('anyone', 'unauthenticated'));
  });

  it('leaves nobody in particular but the two calls that an invitation pays for, and makes only peers out of remote-…', () => {
    assert.deepEqual(
      METHODS.filter((method) => ADMIN_METHOD_ROLES[method].includes('anyone')),
      ['RedeemInvite', 'CompleteInvite'],
    );
    assert.equal(adminRoleOf('remote', 'eu'), undefined);
    assert.equal(adminRoleOf('remote-us', 'eu'), 'peer');
  });

  it('keeps the unix socket as the way of its owner, who may do everything but what is a peer’s', async () => {
    const client = dialRpc<AdminMethods>('admin', `unix://${join(root, 'admin.sock')}`);
    clients.push(client);
    assert.deepEqual(await calls(client), expected('operator', 'permission-denied'));
  });

  it('cuts a peer off that is revoked, also on a connection that is open', async () => {
    const pair = await peerCertificate('us');
    const client = dial(pair);
    await client.GetCluster({});
    await revokePeerCertificates({ pkiDir, peer: 'us' });
    await waitFor(
      () =>
        client.GetCluster({}).then(
          () => false,
          () => true,
        ),
      { what: 'cut off', timeoutMs: 20_000 },
    );
    await assert.rejects(dial(pair).GetCluster({}));
    await dial(await peerCertificate('us')).GetCluster({});
  });

  it('speaks TLS 1.3, and 1.2 at the least', async () => {
    assert.deepEqual(await protocolsOf(network.port), ['TLSv1.3', 'TLSv1.2', 'refused']);
  });

  it('shows a joiner its CA by the pin of an invitation, and is refused with any other', async () => {
    const pin = certificateFacts(loadCa(pkiDir).certPem).fingerprint;
    assert.equal(certificateFacts(await fetchPinnedCa({ endpoint: endpoint(), pin })).fingerprint, pin);
    await assert.rejects(fetchPinnedCa({ endpoint: endpoint(), pin: 'ab'.repeat(32) }), {
      code: 'tls',
      message: /another CA .* than the invitation names/,
    });
    await assert.rejects(fetchPinnedCa({ endpoint: '127.0.0.1:1', pin }), { code: 'unreachable' });
    // The leaf itself is no CA, even with its own pin.
    const leafPin = certificateFacts(readFileSync(join(pkiDir, 'server.crt'), 'utf8')).fingerprint;
    await assert.rejects(fetchPinnedCa({ endpoint: endpoint(), pin: leafPin }), { code: 'tls' });
  });

  it('writes down who did what, and who was refused', async () => {
    audited.length = 0;
    const operator = dial(await issue('operator-ann'));
    await operator.StartDisconnect({ peer: 'us' });
    await operator.GetStatus({});
    await assert.rejects(dial(await issue('viewer-bob')).StartDisconnect({ peer: 'us' }));
    assert.deepEqual(
      audited.map(({ caller, role, method, subject, outcome }) => [
        caller.via === 'tls' && caller.user,
        ...[role, method, subject.peer, outcome],
      ]),
      [
        ['operator-ann', 'operator', 'StartDisconnect', 'us', 'done'],
        ['viewer-bob', 'viewer', 'StartDisconnect', 'us', 'refused'],
      ],
    );
  });

  it('cuts off whom a CA has signed that was withdrawn, also on a connection that is open', async () => {
    const client = dial(await issue('operator-ann'));
    await client.GetCluster({});
    for (const step of ['announce', 'switch', 'retire'] as const) await rotateCa({ pkiDir, cluster: 'eu', step });
    await ensureClusterPki({ dir: pkiDir, cluster: 'eu' });
    await waitFor(
      () =>
        client.GetCluster({}).then(
          () => false,
          () => true,
        ),
      { what: 'cut off', timeoutMs: 20_000 },
    );
    await dial(await issue('operator-ann')).GetCluster({});
  });
});

describe('the audit log', () => {
  it('is for its owner only, keeps the last few files, and holds no token', () => {
    const dir = mkdtempSync(join(tmpdir(), 'cm-audit-'));
    const file = join(dir, 'audit.log');
    const audit = openAudit({ file, maxBytes: 400, keep: 2 });
    const { token } = createInvite({
      ...{ own: { cluster: 'eu', clusterId: 1, caPin: 'ab'.repeat(32) }, endpoints: ['a:1'], nowMs: Date.now() },
    });
    for (let index = 0; index < 12; index++)
      audit.write({
        ...{ caller: { via: 'socket' }, role: 'operator', method: 'StartConnect', outcome: 'failed' },
        ...{ subject: { peer: `peer-${index}` }, error: `joining with ${token.reveal()} failed` },
      });
    const files = [`${file}.2`, `${file}.1`, file];
    const lines = files
      .flatMap((name) => readFileSync(name, 'utf8').trim().split('\n'))
      .map((line) => JSON.parse(line));
    assert.equal(lines.at(-1).subject.peer, 'peer-11');
    assert.ok(lines.length >= 4 && lines.length < 12, `${lines.length} of 12 kept`);
    for (const name of files) {
      assert.equal(statSync(name).mode & 0o777, 0o600);
      assert.ok(!readFileSync(name, 'utf8').includes(token.reveal().split('.')[2]!));
    }
    rmSync(dir, { recursive: true });
  });
});
