import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import type { ClusterInfo, MeshError, OperationEvent, PeerStatus } from '@clustermesh/contract';
import { certificateFacts, ensureClusterPki, isIssuedBy } from '@clustermesh/pki';
import { type Log, silentLog, systemClock, waitFor } from '@clustermesh/runtime';
import { Redis } from 'ioredis';
import type { MirrorView, PeerDirectory, UserDirectory } from '../ports.ts';
import type { RotationPorts } from '../rotation/index.ts';
import { type EtcdLikeServer, startEtcdLikeServer } from '../testing/etcd-like-server.ts';
import { type RedisServer, startRedisServer } from '../testing/redis-server.ts';
import { type Operations, type OperationsOptions, startOperations } from './operations.ts';
import { createPeerDirectory } from './peer-directory.ts';

/** One cluster's half of the world: PKI, a TLS server as its etcd, Redis and directories are real; users and mirror are watched. */
/** No test here rotates: rotation/rotate.e2e.test.ts does. */
const NO_ROTATION: RotationPorts = {
  cluster: '',
  pkiDir: '',
  clock: systemClock,
  facts: async () => assert.fail('not asked'),
};

interface Side {
  readonly name: string;
  readonly info: ClusterInfo;
  readonly dir: string;
  readonly redis: RedisServer;
  readonly etcd: EtcdLikeServer;
  readonly peers: PeerDirectory;
  readonly users: Set<string>;
  /** Peers whose data the mirror has not got. */
  readonly notSynced: Set<string>;
  /** Peers whose data does not go away. */
  readonly lingering: Set<string>;
  operations: Operations;
  restart(more?: Partial<OperationsOptions>): void;
}

const root = mkdtempSync(join(tmpdir(), 'cm-ops-'));

async function startSide(name: string, id: number): Promise<Side> {
  const dir = join(root, name);
  const { ca } = await ensureClusterPki({ dir: join(dir, 'pki'), cluster: name });
  const server = {
    certPem: readFileSync(join(dir, 'pki/server.crt'), 'utf8'),
    keyPem: readFileSync(join(dir, 'pki/server.key'), 'utf8'),
  };
  const [redis, etcd] = await Promise.all([startRedisServer(), startEtcdLikeServer({ server, caPem: ca.certPem })]);
  const peers = createPeerDirectory({ dir: join(dir, 'clustermesh'), ownName: name, log: silentLog() });
  const users = new Set<string>();
  const notSynced = new Set<string>();
  const lingering = new Set<string>();
  let configured: readonly string[] = [];
  const mirror: MirrorView = {
    refresh: () => {
      void peers.list().then((list) => {
        configured = list.map((peer) => peer.name);
      });
    },
    peers: () =>
      [...new Set([...configured, ...lingering])].map((cluster): PeerStatus => {
        const synced = !notSynced.has(cluster);
        return {
          cluster,
          clusterId: 0,
          connected: true,
          ready: synced,
          lastProofAgeMs: 0,
          updatedAt: '',
          families: { nodes: { synced, count: 2, revision: 1, quarantined: 0 } },
        };
      }),
  };
  const directory: UserDirectory = {
    addPeer: async (peer) => void users.add(peer),
    removePeer: async (peer) => void users.delete(peer),
  };
  const base = (): OperationsOptions => ({
    own: {
      name,
      id,
      maxConnectedClusters: 255,
      podCidr: `10.${id}.0.0/16`,
      podCidrV6: `fd00:${id}::/32`,
      serviceCidrs: [],
    },
    pkiDir: join(dir, 'pki'),
    stateDir: join(dir, 'state'),
    redis: redis.config,
    peers,
    users: directory,
    mirror,
    agents: { agents: () => [] },
    log: silentLog() as Log,
    rotation: NO_ROTATION,
    timers: { certificateWaitMs: 20_000, syncWaitMs: 20_000, drainWaitMs: 5000, pollMs: 20, probeTimeoutMs: 1000 },
    lockMs: 1000,
  });
  const side: Side = {
    name,
    dir,
    redis,
    etcd,
    peers,
    users,
    notSynced,
    lingering,
    info: {
      name,
      id,
      maxConnectedClusters: 255,
      region: '',
      endpoints: [`https://${name}.mesh.cilium.io:${etcd.port}`],
      hostAliases: [{ hostname: `${name}.mesh.cilium.io`, ips: ['127.0.0.1'] }],
      caPem: ca.certPem,
      version: '0',
      podCidr: `10.${id}.0.0/16`,
      podCidrV6: `fd00:${id}::/32`,
    },
    operations: startOperations(base()),
    restart: (more) => {
      side.operations = startOperations({ ...base(), ...more });
    },
  };
  return side;
}

