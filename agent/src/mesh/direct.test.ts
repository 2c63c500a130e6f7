/** Remote clusters read from their own etcds: real ones, over TLS, with the rights that Cilium gives a remote reader and no more. */
import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  canaryKey,
  clusterConfigKey,
  encodeClusterConfig,
  FAMILIES,
  HEARTBEAT_KEY,
  ipKey,
  STATE_PREFIX,
  syncedPrefix,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { type CertificateAuthority, createCa, issueClient, issueServer } from '@clustermesh/pki';
import {
  eventually,
  LOCAL_BACKEND,
  type PeerFixture,
  startCluster,
  type TestNode,
  writePeer,
} from '../testing/cluster.ts';

const US: PeerFixture = { name: 'us', id: 2, pods: ['10.2.1.5', '10.2.1.6'] };
const ASIA: PeerFixture = { name: 'asia', id: 3, pods: ['10.3.1.5'] };

let directory: string;
let ca: CertificateAuthority;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'cm-direct-'));
  ca = await createCa({ cluster: 'us' });
  writeFileSync(join(directory, 'ca.crt'), ca.certPem);
  for (const [name, pair] of [
    ['server', await issueServer({ ca })],
    ['root', await issueClient({ ca, commonName: 'root' })],
    ['remote', await issueClient({ ca, commonName: 'remote' })],
  ] as const) {
    writeFileSync(join(directory, `${name}.crt`), pair.certPem);
    writeFileSync(join(directory, `${name}.key`), pair.keyPem, { mode: 0o600 });
  }
});
after(() => rmSync(directory, { recursive: true, force: true }));

const tlsOf = (name: string) => ({
  caFile: join(directory, 'ca.crt'),
  certFile: join(directory, `${name}.crt`),
  keyFile: join(directory, `${name}.key`),
});

interface RemoteEtcd extends AsyncDisposable {
  readonly server: EtcdServer;
  readonly etcd: Etcd;
  /** Users and roles of wire-contract §1.12; auth is on when it resolves. */
  secure(cluster: string): Promise<void>;
}

async function startRemoteEtcd(): Promise<RemoteEtcd> {
  const server = await startEtcd({ tls: tlsOf('server') });
  const etcd = server.client(tlsOf('root'));
  return {
    server,
    etcd,
    async secure(cluster) {
      const { auth } = etcd;
      await auth.addUser('root');
      await auth.addRole('root');
      await auth.grantRole('root', 'root');
      await auth.addUser('remote');
      await auth.addRole('remote');
      await auth.grantRole('remote', 'remote');
      await auth.grantPermission('remote', 'read', HEARTBEAT_KEY, 'prefix');
      await auth.grantPermission('remote', 'read', STATE_PREFIX, 'prefix');
      await auth.grantPermission('remote', 'read', clusterConfigKey(cluster), 'key');
      await auth.grantPermission('remote', 'read', syncedPrefix(cluster), 'prefix');
      await auth.enable();
    },
    [Symbol.asyncDispose]: () => server.close(),
  };
}

/** As Cilium mounts it: names are symlinks to `..data/<name>`, and `..data` is swapped. */
function configDir() {
  const dir = mkdtempSync(join(directory, 'clustermesh-'));
  let generation = 0;
  let names: string[] = [];
  return {
    dir,
    write(files: Readonly<Record<string, string>>) {
      const data = `..${++generation}`;
      mkdirSync(join(dir, data));
      for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, data, name), text);
      symlinkSync(data, join(dir, '..data_tmp'));
      renameSync(join(dir, '..data_tmp'), join(dir, '..data'));
      for (const name of Object.keys(files)) if (!names.includes(name)) symlinkSync(`..data/${name}`, join(dir, name));
      for (const name of names) if (!(name in files)) unlinkSync(join(dir, name));
      names = Object.keys(files);
    },
  };
}

const clusterFile = (port: number, cluster: string) => `
endpoints:
- https://${cluster}.mesh.cilium.io:${port}
trusted-ca-file: ${join(directory, 'ca.crt')}
cert-file: ${join(directory, 'remote.crt')}
key-file: ${join(directory, 'remote.key')}
cilium-host-aliases:
- hostname: ${cluster}.mesh.cilium.io
  ips: ["127.0.0.1"]
`;

const backendsAre = (node: TestNode, what: string, ...expected: string[]) =>
  eventually(what, () => JSON.stringify(node.backends()?.sort()) === JSON.stringify(expected.sort()));
const addressesOf = (node: TestNode, clusterId: number) =>
  [...node.kernel.ipcache.rows.values()].filter((row) => row.clusterId === clusterId).length;
const problem = (node: TestNode, pattern: RegExp) =>
  eventually(`a problem like ${pattern}`, () => node.agent.status().problems.find((text) => pattern.test(text)));

