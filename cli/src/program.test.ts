import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import {
  type AdminMethods,
  type ClusterInfo,
  type ClusterStatus,
  type Diagnosis,
  MeshError,
  type OperationEvent,
  type OperationInfo,
  type PeerInfo,
  type PreflightCheck,
} from '@clustermesh/contract';
import { createInvite } from '@clustermesh/pki';
import { type Handlers, type RpcServer, serveRpc } from '@clustermesh/runtime';
import { runProgram } from './program.ts';
import { plain, type Terminal } from './terminal.ts';

/** An apiserver that is nothing but its protocol, over a real socket; what operations really do is tested where they live. */
interface Scripted {
  readonly context: string;
  events: readonly Partial<OperationEvent>[];
  peers: ClusterStatus['peers'];
  startError: MeshError | undefined;
  /** Thrown by the next SupplyCertificate, once. */
  supplyError: MeshError | undefined;
  checks: readonly PreflightCheck[];
  operations: readonly OperationInfo[];
  diagnoses: readonly Diagnosis[];
  /** What the last preflight was told of the clocks. */
  heard: { readonly clockOffsetMs: number; readonly clockErrorMs: number } | undefined;
  /** What a Disable answers. */
  partings: { peer: string; id: string }[];
  /** Of each StartDisconnect and RotateCa. */
  readonly requests: string[];
  /** So many of the first of them get no answer. */
  lostStarts: number;
  clockAheadMs: number;
  /** Peers that a connect was started with: connected from then on. */
  joined: string[];
  directions: string[];
  readonly calls: string[];
  server: RpcServer;
}

const root = mkdtempSync(join(tmpdir(), 'cm-cli-'));

const connectedPeer = (name: string): PeerInfo => ({
  ...{ name, id: 9, connected: true, ready: true, lastProofAgeMs: 0, error: '' },
  families: [],
  nodesApplied: 0,
});