async function stopSide(side: Side): Promise<void> {
  await side.operations.close();
  await Promise.all([side.redis.stop(), side.etcd.close()]);
}

async function follow(
  side: Side,
  id: string,
  onEvent: (event: OperationEvent) => Promise<void> | void = () => {},
): Promise<OperationEvent[]> {
  const events: OperationEvent[] = [];
  for await (const event of side.operations.watch(id, AbortSignal.timeout(40_000))) {
    events.push(event);
    await onEvent(event);
  }
  return events;
}

const last = (events: readonly OperationEvent[]): OperationEvent => events.at(-1) ?? assert.fail('no event');

/** What `clustermesh connect` does. */
async function connect(a: Side, b: Side): Promise<{ readonly a: OperationEvent[]; readonly b: OperationEvent[] }> {
  const [fromA, fromB] = await Promise.all([a.operations.prepareConnect(b.name), b.operations.prepareConnect(a.name)]);
  const [idA, idB] = await Promise.all([
    a.operations.startConnect(b.info, fromB),
    b.operations.startConnect(a.info, fromA),
  ]);
  const courier = (to: Side, peer: string) => async (event: OperationEvent) => {
    if (event.certificateForPeerPem !== '') await to.operations.supplyCertificate(peer, event.certificateForPeerPem);
  };
  const [eventsA, eventsB] = await Promise.all([
    follow(a, idA, courier(b, a.name)),
    follow(b, idB, courier(a, b.name)),
  ]);
  return { a: eventsA, b: eventsB };
}

async function disconnect(side: Side, peer: string): Promise<OperationEvent[]> {
  return follow(side, await side.operations.startDisconnect(peer));
}

async function restarted(side: Side, more?: Partial<OperationsOptions>): Promise<void> {
  await side.operations.close();
  side.restart(more);
  await waitFor(() => side.operations.redisReachable(), { what: 'Redis', timeoutMs: 5000 });
}

const rejection =
  (code: string, ...patterns: RegExp[]) =>
  (error: MeshError) => {
    assert.equal(error.code, code, error.message);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  };

