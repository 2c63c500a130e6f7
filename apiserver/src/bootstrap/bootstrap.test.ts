import assert from 'node:assert/strict';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { BOOTSTRAP_KEY, MeshError } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { silentLog } from '@clustermesh/runtime';
import { shopManifest, startCluster } from '../testing/control-plane.ts';
import { readAuth, startBootstrap } from './bootstrap.ts';
import { desiredAuth, planAuth } from './plan.ts';

type Outcome = 'yes' | 'no';

/** 'no' only for etcd's own refusal: an unreachable etcd is no proof of anything. */
async function can(attempt: () => Promise<unknown>): Promise<Outcome> {
  try {
    await attempt();
    return 'yes';
  } catch (error) {
    assert.ok(error instanceof MeshError, String(error));
    // A user that etcd does not know is refused in other words.
    const isRefused =
      ['etcd-permission', 'etcd-auth'].includes(error.code) || /user name not found/.test(error.message);
    assert.ok(isRefused, `${error.code}: ${error.message}`);
    return 'no';
  }
}

async function rights(etcd: Etcd, cluster: string): Promise<Record<string, Outcome>> {
  const list = (prefix: string) => can(() => etcd.range(prefix));
  return {
    'list cilium/.heartbeat': await list('cilium/.heartbeat'),
    'list cilium/state/': await list('cilium/state/'),
    'list cilium/cache/': await list('cilium/cache/'),
    'get own cluster-config': await can(() => etcd.get(`cilium/cluster-config/${cluster}`)),
    'list cilium/cluster-config/': await list('cilium/cluster-config/'),
    'list own synced': await list(`cilium/synced/${cluster}/`),
    'list cilium/synced/': await list('cilium/synced/'),
    'list clustermesh/': await list('clustermesh/'),
    'list everything': await list('c'),
    'write cilium/state/': await can(() => etcd.put('cilium/state/x', 'x')),
    'write cilium/cache/': await can(() => etcd.put('cilium/cache/x', 'x')),
    'write own node': await can(() => etcd.put('clustermesh/nodes/n1/x', 'x')),
    'write other node': await can(() => etcd.put('clustermesh/nodes/n2/x', 'x')),
    'write own agent': await can(() => etcd.put('clustermesh/agents/n1', 'x')),
    'write other agent': await can(() => etcd.put('clustermesh/agents/n11', 'x')),
    'write identities': await can(() => etcd.put('clustermesh/identities/x', 'x')),
    'write clustermesh/local/': await can(() => etcd.put('clustermesh/local/x', 'x')),
    'change users': await can(() => etcd.auth.addUser('intruder')),
  };
}

const nothing: Record<string, Outcome> = Object.fromEntries(
  [
    ...[
      'list cilium/.heartbeat',
      'list cilium/state/',
      'list cilium/cache/',
      'get own cluster-config',
      'list cilium/cluster-config/',
    ],
    ...[
      'list own synced',
      'list cilium/synced/',
      'list clustermesh/',
      'list everything',
      'write cilium/state/',
      'write cilium/cache/',
    ],
    ...[
      'write own node',
      'write other node',
      'write own agent',
      'write other agent',
      'write identities',
      'write clustermesh/local/',
      'change users',
    ],
  ].map((right) => [right, 'no']),
);
const only = (...yes: string[]) => ({ ...nothing, ...Object.fromEntries(yes.map((right) => [right, 'yes'])) });