async function startScripted(name: string, id: number): Promise<Scripted> {
  const socket = join(root, `${name}.sock`);
  const context = join(root, `${name}.yaml`);
  writeFileSync(context, `name: ${name}\nid: ${id}\napiserver: unix://${socket}\n`);
  const info: ClusterInfo = {
    name,
    id,
    maxConnectedClusters: 255,
    region: '',
    endpoints: ['https://x:1'],
    hostAliases: [],
    caPem: '',
    version: '9.9.9',
    podCidr: '',
    podCidrV6: '',
  };
  const handlers: Handlers<AdminMethods> = {
    GetCluster: async () => info,
    GetStatus: async () => ({
      cluster: info,
      etcdConnected: true,
      etcdError: '',
      redisConnected: true,
      peers: [...scripted.peers, ...scripted.joined.map(connectedPeer)],
      nodes: [],
      problems: [],
      localServices: 0,
      globalServices: 0,
      localEndpoints: 0,
      meshDisabled: false,
    }),
    GetFacts: async () => ({
      ...{ cluster: info, serviceCidr: '', nodes: [], unixMs: Date.now() + scripted.clockAheadMs, meshDisabled: false },
    }),
    Preflight: async ({ clockOffsetMs, clockErrorMs }) => {
      scripted.heard = { clockOffsetMs, clockErrorMs };
      return { checks: scripted.checks };
    },
    CreateInvite: async () => ({ token: 'cm1.a.b.c', id: 'a', expiresUnixMs: 0 }),
    Join: async ({ token }) => {
      scripted.calls.push(`join ${token}`);
      scripted.joined.push('us');
      return { id: 'connect-us-1' };
    },
    RedeemInvite: async () => assert.fail('asked by clusters only'),
    CompleteInvite: async () => assert.fail('asked by clusters only'),
    RenewPeer: async () => ({ certificatePem: '', caPem: '' }),
    Disable: async () => {
      scripted.calls.push('disable');
      return { partings: scripted.partings };
    },
    Enable: async () => {
      scripted.calls.push('enable');
      return {};
    },
    RotateCa: async ({ overlapMs, without, request }) => {
      scripted.requests.push(request ?? '');
      if (scripted.requests.length <= scripted.lostStarts)
        throw new MeshError({ code: 'unreachable', message: 'the connection was cut' });
      return { id: `rotate ${overlapMs} ${without.join(' ')}` };
    },
    RotateLeaves: async () => ({ issued: [{ file: '/pki/server.crt', reason: 'asked for' }] }),
    Diagnose: async () => ({ diagnoses: scripted.diagnoses }),
    ListOperations: async () => ({ operations: scripted.operations }),
    RetryOperation: async ({ id: operation }) => ({ id: `${operation}-again` }),
    CancelOperation: async ({ id: operation }) => {
      scripted.calls.push(`cancel ${operation}`);
      return {};
    },
    PrepareConnect: async ({ peer }) => ({ csrPem: `request of ${name} for ${peer}` }),
    StartConnect: async ({ peer, peerCsrPem, direction }) => {
      scripted.calls.push(`connect ${peer.name} with ${peerCsrPem}`);
      scripted.directions.push(direction);
      if (scripted.startError !== undefined) throw scripted.startError;
      scripted.joined.push(peer.name);
      return { id: `connect-${peer.name}-1` };
    },
    StartDisconnect: async ({ peer, request }) => {
      scripted.requests.push(request ?? '');
      if (scripted.requests.length <= scripted.lostStarts)
        throw new MeshError({ code: 'unreachable', message: 'the connection was cut' });
      scripted.calls.push(`disconnect ${peer}`);
      return { id: `disconnect-${peer}-1` };
    },
    StartDrain: async ({ peer }) => {
      scripted.calls.push(`drain ${peer}`);
      return { id: `disconnect-${peer}-0` };
    },
    SupplyCertificate: async ({ peer, certificatePem }) => {
      const error = scripted.supplyError;
      scripted.supplyError = undefined;
      if (error !== undefined) throw error;
      scripted.calls.push(`certificate of ${peer}: ${certificatePem}`);
      return {};
    },
    WatchOperation: async function* ({ id: operation }) {
      const blank: OperationEvent = {
        id: operation,
        kind: '',
        peer: '',
        state: 'active',
        step: '',
        message: '',
        certificateForPeerPem: '',
        errorCode: '',
        hint: '',
      };
      // Events are the connect's; to disconnect is always possible, and ends at once.
      if (operation.startsWith('disconnect')) return yield { ...blank, state: 'done' };
      for (const event of scripted.events) yield { ...blank, ...event };
      if (!scripted.events.some((event) => event.state === 'done' || event.state === 'failed'))
        await new Promise(() => {});
    },
  };
  const scripted: Scripted = {
    context,
    events: [{ state: 'done' }],
    peers: [],
    startError: undefined,
    supplyError: undefined,
    checks: [],
    operations: [],
    diagnoses: [],
    heard: undefined,
    clockAheadMs: 0,
    joined: [],
    directions: [],
    calls: [],
    requests: [],
    lostStarts: 0,
    partings: [],
    server: await serveRpc<AdminMethods>('admin', socket, handlers),
  };
  return scripted;
}