describe('operations', () => {
  let eu: Side;
  let us: Side;
  before(async () => {
    [eu, us] = await Promise.all([startSide('eu', 1), startSide('us', 2)]);
  });
  after(async () => {
    await Promise.all([stopSide(eu), stopSide(us)]);
    rmSync(root, { recursive: true });
  });
  afterEach(async () => {
    eu.notSynced.clear();
    us.notSynced.clear();
    for (const [side, peer] of [
      [eu, 'us'],
      [us, 'eu'],
    ] as const) {
      const ended = last(await disconnect(side, peer));
      assert.equal(ended.state, 'done', ended.message);
    }
  });

  it('connect two clusters, each with a certificate of the other', async () => {
    const events = await connect(eu, us);
    for (const side of [events.a, events.b]) {
      assert.equal(last(side).state, 'done', JSON.stringify(last(side)));
      assert.deepEqual(
        [...new Set(side.map((event) => event.step))],
        ['authorize-peer', 'install-credentials', 'await-sync', ''],
      );
    }
    assert.deepEqual([...eu.users, ...us.users], ['us', 'eu']);
    for (const [side, peer] of [
      [eu, us],
      [us, eu],
    ] as const) {
      const [config] = await side.peers.list();
      assert.ok(config !== undefined);
      assert.equal(config.name, peer.name);
      assert.deepEqual(config.endpoints, peer.info.endpoints);
      assert.deepEqual(config.agreed, {
        id: peer.info.id,
        podCidr: peer.info.podCidr,
        podCidrV6: peer.info.podCidrV6,
      });
      const cert = readFileSync(config.certFile, 'utf8');
      assert.equal(certificateFacts(cert).commonName, `remote-${side.name}`);
      assert.ok(isIssuedBy(cert, peer.info.caPem));
      assert.equal(statSync(config.keyFile).mode & 0o777, 0o600);
      assert.ok(peer.etcd.clients.includes(`remote-${side.name}`), 'the certificate was tried before it was installed');
    }
  });

  it('leave no private key in Redis, and none on disk but the installed one', async () => {
    await connect(eu, us);
    const redis = new Redis(eu.redis.path);
    const values: string[] = [];
    for (const key of await redis.keys('cm:*')) {
      if ((await redis.type(key)) === 'hash') values.push(JSON.stringify(await redis.hgetall(key)));
    }
    redis.disconnect();
    assert.ok(
      values.some((value) => value.includes('BEGIN CERTIFICATE REQUEST')),
      'the jobs were looked at',
    );
    assert.ok(!values.some((value) => value.includes('PRIVATE KEY')));
    assert.deepEqual(readdirSync(join(eu.dir, 'state', 'pending')), []);
  });

  it('connect again as often as one likes', async () => {
    await connect(eu, us);
    const again = await connect(eu, us);
    assert.equal(last(again.a).state, 'done');
    assert.equal((await eu.peers.list()).length, 1);
  });

  it('are one operation while an equal one runs', async () => {
    const csr = await us.operations.prepareConnect('eu');
    const [first, second] = await Promise.all([
      eu.operations.startConnect(us.info, csr),
      eu.operations.startConnect(us.info, csr),
    ]);
    assert.equal(first, second);
  });

  it('are started once by a call that is made again, also when they have ended meanwhile', async () => {
    const first = await eu.operations.startDisconnect('us', '0123abcd');
    await follow(eu, first);
    assert.equal(await eu.operations.startDisconnect('us', '0123abcd'), first);
    assert.notEqual(await eu.operations.startDisconnect('us', '0123abce'), first);
    assert.equal((await eu.operations.list()).filter((operation) => operation.id === first).length, 1);
    await assert.rejects(
      eu.operations.startDisconnect('us', 'another.step'),
      rejection('invalid-argument', /the request id "another\.step" is not made of 8 to 32 hex digits/),
    );
  });

  it('go on after the apiserver was replaced in the middle of a step', async () => {
    eu.notSynced.add('us');
    const [fromEu, fromUs] = await Promise.all([
      eu.operations.prepareConnect('us'),
      us.operations.prepareConnect('eu'),
    ]);
    const id = await eu.operations.startConnect(us.info, fromUs);
    const usId = await us.operations.startConnect(eu.info, fromEu);
    const steps: string[] = [];
    for await (const event of eu.operations.watch(id, AbortSignal.timeout(20_000))) {
      if (event.step === 'install-credentials') break;
      steps.push(event.step);
    }
    await eu.operations.close();
    eu.restart();
    await follow(us, usId, async (event) => {
      if (event.certificateForPeerPem !== '') await eu.operations.supplyCertificate('us', event.certificateForPeerPem);
      // The other direction: from the operation that was started before the restart.
      if (event.step === 'install-credentials') {
        for await (const of of eu.operations.watch(id, AbortSignal.timeout(20_000))) {
          if (of.certificateForPeerPem === '') continue;
          await us.operations.supplyCertificate('eu', of.certificateForPeerPem);
          break;
        }
      }
    });
    await waitFor(() => [...eu.users].includes('us'), { what: 'the user', timeoutMs: 5000 });
    eu.notSynced.clear();
    assert.equal(last(await follow(eu, id)).state, 'done');
  });

  it('refuse a cluster with our id or our name, naming both', async () => {
    const csr = await us.operations.prepareConnect('eu');
    await assert.rejects(
      eu.operations.startConnect({ ...us.info, id: 1 }, csr),
      rejection('conflict', /eu \(id 1\) with cluster us \(id 1\)/, /both clusters have cluster id 1/),
    );
    await assert.rejects(
      eu.operations.startConnect({ ...us.info, name: 'eu' }, csr),
      rejection('conflict', /both clusters are named eu/),
    );
    assert.deepEqual([...eu.users], []);
  });

  it('refuse a cluster with the id or the name of a connected one, and leave that one alone', async () => {
    await connect(eu, us);
    const csr = await us.operations.prepareConnect('eu');
    const sameId = last(
      await follow(
        eu,
        await eu.operations.startConnect({ ...us.info, name: 'ap', podCidr: '10.9.0.0/16' }, csr.replace('', '')),
      ),
    );
    assert.equal(sameId.state, 'failed');
    assert.equal(sameId.errorCode, 'conflict');
    assert.match(sameId.message, /cluster id 2 is already used by the connected cluster us/);
    const sameName = last(await follow(eu, await eu.operations.startConnect({ ...us.info, id: 3 }, csr)));
    assert.match(sameName.message, /a cluster us with id 2 is connected already/);
    assert.match(sameName.hint, /disconnect us first/);
    assert.deepEqual([...eu.users], ['us']);
    assert.equal((await eu.peers.list()).length, 1);
  });

  it('say which endpoint cannot be reached, and why, before anything is changed', async () => {
    eu.operations.close();
    eu.restart({ attempts: 2 });
    const csr = await us.operations.prepareConnect('eu');
    const nobody = { ...us.info, endpoints: ['https://us.mesh.cilium.io:1'] };
    const events = await follow(eu, await eu.operations.startConnect(nobody, csr));
    assert.equal(last(events).errorCode, 'unreachable');
    assert.match(
      last(events).message,
      /etcd of cluster us: https:\/\/us\.mesh\.cilium\.io:1 \(127\.0\.0\.1\): connection refused/,
    );
    assert.match(last(events).hint, /check that etcd of us runs/);
    assert.ok(
      events.some((event) => /attempt 1 of 2 failed/.test(event.message)),
      'an attempt that failed is told',
    );
    const stranger = last(
      await follow(eu, await eu.operations.startConnect({ ...us.info, caPem: eu.info.caPem }, csr)),
    );
    assert.equal(stranger.errorCode, 'tls');
    assert.match(stranger.message, /signed by another CA/);
    assert.deepEqual([...eu.users], []);
  });

  it('fail at once, and the other peers stay, when the request is for another name', async () => {
    const csr = await us.operations.prepareConnect('eu');
    const event = last(await follow(eu, await eu.operations.startConnect({ ...us.info, name: 'ap' }, csr)));
    assert.equal(event.errorCode, 'invalid-argument', event.message);
    assert.match(event.message, /signing the certificate request for remote-ap: its common name is "remote-us"/);
  });

  it('that Redis has forgotten say so, and can be started again', async () => {
    const csr = await us.operations.prepareConnect('eu');
    const id = await eu.operations.startConnect(us.info, csr);
    // Before it can happen: a rejection that nobody waits for yet ends the process.
    let isFollowed = false;
    const following = follow(eu, id, () => {
      isFollowed = true;
    });
    const refused = assert.rejects(following, (error: MeshError) => {
      assert.match(error.hint ?? '', /Redis has lost its data: start the operation again/);
      return rejection('not-found', /following operation connect-us-/)(error);
    });
    // What was never seen cannot be missed.
    await waitFor(() => isFollowed && eu.users.has('us'), { what: 'authorisation', timeoutMs: 30_000 });
    const redis = new Redis(eu.redis.path);
    await redis.flushall();
    redis.disconnect();
    await refused;
    const again = await connect(eu, us);
    assert.equal(last(again.a).state, 'done');
  });

  it('do not connect a peer that is being disconnected', async () => {
    await connect(eu, us);
    eu.lingering.add('us');
    const csr = await us.operations.prepareConnect('eu');
    const id = await eu.operations.startDisconnect('us');
    await assert.rejects(
      eu.operations.startConnect(us.info, csr),
      rejection('locked', /a disconnect of us is running/),
    );
    eu.lingering.clear();
    await follow(eu, id);
  });

  it('end a connect that cannot finish when the peer is disconnected', async () => {
    const csr = await us.operations.prepareConnect('eu');
    const id = await eu.operations.startConnect(us.info, csr);
    const ended = follow(eu, id);
    await waitFor(() => eu.users.has('us'), { what: 'authorisation', timeoutMs: 5000 });
    const events = await disconnect(eu, 'us');
    assert.equal(last(events).state, 'done');
    assert.equal(last(await ended).errorCode, 'cancelled');
    assert.deepEqual([...eu.users], []);
  });

  it('connect one way: the one reads, the other is only read', async () => {
    const [fromEu, fromUs] = await Promise.all([
      eu.operations.prepareConnect('us'),
      us.operations.prepareConnect('eu'),
    ]);
    const reading = await eu.operations.startConnect(us.info, fromUs, { direction: 'read' });
    const serving = await us.operations.startConnect(eu.info, fromEu, { direction: 'serve' });
    const [served, read] = await Promise.all([
      follow(us, serving, async (event) => {
        if (event.certificateForPeerPem !== '')
          await eu.operations.supplyCertificate('us', event.certificateForPeerPem);
      }),
      follow(eu, reading),
    ]);
    assert.deepEqual([last(served).state, last(read).state], ['done', 'done']);
    assert.deepEqual([[...eu.users], [...us.users]], [[], ['eu']]);
    assert.deepEqual([(await eu.peers.list()).length, (await us.peers.list()).length], [1, 0]);
    assert.deepEqual(readdirSync(join(us.dir, 'state', 'pending')), []);
  });

  it('take back what a failed connect had begun, without anybody asking', async () => {
    await restarted(eu, {
      timers: { certificateWaitMs: 300, syncWaitMs: 20_000, drainWaitMs: 5000, pollMs: 20, probeTimeoutMs: 1000 },
    });
    const csr = await us.operations.prepareConnect('eu');
    await eu.operations.prepareConnect('us');
    const ended = last(await follow(eu, await eu.operations.startConnect(us.info, csr)));
    assert.equal(ended.errorCode, 'timeout', ended.message);
    assert.deepEqual([...eu.users], []);
    assert.deepEqual(readdirSync(join(eu.dir, 'state', 'pending')), []);
    await restarted(eu);
  });

  it('leave a connection alone that was there before, when a later connect fails', async () => {
    await connect(eu, us);
    await restarted(eu, { attempts: 1 });
    const csr = await us.operations.prepareConnect('eu');
    const nobody = { ...us.info, endpoints: ['https://us.mesh.cilium.io:1'] };
    assert.equal(last(await follow(eu, await eu.operations.startConnect(nobody, csr))).state, 'failed');
    assert.deepEqual([...eu.users], ['us']);
    assert.equal((await eu.peers.list()).length, 1);
  });

  it('are listed, can be cancelled, and tried again', async () => {
    const [csr] = await Promise.all([us.operations.prepareConnect('eu'), eu.operations.prepareConnect('us')]);
    const id = await eu.operations.startConnect(us.info, csr);
    await waitFor(() => eu.users.has('us'), { what: 'authorisation', timeoutMs: 5000 });
    await assert.rejects(eu.operations.retry(id), rejection('conflict', /it is active/));
    await eu.operations.cancel(id);
    assert.equal(last(await follow(eu, id)).errorCode, 'cancelled');
    await waitFor(() => !eu.users.has('us'), { what: 'what was begun to be taken back', timeoutMs: 10_000 });
    const listed = await eu.operations.list();
    assert.equal(listed.find((operation) => operation.id === id)?.state, 'cancelled');
    assert.equal(listed[0]?.kind, 'disconnect', 'the newest first');
    await waitFor(async () => (await eu.operations.list())[0]?.state === 'done', {
      what: 'its end',
      timeoutMs: 10_000,
    });
    const again = await eu.operations.retry(id);
    assert.notEqual(again, id);
    await waitFor(() => eu.users.has('us'), { what: 'authorisation again', timeoutMs: 5000 });
    await assert.rejects(eu.operations.retry('connect-us-none'), rejection('not-found', /no such operation/));
  });

  it('that are tried again do what they did: a drain drains, and parts nothing', async () => {
    await connect(eu, us);
    eu.lingering.add('us');
    const id = await eu.operations.startDrain('us');
    await eu.operations.cancel(id);
    assert.equal(last(await follow(eu, id)).errorCode, 'cancelled');
    const again = await eu.operations.retry(id);
    assert.match(again, /^drain-us-/);
    await eu.operations.cancel(again);
    await follow(eu, again);
    eu.lingering.clear();
    assert.equal((await eu.peers.list()).length, 1);
  });

  it('are refused by a replica that stands by, which names the one that leads', async () => {
    await restarted(eu, { mayRun: () => false, otherLeader: () => 'replica-b' });
    const csr = await us.operations.prepareConnect('eu');
    await assert.rejects(eu.operations.startConnect(us.info, csr), rejection('conflict', /replica replica-b leads/));
    await restarted(eu);
  });

  it('disconnect a peer that is dead', async () => {
    await connect(eu, us);
    await us.etcd.close();
    const events = await disconnect(eu, 'us');
    assert.deepEqual(
      [...new Set(events.map((event) => event.step))],
      ['remove-config', 'revoke-peer', 'await-drained', ''],
    );
    assert.deepEqual(await eu.peers.list(), []);
    assert.deepEqual([...eu.users], []);
  });
});