test('each certificate may do exactly what the contract grants, and everybody else is refused', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1, nodes: ['n1', 'n2'] });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  await eu.plane.bootstrap.addPeer('us');
  const asks = async (user: string) => rights(await eu.clientAs(user), 'eu');

  const remote = only('list cilium/.heartbeat', 'list cilium/state/', 'get own cluster-config', 'list own synced');
  assert.deepEqual(await asks('remote'), remote);
  assert.deepEqual(await asks('remote-us'), remote);
  const local = [
    'list cilium/cache/',
    'get own cluster-config',
    'list cilium/cluster-config/',
    'list own synced',
    'list cilium/synced/',
  ];
  assert.deepEqual(await asks('local-eu'), only('list cilium/.heartbeat', ...local));
  assert.deepEqual(
    await asks('node-n1'),
    only('list clustermesh/', ...local, 'write own node', 'write own agent', 'write identities'),
  );
  assert.deepEqual(await asks('remote-stranger'), nothing);
  assert.deepEqual(await asks('node-n3'), nothing);
  const all = await asks('admin-eu');
  assert.deepEqual(new Set(Object.values(all)), new Set(['yes']));

  // Without a certificate, or with one of another CA, there is not even a connection.
  const other = await startCluster(t, { name: 'us', id: 2 });
  const files = {
    certFile: join(other.root, 'pki', 'admin.crt'),
    keyFile: join(other.root, 'pki', 'admin.key'),
    caFile: join(eu.root, 'pki', 'ca.crt'),
  };
  await assert.rejects(eu.server.client(files).get('cilium/state/x', { timeoutMs: 2000 }));
  await assert.rejects(eu.server.client({ caFile: files.caFile }).get('cilium/state/x', { timeoutMs: 2000 }));
});

test('nobody can log in by password: not even as root', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  const { status, stderr } = await etcdctlWithPassword(eu.root, eu.server.endpoint);
  assert.notEqual(status, 0);
  assert.match(stderr, /authentication failed|no password/);
});

async function etcdctlWithPassword(root: string, endpoint: string): Promise<{ status: number | null; stderr: string }> {
  const { spawnSync } = await import('node:child_process');
  const pki = join(root, 'pki');
  const tls = ['--cacert', join(pki, 'ca.crt'), '--cert', join(pki, 'local.crt'), '--key', join(pki, 'local.key')];
  const { status, stderr } = spawnSync(
    'etcdctl',
    ['--endpoints', endpoint, ...tls, '--user', 'root', '--password', 'guess', 'get', 'x'],
    {
      env: { ...process.env, ETCDCTL_API: '3' },
      encoding: 'utf8',
      timeout: 10_000,
    },
  );
  return { status, stderr };
}

test('a second bootstrap changes nothing', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1, nodes: ['n1'] });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  const desired = desiredAuth({ cluster: 'eu', nodes: ['n1'], remoteUsers: [] });
  assert.deepEqual(planAuth(desired, await readAuth(eu.admin)), []);
});

test('a wiped etcd is bootstrapped again before anything is written to it, and everything comes back', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1, nodes: ['n1'] });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  await eu.plane.bootstrap.addPeer('us');
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  await eu.publishNode('n1', 1, [{ id: 'a', ipv4: '10.1.1.5', identity: 65_801 }]);
  const state = async () => Object.keys(await eu.dump('cilium/')).filter((key) => !key.includes('.heartbeat'));
  const canaries = 6;
  const before = await eu.eventually('the state', async () => {
    const keys = await state();
    return keys.length === 5 + canaries + 1 ? keys : undefined;
  });
  await eu.server.wipe();
  await eu.eventually(
    'users',
    async () => (await eu.admin.auth.isEnabled()) && (await eu.admin.get(BOOTSTRAP_KEY)) !== undefined,
  );
  assert.deepEqual(
    await eu.eventually('the state again', async () => {
      const keys = await state();
      return keys.length === before.length ? keys : undefined;
    }),
    before,
  );
  const peer = await eu.clientAs('remote-us');
  assert.equal(await can(() => peer.range('cilium/state/')), 'yes');
  assert.equal(await can(() => peer.put('cilium/state/x', 'x')), 'no');
  // The order of revisions is the order of events: nothing is older than the marker.
  const marker = await eu.admin.get(BOOTSTRAP_KEY);
  for (const kv of (await eu.admin.range('cilium/')).kvs)
    assert.ok(kv.createRevision > (marker?.createRevision ?? 0), kv.key);
});