describe('the clustermesh command', () => {
  let eu: Scripted;
  let us: Scripted;
  before(async () => {
    eu = await startScripted('eu', 1);
    us = await startScripted('us', 2);
  });
  after(async () => {
    await Promise.all([eu.server.close(), us.server.close()]);
    rmSync(root, { recursive: true });
  });

  async function run(
    args: readonly string[],
    signal = new AbortController().signal,
    more: Partial<Terminal> = {},
    env: Record<string, string> = {},
  ) {
    const out: string[] = [];
    const err: string[] = [];
    const terminal = {
      out: (line: string) => out.push(line),
      err: (line: string) => err.push(line),
      progress: () => {},
      paint: plain,
      ...more,
    };
    const places = { env, etcDir: join(root, 'none'), runDir: join(root, 'none'), home: root };
    const code = await runProgram(args, { terminal, places, signal });
    return { code, out: out.join('\n'), err: err.join('\n') };
  }
  const script = (side: Scripted, more: Partial<Scripted>) =>
    Object.assign(
      side,
      {
        events: [{ state: 'done' }],
        peers: [],
        startError: undefined,
        supplyError: undefined,
        checks: [],
        clockAheadMs: 0,
        lostStarts: 0,
      },
      more,
      { calls: [], joined: [], directions: [], requests: [] },
    );
  const pair = () => ['--context', eu.context, '--destination-context', us.context];

  it('carries each certificate to the other side, once', async () => {
    const authorised = { step: 'authorize-peer', message: 'ok', certificateForPeerPem: 'PEM' };
    for (const side of [eu, us]) {
      script(side, {
        events: [
          { step: 'authorize-peer', message: 'checking' },
          authorised,
          { ...authorised, step: 'await-sync', message: 'here' },
          { ...authorised, state: 'done', step: '' },
        ],
      });
    }
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 0, result.err);
    assert.deepEqual(eu.calls, ['connect us with request of us for eu', 'certificate of us: PEM']);
    assert.deepEqual(us.calls, ['connect eu with request of eu for us', 'certificate of eu: PEM']);
    assert.match(result.out, /eu {2}authorize-peer {6}ok {2}\(\d/);
    assert.match(result.out, /us {2}await-sync {10}here {2}\(\d/);
    assert.match(result.out, /connected eu and us in .* s, applied on every node \(0\) after .* s/);
  });

  const withCertificate: readonly Partial<OperationEvent>[] = [
    { step: 'authorize-peer', message: 'ok', certificateForPeerPem: 'PEM' },
    { state: 'done', step: '' },
  ];

  it('brings a certificate to a side that is away for a moment, and blames nobody else for it', async () => {
    script(eu, { events: withCertificate });
    script(us, { supplyError: new MeshError({ code: 'unreachable', message: 'no such socket' }) });
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 0, result.err);
    assert.ok(us.calls.includes('certificate of eu: PEM'));
    assert.equal(result.err, '', 'eu is there, and was never away');
  });

  it('names the side that refuses a certificate, and takes back what was begun', async () => {
    script(eu, { events: withCertificate });
    script(us, {
      events: [{ step: 'install-credentials' }],
      supplyError: new MeshError({ code: 'invalid-argument', message: 'the certificate is for another', hint: 'see' }),
    });
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 1);
    assert.equal(result.err, 'error: us: the certificate is for another\nhint: see');
    assert.ok(eu.calls.includes('disconnect us') && us.calls.includes('disconnect eu'));
  });

  it('fails with code 1, error and hint when a side refuses, and takes back what the other began', async () => {
    script(eu, {});
    script(us, {
      startError: new MeshError({
        code: 'conflict',
        message: 'both clusters have cluster id 1',
        hint: 'give one another id',
      }),
    });
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 1);
    assert.equal(result.err, 'error: both clusters have cluster id 1\nhint: give one another id');
    assert.deepEqual(eu.calls, ['connect us with request of us for eu', 'disconnect us']);
  });

  it('takes back nothing of a connection that was there before', async () => {
    const before = [
      { name: 'us', id: 2, connected: true, ready: true, lastProofAgeMs: 0, error: '', families: [], nodesApplied: 0 },
    ];
    script(eu, {
      peers: before,
      events: [
        { state: 'failed', step: 'authorize-peer', errorCode: 'unreachable', message: 'no etcd', hint: 'look there' },
      ],
    });
    script(us, { events: [{ state: 'active', step: 'authorize-peer' }] });
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 1);
    assert.equal(result.err, 'error: eu: no etcd\nhint: look there');
    assert.ok(!eu.calls.includes('disconnect us'));
    assert.ok(us.calls.includes('disconnect eu'));
  });

  it('disables a cluster when that is confirmed, parts from its peers on both sides, and enables it again', async () => {
    const partings = ['us', 'ap'].map((peer) => ({ peer, id: `disconnect-${peer}-1` }));
    script(eu, { partings });
    eu.joined = ['us', 'ap'];
    script(us, {});
    const unasked = await run(['disable', '--context', eu.context]);
    assert.equal(unasked.code, 2);
    assert.equal(
      unasked.err,
      'error: disabling clustermesh on eu: there is nobody to ask\nhint: It is parted from us, ap; traffic between them ends. To go on without being asked: --yes',
    );
    const asked: string[] = [];
    const answer = (yes: boolean) => async (question: string) => {
      asked.push(question);
      return yes;
    };
    assert.equal((await run(['disable', '--context', eu.context], undefined, { ask: answer(false) })).code, 2);
    assert.deepEqual(asked, ['Disable clustermesh on eu? It is parted from us, ap; traffic between them ends.']);
    assert.deepEqual(eu.calls, [], 'nothing was changed');
    const env = { CLUSTERMESH_CONTEXTS: dirname(us.context) };
    const done = await run(['disable', '--context', eu.context, '--yes'], undefined, {}, env);
    assert.equal(done.code, 0, done.err);
    assert.match(done.out, /clustermesh is disabled on eu: parted from us, ap \(/);
    assert.match(
      done.err,
      /^ap: it has no context here and is not told; there: clustermesh disconnect --context ap --peer eu$/m,
    );
    assert.deepEqual([eu.calls, us.calls], [['disable'], ['disconnect eu']]);
    const enabled = await run(['enable', '--context', eu.context]);
    assert.match(enabled.out, /clustermesh is enabled on eu: peers reach it at https:\/\/x:1/);
    assert.deepEqual(eu.calls, ['disable', 'enable']);
  });

  it('repeats a start that an apiserver left unanswered, under the same name', async () => {
    script(eu, { lostStarts: 2 });
    script(us, {});
    const result = await run(['disconnect', ...pair()]);
    assert.equal(result.code, 0, result.err);
    assert.match(result.err, /^eu: the apiserver is gone; waiting for it$/);
    assert.equal(eu.requests.length, 3);
    assert.equal(new Set(eu.requests).size, 1);
    assert.match(eu.requests[0]!, /^[0-9a-f]{12}$/);
    assert.deepEqual(eu.calls, ['disconnect us']);
    script(eu, { lostStarts: 1 });
    const rotated = await run(['rotate', 'ca', '--context', eu.context, '--no-wait']);
    assert.equal(rotated.code, 0, rotated.err);
    assert.deepEqual([eu.requests.length, new Set(eu.requests).size], [2, 1]);
  });

  it('ends with code 3 when the time is over', async () => {
    script(eu, {});
    script(us, { events: [{ step: 'await-sync', message: 'waiting for the data of eu' }] });
    const result = await run(['connect', ...pair(), '--timeout', '2s']);
    assert.equal(result.code, 3);
    assert.match(result.err, /not done within 2\.0 s \(eu: .*; us: await-sync: waiting for the data of eu\)/);
    script(us, {
      peers: [
        {
          name: 'eu',
          id: 1,
          connected: false,
          ready: false,
          lastProofAgeMs: -1,
          error: '',
          families: [],
          nodesApplied: 0,
        },
      ],
    });
    const waited = await run(['status', '--context', us.context, '--wait', '--wait-duration', '300ms']);
    assert.equal(waited.code, 3);
    assert.match(waited.err, /error: waiting for the mesh: not ready after 0\.3 s: eu: not connected/);
    assert.match(waited.out, /cluster us \(id 2\)/, 'the last status is shown all the same');
  });

  it('ends with code 1 when a cluster ran out of its own time: that is no answer to --timeout', async () => {
    script(eu, { events: [{ state: 'failed', step: 'await-sync', errorCode: 'timeout', message: 'no data of us' }] });
    script(us, {});
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 1, result.err);
    assert.equal(result.err, 'error: eu: no data of us');
  });

  it('ends with code 130 when it is interrupted', async () => {
    script(eu, {});
    script(us, { events: [{ step: 'await-sync' }] });
    const interrupt = new AbortController();
    setTimeout(() => interrupt.abort(), 200);
    const result = await run(['connect', ...pair()], interrupt.signal);
    assert.equal(result.code, 130);
    assert.match(result.err, /what was started goes on/);
  });

  it('says that Redis is away and tries again', async () => {
    script(eu, {});
    script(us, {
      startError: new MeshError({ code: 'redis-unreachable', message: 'starting: Redis at /r is unreachable' }),
    });
    setTimeout(() => {
      us.startError = undefined;
    }, 500);
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 0, result.err);
    assert.equal(result.err, 'us: starting: Redis at /r is unreachable; trying again until the time is over');
  });

  it('disconnects both sides, or the one that is left', async () => {
    script(eu, {});
    script(us, {});
    assert.equal((await run(['disconnect', ...pair()])).code, 0);
    assert.deepEqual([...eu.calls, ...us.calls], ['disconnect us', 'disconnect eu']);
    script(eu, {});
    const gone = await run(['disconnect', '--context', eu.context, '--peer', 'mars']);
    assert.equal(gone.code, 0);
    assert.deepEqual(eu.calls, ['disconnect mars']);
    const dead = join(root, 'dead.yaml');
    writeFileSync(dead, `name: dead\nid: 9\napiserver: unix://${join(root, 'dead.sock')}\n`);
    const result = await run(['disconnect', '--context', eu.context, '--destination-context', dead]);
    assert.equal(result.code, 0, result.err);
    assert.match(result.err, /dead: its apiserver does not answer, so only eu is disconnected/);
  });

  const clash: PreflightCheck = {
    name: 'pod-cidr',
    state: 'failed',
    what: 'the pod CIDRs overlap',
    why: 'one address, two pods',
    fix: 'give them others',
    code: 'conflict',
  };
  const drift: PreflightCheck = { ...clash, name: 'mtu', state: 'warning', what: 'the MTU differs', code: '' };

  it('changes nothing when a side refuses the other, and says what, why and how to mend it', async () => {
    script(eu, {});
    script(us, { checks: [drift, clash] });
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 1);
    assert.equal(
      result.err,
      'warning: us: the MTU differs; give them others\nerror: us: the pod CIDRs overlap\nhint: give them others',
    );
    assert.deepEqual([...eu.calls, ...us.calls], []);
    const alone = await run(['preflight', ...pair()]);
    assert.equal(alone.code, 1);
    assert.match(alone.out, /^us +eu +pod-cidr +failed +the pod CIDRs overlap$/m);
    assert.match(
      alone.out,
      /failed: us: the pod CIDRs overlap\n {3}why: one address, two pods\n {3}fix: give them others/,
    );
    const json = JSON.parse((await run(['preflight', ...pair(), '-o', 'json'])).out) as { ok: boolean; peer: string }[];
    assert.deepEqual(
      json.map(({ ok, peer }) => [ok, peer]),
      [
        [true, 'us'],
        [false, 'eu'],
      ],
    );
  });

  it('connects in spite of a warning, and shows it', async () => {
    script(eu, { checks: [drift] });
    script(us, {});
    const result = await run(['connect', ...pair()]);
    assert.equal(result.code, 0, result.err);
    assert.equal(result.err, 'warning: eu: the MTU differs; give them others');
    assert.equal((await run(['preflight', ...pair()])).code, 0);
  });

  it('measures how far the clocks are apart, and tells each side so', async () => {
    script(eu, {});
    script(us, { clockAheadMs: 3_600_000 });
    await run(['preflight', ...pair()]);
    for (const [side, expected] of [
      [eu, 3_600_000],
      [us, -3_600_000],
    ] as const) {
      const { clockOffsetMs, clockErrorMs } = side.heard ?? assert.fail('not asked');
      assert.ok(Math.abs(clockOffsetMs - expected) <= clockErrorMs + 1, `${clockOffsetMs} ± ${clockErrorMs}`);
    }
  });

  const failed: OperationInfo = {
    id: 'connect-us-1',
    kind: 'connect',
    peer: 'us',
    state: 'failed',
    createdUnixMs: Date.now() - 60_000,
    steps: [
      {
        ...{ step: 'authorize-peer', state: 'failed', message: 'no etcd', attempts: 5 },
        ...{ startedUnixMs: 1000, endedUnixMs: 3000, errorCode: 'unreachable', hint: 'look there' },
      },
      {
        ...{ step: 'install-credentials', state: 'pending', message: '', attempts: 0 },
        ...{ startedUnixMs: 0, endedUnixMs: 0, errorCode: '', hint: '' },
      },
    ],
  };

  it('lists operations, and shows one step by step', async () => {
    script(eu, { operations: [failed] });
    const at = ['--context', eu.context];
    const list = await run(['operations', 'list', ...at]);
    assert.match(list.out, /^connect-us-1 {2}connect {2}us {4}failed {2}\d+ s {2}authorize-peer {2}no etcd$/m);
    const show = await run(['operations', 'show', 'connect-us-1', ...at]);
    assert.match(show.out, /^authorize-peer +failed +5 +2\.0 s +no etcd$/m);
    assert.match(show.out, /^hint: look there$/m);
    const none = await run(['operations', 'show', 'connect-mars-1', ...at]);
    assert.equal(none.code, 1);
    assert.match(none.err, /there is no such operation/);
    const json = JSON.parse((await run(['operations', 'list', ...at, '-o', 'json'])).out) as OperationInfo[];
    assert.equal(json[0]?.id, 'connect-us-1');
    script(eu, { operations: [] });
    assert.equal((await run(['operations', 'list', ...at])).out, 'no operations in the last week');
  });

  it('follows an operation, starts a failed one again, and cancels one', async () => {
    const at = ['--context', eu.context];
    script(eu, { events: [{ step: 'await-sync', message: 'here' }, { state: 'done' }] });
    const watched = await run(['operations', 'watch', 'connect-us-1', ...at]);
    assert.equal(watched.code, 0, watched.err);
    assert.match(watched.out, /await-sync {10}here .*\nconnect-us-1: done$/);
    assert.match(
      (await run(['operations', 'retry', 'connect-us-1', ...at])).out,
      /^connect-us-1 goes on as connect-us-1-again\n/,
    );
    assert.equal((await run(['operations', 'cancel', 'connect-us-1', ...at])).code, 0);
    assert.deepEqual(eu.calls, ['cancel connect-us-1']);
    script(eu, { events: [{ state: 'failed', step: 'await-sync', errorCode: 'timeout', message: 'no data of us' }] });
    const bad = await run(['operations', 'watch', 'connect-us-1', ...at]);
    assert.equal(bad.code, 1);
    assert.equal(bad.err, 'error: eu: no data of us');
  });

  it('connects every pair of a mesh, and goes on with the others when one fails', async () => {
    const ap = await startScripted('ap', 3);
    try {
      for (const side of [eu, us, ap]) script(side, {});
      const all = ['connect', '--context', eu.context, '--destination-context', `${us.context},${ap.context}`];
      const result = await run([...all, '--mode', 'mesh', '--parallel', '2']);
      assert.equal(result.code, 0, result.err);
      assert.deepEqual(
        [eu, us, ap].map((side) => side.joined.toSorted()),
        [
          ['ap', 'us'],
          ['ap', 'eu'],
          ['eu', 'us'],
        ],
      );
      for (const side of [eu, us, ap]) script(side, side === us ? { checks: [clash] } : {});
      const partly = await run([...all, '--mode', 'mesh']);
      assert.equal(partly.code, 1);
      assert.match(
        partly.err,
        /2 of 3 pairs failed: eu and us: us: the pod CIDRs overlap \(give them others\); us and ap/,
      );
      assert.deepEqual(eu.joined, ['ap']);
    } finally {
      await ap.server.close();
    }
  });

  it('connects one way: the one reads, the other is read', async () => {
    script(eu, {});
    script(us, {});
    const result = await run(['connect', ...pair(), '--mode', 'unicast']);
    assert.equal(result.code, 0, result.err);
    assert.deepEqual([eu.directions, us.directions], [['read'], ['serve']]);
    assert.match(result.out, /connected eu to us in/);
  });

  it('tells what is wrong, with cause and fix, also when an agent or the apiserver does not answer', async () => {
    script(eu, { diagnoses: [{ subject: 'us', checks: [{ ...clash, name: 'tls', what: 'expired' }, drift] }] });
    const found = await run(['doctor', '--context', eu.context]);
    assert.equal(found.code, 1);
    assert.match(found.out, /^us {7}tls {4}failed {3}expired$/m);
    assert.match(found.out, /failed: us: expired\n {3}why: one address, two pods\n {3}fix: give them others/);
    assert.equal(found.err, 'error: us: expired\nhint: give them others');
    const half = join(root, 'half.yaml');
    writeFileSync(
      half,
      `name: half\nid: 9\napiserver: unix://${root}/no.sock\nagents: { n1: "unix://${root}/n1.sock" }\n`,
    );
    const gone = await run(['doctor', '--context', half]);
    assert.match(gone.out, /^half +apiserver +failed +it does not answer at unix:/m);
    assert.match(gone.out, /^half\/n1 +agent-socket +failed +the agent does not answer at unix:/m);
    assert.match(gone.err, /^error: half: it does not answer .* \(and 1 more: listed above\)/);
    script(eu, { diagnoses: [{ subject: 'us', checks: [drift] }] });
    assert.equal((await run(['doctor', '--context', eu.context])).code, 0, 'a warning is no failure');
  });

  it('shows peers, and one of them family by family', async () => {
    const family = { family: 'ip', synced: false, count: 3, revision: 7, quarantined: 1, nodesApplied: 0 };
    script(eu, {
      peers: [{ ...connectedPeer('us'), ready: false, families: [{ ...family, lastQuarantineReason: 'no address' }] }],
    });
    const at = ['--context', eu.context];
    assert.match((await run(['peers', 'list', ...at])).out, /^us {4}9 {3}syncing .*3 \(syncing\)/m);
    const show = await run(['peers', 'show', 'us', ...at]);
    assert.match(show.out, /^peer us \(id 9\): not synced: ip\n/);
    assert.match(show.out, /^ip {6}no {6}3 {6}7 {9}1 {8}0\/0 nodes$/m);
    assert.match(show.out, /^! ip: no address$/m);
    assert.equal(
      (await run(['peers', 'show', 'mars', ...at])).err,
      'error: showing the peer mars of eu: there is no such peer\nhint: peers: us',
    );
  });

  it('collects a bundle in which no private key, token or password is, and says what is missing', async () => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
    const own = { cluster: 'eu', clusterId: 1, caPin: 'ab'.repeat(32) };
    const invite = createInvite({ own, endpoints: ['eu:9882'], nowMs: Date.now() }).token.reveal();
    const log = join(root, 'apiserver.log');
    writeFileSync(log, `{"msg":"started"}\n${pem}\njoin ${invite}\npassword: hunter2\n`);
    script(eu, {
      peers: [{ ...connectedPeer('us'), error: `it said ${pem}` }],
      operations: [{ ...failed, steps: [{ ...failed.steps[0]!, message: `tried ${invite}` }] }],
    });
    const handle = join(root, 'eu-with-agent.yaml');
    writeFileSync(
      handle,
      `name: eu\nid: 1\napiserver: unix://${root}/eu.sock\nagents: { n1: "unix://${root}/n1.sock" }\n`,
    );
    const file = join(root, 'dump.tar.gz');
    const result = await run(['sysdump', '--context', handle, '--include', log, '--output-file', file]);
    assert.equal(result.code, 0, result.err);
    assert.match(result.err, /^missing: eu\/nodes\/n1\/status\.json: .*n1\.sock/m);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const names = execFileSync('tar', ['-tzf', file], { encoding: 'utf8' });
    for (const part of [
      'host.json',
      'eu/status.json',
      'eu/operations.json',
      'eu/doctor.json',
      'included/1-apiserver.log',
    ])
      assert.ok(names.includes(`dump/${part}\n`), names);
    const all = execFileSync('tar', ['-xzOf', file], { encoding: 'utf8' });
    for (const secret of [pem.split('\n')[1]!, 'PRIVATE KEY', invite.split('.')[2]!, 'hunter2'])
      assert.ok(!all.includes(secret), `the bundle holds ${secret}`);
    assert.match(all, /it said <private key removed>/, 'it was there to be removed');
    assert.match(all, /tried cm1\.<redacted>/);
  });

  it('rotate leaves tells what was issued, for people and for programs', async () => {
    const table = await run(['rotate', 'leaves', '--context', eu.context]);
    assert.equal(table.code, 0);
    assert.match(table.out, /^issued \/pki\/server\.crt \(asked for\)\neu: 1 issued/);
    const json = await run(['rotate', 'leaves', '--context', eu.context, '-o', 'json']);
    assert.deepEqual(JSON.parse(json.out), {
      cluster: 'eu',
      issued: [{ file: '/pki/server.crt', reason: 'asked for' }],
    });
    assert.equal((await run(['rotate', '--context', eu.context])).code, 2);
  });

  it('rotate ca starts it as it is told', async () => {
    const plainly = await run(['rotate', 'ca', '--context', eu.context, '--no-wait']);
    assert.deepEqual([plainly.code, plainly.out], [0, 'rotate 3600000 ']);
    const leavingOut = ['--overlap', '90s', '--without', 'us', '--without', 'n1', '--no-wait'];
    assert.equal((await run(['rotate', 'ca', '--context', eu.context, ...leavingOut])).out, 'rotate 90000 us n1');
    assert.equal((await run(['rotate', 'ca', '--context', eu.context, '--overlap', 'soon'])).code, 2);
  });

  it('prints an invitation alone on stdout, and joins with one', async () => {
    script(eu, {});
    const invited = await run(['invite', '--context', eu.context]);
    assert.deepEqual([invited.code, invited.out], [0, 'cm1.a.b.c']);
    assert.match(invited.err, /^until 1970-01-01T00:00:00\.000Z, and once: clustermesh join TOKEN/);
    script(eu, {
      events: [
        { step: 'await-sync', peer: 'us', message: 'here' },
        { state: 'done', peer: 'us' },
      ],
    });
    const joined = await run(['join', 'cm1.x.y.z', '--context', eu.context]);
    assert.equal(joined.code, 0, joined.err);
    assert.match(joined.out, /^eu has joined us, applied on every node of eu \(0\) after /m);
    assert.deepEqual(eu.calls, ['join cm1.x.y.z']);
    assert.ok(!(joined.out + joined.err).includes('cm1.'), 'the token is not repeated');
  });

  it('moves traffic away on both sides before either parts, when asked to', async () => {
    script(eu, {});
    script(us, {});
    assert.equal((await run(['disconnect', ...pair(), '--drain'])).code, 0);
    assert.deepEqual(
      [eu.calls, us.calls],
      [
        ['drain us', 'disconnect us'],
        ['drain eu', 'disconnect eu'],
      ],
    );
  });

  it('prints the status for machines', async () => {
    script(eu, {});
    const json = await run(['status', '--context', eu.context, '-o', 'json']);
    assert.equal(json.code, 0);
    const value = JSON.parse(json.out) as { ready: boolean; cluster: { name: string }; waitingFor: string[] };
    assert.deepEqual([value.ready, value.cluster.name, value.waitingFor], [true, 'eu', []]);
    assert.match((await run(['status', '--context', eu.context, '-o', 'yaml'])).out, /^ready: true$/m);
  });

  it('names the daemon that does not answer', async () => {
    const nobody = join(root, 'nobody.yaml');
    writeFileSync(nobody, `name: nobody\nid: 9\napiserver: unix://${join(root, 'nobody.sock')}\n`);
    const result = await run(['status', '--context', nobody]);
    assert.equal(result.code, 1);
    assert.match(
      result.err,
      /error: reaching the apiserver of cluster nobody at unix:.*nobody\.sock: it does not answer\nhint: check that it runs; the address comes from .*nobody\.yaml/,
    );
  });

  it('prints versions', async () => {
    const result = await run(['version', '--context', eu.context]);
    assert.equal(result.code, 0);
    assert.match(result.out, /^clustermesh \d+\.\d+\.\d+\napiserver 9\.9\.9 \(cluster eu\)$/);
  });

  const wrong: readonly (readonly string[])[] = [
    [],
    ['connect'],
    ['connect', '--context', 'eu'],
    ['frobnicate'],
    ['operations', 'list'],
    ['operations', 'show'],
    ['join'],
    ['connect', '--context', 'eu', '--destination-context', 'us', '--parallel', '0'],
    ['connect', '--context', 'eu', '--destination-context', 'us', '--mode', 'star'],
    ['status', '--context', 'mars'],
    ['status'],
    ['preflight', '--context', 'eu'],
    ['status', '-o', 'xml'],
    ['disconnect', '--context', join(root, 'eu.yaml')],
    ['connect', '--context', join(root, 'eu.yaml'), '--destination-context', join(root, 'eu.yaml')],
    [
      'connect',
      '--context',
      join(root, 'eu.yaml'),
      '--destination-context',
      join(root, 'us.yaml'),
      '--timeout',
      'soon',
    ],
  ];
  for (const args of wrong) {
    it(`ends with code 2 for: clustermesh ${args.map((arg) => arg.replace(`${root}/`, '')).join(' ')}`, async () => {
      const result = await run(args);
      assert.equal(result.code, 2, result.err);
      assert.notEqual(result.err + result.out, '');
    });
  }

  it('prints help with its exit codes, and that is no error', async () => {
    for (const args of [['--help'], ['connect', '--help'], ['status', '--help']]) {
      const result = await run(args);
      assert.equal(result.code, 0);
      assert.match(result.out, /Exit codes:\n {2}0 {4}done/);
    }
  });
});