describe('a remote cluster read from its own etcd', { timeout: 120_000 }, () => {
  test('comes with its file, by symlink swap, and goes with it', async () => {
    await using cluster = await startCluster();
    await using remote = await startRemoteEtcd();
    await writePeer(remote.etcd, US, 'state');
    await remote.secure('us');
    await cluster.writeLocal();
    const files = configDir();
    const node = await cluster.node('n1', { configDir: files.dir });
    await backendsAre(node, 'the local backend alone', LOCAL_BACKEND);

    // A file named as this cluster is its own and is ignored; one without endpoints is no cluster.
    files.write({
      us: clusterFile(remote.server.port, 'us'),
      eu: clusterFile(1, 'eu'),
      'us.etcd-client.key': 'secret',
    });
    await backendsAre(node, 'the backends of us', LOCAL_BACKEND, ...US.pods);
    await eventually('everything to be applied', () => node.agent.status().applied);
    // Another family than the backends: it may come after them.
    await eventually(
      'the address with its tunnel',
      () => node.kernel.ipcache.rows.get('10.2.1.5/32')?.tunnelEndpoint === '172.31.2.11',
    );
    await eventually('us in the status', () =>
      FAMILIES.every((family) =>
        node.agent.status().families.some((each) => each.peer === 'us' && each.family === family && each.synced),
      ),
    );

    await remote.etcd.delete(ipKey('us', '10.2.1.6', 'state'));
    await eventually('a deleted address to go', () => !node.kernel.ipcache.rows.has('10.2.1.6/32'));

    files.write({});
    await backendsAre(node, 'the local backend alone again', LOCAL_BACKEND);
    await eventually('no address of us to be left', () => addressesOf(node, 2) === 0);
    assert.deepEqual(node.agent.status().problems, []);
  });

  test('gives nothing of a family before its canary, and is not believed without a valid config', async () => {
    await using cluster = await startCluster();
    await using remote = await startRemoteEtcd();
    await writePeer(remote.etcd, { ...US, without: ['ip'] }, 'state');
    await remote.etcd.put(
      clusterConfigKey('us'),
      encodeClusterConfig({ id: 1, capabilities: { syncedCanaries: true } }),
    );
    await cluster.writeLocal();
    const files = configDir();
    files.write({ us: clusterFile(remote.server.port, 'us') });
    const node = await cluster.node('n1', { configDir: files.dir });
    await problem(node, /cluster us has cluster id 1, which is this cluster's own id/);
    assert.equal(addressesOf(node, 2), 0);
    assert.match(node.agent.notReady() ?? '', /cluster us, read directly/);

    await remote.etcd.put(
      clusterConfigKey('us'),
      encodeClusterConfig({ id: 2, capabilities: { syncedCanaries: true } }),
    );
    await backendsAre(node, 'the backends of us', LOCAL_BACKEND, ...US.pods);
    assert.equal(node.kernel.ipcache.rows.has('10.2.1.5/32'), false);
    await remote.etcd.put(canaryKey('us', 'ip', 'state'), 'now');
    await eventually('addresses behind the canary', () => node.kernel.ipcache.rows.has('10.2.1.5/32'));
  });

  test('keeps its rows while it is away, rebuilt and behind another address, and over a restart of the agent', async () => {
    await using cluster = await startCluster();
    await using remote = await startRemoteEtcd();
    await using elsewhere = await startRemoteEtcd();
    await writePeer(remote.etcd, US, 'state');
    await cluster.writeLocal();
    const files = configDir();
    files.write({ us: clusterFile(remote.server.port, 'us') });
    const node = await cluster.node('n1', { configDir: files.dir });
    await eventually('everything to be applied', () => node.agent.status().applied);
    // From here on absence from the local etcd means something, but nothing about a cluster that is read elsewhere.
    await eventually('the local etcd to be marked as known', () => existsSync(join(node.stateDir, 'etcd-mark')));
    const held = addressesOf(node, 2);

    await remote.server.kill();
    await problem(node, /cluster us, read directly: not connected/);
    await node.kill();
    await node.start();
    await eventually('only us to be missing', () =>
      /^not heard yet: cluster us, read directly \([^,]*\)$/.test(node.agent.notReady() ?? ''),
    );
    await backendsAre(node, 'restored backends', LOCAL_BACKEND, ...US.pods);
    assert.equal(addressesOf(node, 2), held);

    files.write({ us: clusterFile(elsewhere.server.port, 'us') });
    // The other etcd is empty: it says nothing yet.
    await problem(node, /has not published its cluster config yet/);
    assert.equal(addressesOf(node, 2), held);
    await writePeer(elsewhere.etcd, { ...US, pods: ['10.2.1.5'] }, 'state');
    await backendsAre(node, 'what the other etcd has', LOCAL_BACKEND, '10.2.1.5');
    await eventually('the other address to go', () => !node.kernel.ipcache.rows.has('10.2.1.6/32'));
  });

  test('keeps the rows of a Cilium writer whose leases end with it, says so, and still believes a single delete', async () => {
    await using cluster = await startCluster();
    await using remote = await startRemoteEtcd();
    await cluster.writeLocal();
    await remote.etcd.put(HEARTBEAT_KEY, '2026-01-01T00:00:00Z');
    await writePeer(remote.etcd, US, 'state');
    const lease = await remote.etcd.lease({ ttlSeconds: 600 });
    const leased = Array.from({ length: 12 }, (_, n) => `10.2.1.${n + 100}`);
    for (const ip of leased)
      await remote.etcd.put(ipKey('us', ip, 'state'), `{"IP":"${ip}","HostIP":"172.31.2.11","ID":131400}`, {
        lease: lease.id,
      });
    const files = configDir();
    files.write({ us: clusterFile(remote.server.port, 'us') });
    const node = await cluster.node('n1', { configDir: files.dir });
    await eventually('everything to be applied', () => node.agent.status().applied);
    await remote.etcd.delete(ipKey('us', '10.2.1.100', 'state'));
    await eventually('the one that was deleted to go', () => !node.kernel.ipcache.rows.has('10.2.1.100/32'));
    await lease.close();
    await problem(node, /11 ip of us are kept though its etcd has them no more/);
    await remote.etcd.put(ipKey('us', '10.2.1.99', 'state'), '{"IP":"10.2.1.99","HostIP":"172.31.2.11","ID":131400}');
    await eventually('what came after', () => node.kernel.ipcache.rows.has('10.2.1.99/32'));
    for (const ip of leased.slice(1)) assert.ok(node.kernel.ipcache.rows.has(`${ip}/32`), ip);

    // Once its heartbeat's own lease has ended, a row is not believed to be gone even alone.
    const another = await remote.etcd.lease({ ttlSeconds: 600 });
    const put = (ip: string, options = {}) =>
      remote.etcd.put(ipKey('us', ip, 'state'), `{"IP":"${ip}","HostIP":"172.31.2.11","ID":131400}`, options);
    await put('10.2.1.120', { lease: another.id });
    await remote.etcd.delete(HEARTBEAT_KEY);
    await put('10.2.1.121');
    await eventually('what came after the heartbeat', () => node.kernel.ipcache.rows.has('10.2.1.121/32'));
    await another.close();
    await problem(node, /12 ip of us are kept though its etcd has them no more/);
    assert.ok(node.kernel.ipcache.rows.has('10.2.1.120/32'));
  });

  test('and others through the mirror: its own etcd wins, and no row flickers when the source changes', async () => {
    await using cluster = await startCluster();
    await using remote = await startRemoteEtcd();
    await cluster.writeLocal();
    await cluster.writePeer(US);
    await cluster.writePeer(ASIA);
    await writePeer(remote.etcd, { ...US, pods: ['10.2.1.5', '10.2.1.7'] }, 'state');
    const files = configDir();
    const node = await cluster.node('n1', { configDir: files.dir });
    await backendsAre(node, 'both through the mirror', LOCAL_BACKEND, ...US.pods, ...ASIA.pods);
    const removed: string[] = [];
    const { remove } = node.kernel.ipcache;
    node.kernel.ipcache.remove = (keys) => {
      removed.push(...keys);
      return remove(keys);
    };

    files.write({ us: clusterFile(remote.server.port, 'us') });
    await backendsAre(node, 'us from its own etcd', LOCAL_BACKEND, '10.2.1.5', '10.2.1.7', ...ASIA.pods);
    await eventually('the address that only the mirror had to go', () => removed.length === 1);
    assert.deepEqual(removed, ['10.2.1.6/32']);
    // What the mirror says of it does not count now, not even that it left.
    await cluster.etcd.put(ipKey('us', '10.2.1.9', 'cache'), '{"IP":"10.2.1.9","HostIP":"172.31.2.11","ID":131400}');
    await cluster.removePeerConfig('us');
    await cluster.writePeer({ ...US, pods: ['10.2.1.8'] });
    await backendsAre(node, 'us from its own etcd still', LOCAL_BACKEND, '10.2.1.5', '10.2.1.7', ...ASIA.pods);

    files.write({});
    await backendsAre(node, 'us from the mirror again', LOCAL_BACKEND, '10.2.1.8', ...ASIA.pods);
    await eventually('rows of the mirror', () => node.kernel.ipcache.rows.has('10.2.1.9/32'));
    assert.equal(removed.includes('172.31.2.11/32'), false);
    assert.equal(
      removed.some((key) => key.startsWith('10.3.')),
      false,
    );
  });

  test('under an id that another cluster has is refused, and the first goes on', async () => {
    await using cluster = await startCluster();
    await using remote = await startRemoteEtcd();
    await cluster.writeLocal();
    await cluster.writePeer(ASIA);
    await writePeer(remote.etcd, { ...US, id: 3 }, 'state');
    const files = configDir();
    const node = await cluster.node('n1', { configDir: files.dir });
    await backendsAre(node, 'asia', LOCAL_BACKEND, ...ASIA.pods);
    files.write({ us: clusterFile(remote.server.port, 'us'), bad: 'endpoints: [nowhere]' });
    await problem(node, /cluster us has cluster id 3, which cluster asia has already/);
    await problem(node, /cluster bad: its file is not usable: endpoints/);
    assert.deepEqual(node.backends()?.sort(), [LOCAL_BACKEND, ...ASIA.pods].sort());
  });
});