test('users.yaml is followed: added, removed, malformed', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const file = join(eu.root, 'users.yaml');
  const remotes = async () =>
    (await eu.admin.auth.listUsers())
      .filter((user) => user.startsWith('remote-'))
      .sort()
      .join(' ');
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  writeFileSync(
    file,
    '# peers\nusers:\n  - { name: remote-us, role: remote }\n  - { name: remote-ap, role: root }\n  - { name: admin-eu, role: remote }\n',
  );
  await eu.eventually('the user', async () => (await remotes()) === 'remote-us');
  assert.match(eu.plane.local.problems().join('\n'), /users\.1: role "root" of remote-ap is not "remote"/);
  assert.match(eu.plane.local.problems().join('\n'), /users\.2: "admin-eu" is not remote-<cluster>/);

  await eu.plane.bootstrap.addPeer('sa');
  await eu.plane.bootstrap.addPeer('sa');
  assert.equal(await remotes(), 'remote-sa remote-us');
  assert.match(readFileSync(file, 'utf8'), /# peers[\s\S]*remote-us[\s\S]*remote-sa/);

  writeFileSync(file, 'users: {');
  await eu.eventually('the problem', () =>
    eu.plane.local.problems().some((problem) => problem.includes('is not YAML')),
  );
  assert.equal(await remotes(), 'remote-sa remote-us', 'a malformed file takes nothing away');
  await assert.rejects(eu.plane.bootstrap.addPeer('x'), /is not YAML/);

  writeFileSync(file, 'users: [{ name: remote-us, role: remote }, { name: remote-sa, role: remote }]\n');
  await eu.plane.bootstrap.removePeer('us');
  await eu.plane.bootstrap.removePeer('us');
  assert.equal(await remotes(), 'remote-sa');
  writeFileSync(file, 'users: []\n');
  await eu.eventually('no user', async () => (await remotes()) === '');
});

test('a peer that is added while a pass is under way is not taken for a leftover by it, nor made again when it is removed', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  await eu.stop();
  const file = join(eu.root, 'users.yaml');
  const { auth } = eu.admin;
  const changes: string[] = [];
  let passes = 0;
  let hold: Promise<void> | undefined;
  const noted =
    (what: string, change: (user: string) => Promise<void>) =>
    async (user: string): Promise<void> => {
      changes.push(`${what} ${user}`);
      await change(user);
    };
  const held: Etcd = Object.create(eu.admin, {
    auth: {
      value: {
        ...auth,
        addUser: noted('add', auth.addUser),
        deleteUser: noted('delete', auth.deleteUser),
        // What a pass looks at first, after it has read the file.
        async listUsers() {
          passes++;
          await hold;
          return auth.listUsers();
        },
      },
    },
  });
  const stop = new AbortController();
  t.after(() => stop.abort());
  const options = { etcd: held, cluster: 'eu', nodes: [], usersFile: file, log: silentLog(), signal: stop.signal };
  const bootstrap = startBootstrap(options);
  await eu.eventually('bootstrap', () => bootstrap.ready());

  /** `change` while a pass waits that has read the file before it. */
  async function during(text: string, change: () => Promise<void>): Promise<void> {
    let release = () => {};
    hold = new Promise((resolve) => {
      release = resolve;
    });
    const before = passes;
    writeFileSync(file, text);
    await eu.eventually('a pass under way', () => passes > before);
    const changed = change();
    // As far as it comes without the pass: what it asks of etcd meanwhile is in `changes`.
    for (let i = 0; i < 50; i++) await eu.admin.put('test/time-passes', '');
    hold = undefined;
    release();
    await changed;
  }
  await during('users: [{ name: remote-ap, role: remote }]\n', () => bootstrap.addPeer('us'));
  await eu.eventually(
    'both users',
    async () => (await auth.listUsers()).filter((user) => /remote-/.test(user)).length === 2,
  );
  assert.deepEqual(
    changes.filter((change) => change.startsWith('delete')),
    [],
  );
  changes.length = 0;
  await during('users: [{ name: remote-us, role: remote }]\n', () => bootstrap.removePeer('us'));
  await eu.eventually('neither', async () => !(await auth.listUsers()).some((user) => /remote-/.test(user)));
  assert.deepEqual(
    changes.filter((change) => change === 'add remote-us'),
    [],
  );
});

test('a users.yaml that vanishes takes nobody their access, is reported, and is made again whole by the next change', async (t) => {
  const eu = await startCluster(t, { name: 'eu', id: 1 });
  const file = join(eu.root, 'users.yaml');
  const remotes = async () =>
    (await eu.admin.auth.listUsers())
      .filter((user) => user.startsWith('remote-'))
      .sort()
      .join(' ');
  await eu.eventually('bootstrap', () => eu.plane.bootstrap.ready());
  assert.deepEqual(eu.plane.bootstrap.problems(), [], 'before the first peer there is none');
  await eu.plane.bootstrap.addPeer('us');
  rmSync(file);
  await eu.eventually('the problem', () =>
    /users\.yaml is missing.*remote-us/.test(eu.plane.bootstrap.problems().join()),
  );
  await eu.server.wipe();
  await eu.eventually('the user again', async () => (await remotes()) === 'remote-us');

  await eu.stop();
  await eu.start();
  await eu.eventually('bootstrap again', () => eu.plane.bootstrap.ready());
  assert.equal(await remotes(), 'remote-us', 'also across a restart');
  await eu.plane.bootstrap.addPeer('ap');
  assert.match(readFileSync(file, 'utf8'), /remote-us[\s\S]*remote-ap/);
  await eu.eventually('no problem', () => eu.plane.bootstrap.problems().length === 0);
  assert.equal(await remotes(), 'remote-ap remote-us');
});

test('a right that somebody changed by hand is put right', () => {
  const desired = desiredAuth({ cluster: 'eu', nodes: ['n1'], remoteUsers: ['remote-us'] });
  const users = new Map([...desired.users].map(([user, role]) => [user, [role]]));
  const roles = new Map(
    [...desired.roles].map(([role, grants]) => [
      role,
      grants.map(({ permission, key, scope }) => ({
        permission,
        key,
        rangeEnd:
          scope === 'key' ? '' : `${key.slice(0, -1)}${String.fromCharCode(key.charCodeAt(key.length - 1) + 1)}`,
      })),
    ]),
  );
  assert.deepEqual(planAuth(desired, { users, roles }), []);
  roles.set('remote', [
    { permission: 'readwrite', key: 'cilium/', rangeEnd: 'cilium0' },
    ...(roles.get('remote') ?? []).slice(1),
  ]);
  roles.set('local', [{ permission: 'read', key: 'a', rangeEnd: 'z' }]);
  users
    .set('remote-us', ['remote', 'root'])
    .set('remote-gone', ['remote'])
    .set('node-gone', [])
    .set('somebody', ['root']);
  users.delete('node-n1');
  const steps = planAuth(desired, { users, roles }).map((step) =>
    Object.values(step)
      .map((value) => (typeof value === 'object' ? `${value.permission} ${value.key}` : value))
      .join(' '),
  );
  assert.deepEqual(steps, [
    'deleteRole local',
    'addRole local',
    'grantPermission local read cilium/.heartbeat',
    'grantPermission local read cilium/cache/',
    'grantPermission local read cilium/cluster-config/',
    'grantPermission local read cilium/synced/',
    'revokePermission remote readwrite cilium/',
    'grantPermission remote read cilium/.heartbeat',
    'grantRole local-eu local',
    'revokeRole remote-us root',
    'addUser node-n1',
    'grantRole node-n1 node-n1',
    'deleteUser remote-gone',
    'deleteUser node-gone',
  ]);
});
