import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type Affinity, decodeGlobalService } from '@clustermesh/contract';
import { type Backend, SERVICE_FLAG } from '../datapath/types.ts';
import { groupOfLocalSlice, groupsOfService } from './groups.ts';
import { mergeService, sortBackends } from './merge.ts';
import { backend, type EndpointState, localService, OWN_ID, remoteService, slice } from './testing.ts';

const nothingRestored = () => [];

function merged(input: {
  affinity?: Affinity;
  global?: boolean;
  local?: Record<string, EndpointState>;
  remote?: Record<number, string[]>;
  restored?: Backend[];
}): string[] {
  const [row] = mergeService({
    clusterId: OWN_ID,
    service: localService({ affinity: input.affinity ?? 'none', global: input.global ?? true }),
    local: input.local === undefined ? [] : [groupOfLocalSlice(slice(input.local))],
    remotes: Object.entries(input.remote ?? {}).map(([id, ips]) => ({
      clusterId: Number(id),
      groups: groupsOfService(remoteService(`c${id}`, Number(id), ips)),
    })),
    restored: () => input.restored ?? [],
  });
  return row?.backends.map((b) => `${b.clusterId}/${b.ip}:${b.port}`) ?? ['no row'];
}

const L1 = '1/10.1.1.1:8080';
const L2 = '1/10.1.1.2:8080';
const R2 = '2/10.2.1.1:8080';
const R3 = '3/10.3.1.1:8080';
const remote = { 2: ['10.2.1.1'], 3: ['10.3.1.1'] };

describe('affinity', () => {
  const cases: [
    what: string,
    affinity: Affinity,
    local: Record<string, EndpointState>,
    remote: Record<number, string[]>,
    expected: string[],
  ][] = [
    ['none: everything healthy of everywhere', 'none', { '10.1.1.1': 'ready' }, remote, [L1, R2, R3]],
    [
      'none: a terminating backend gets nothing new while another is active',
      'none',
      { '10.1.1.1': 'terminating' },
      remote,
      [R2, R3],
    ],
    ['none: terminating backends are the last resort', 'none', { '10.1.1.1': 'terminating' }, {}, [L1]],
    ['none: a backend that is neither ready nor terminating is out', 'none', { '10.1.1.1': 'not-ready' }, {}, []],
    ['local: local only while one is active', 'local', { '10.1.1.1': 'ready', '10.1.1.2': 'not-ready' }, remote, [L1]],
    ['local: all remote when no local one is active', 'local', { '10.1.1.1': 'not-ready' }, remote, [R2, R3]],
    [
      'local: a terminating local one does not hold up the fallback',
      'local',
      { '10.1.1.1': 'terminating' },
      remote,
      [R2, R3],
    ],
    ['local: a terminating local one serves when there is no remote', 'local', { '10.1.1.1': 'terminating' }, {}, [L1]],
    ['remote: remote only while there is one', 'remote', { '10.1.1.1': 'ready' }, remote, [R2, R3]],
    ['remote: local when there is no remote', 'remote', { '10.1.1.1': 'ready', '10.1.1.2': 'terminating' }, {}, [L1]],
    ['remote: local terminating as last resort', 'remote', { '10.1.1.2': 'terminating' }, {}, [L2]],
    ['nobody at all: the service is known and empty', 'local', {}, {}, []],
  ];
  for (const [what, affinity, local, remotes, expected] of cases) {
    test(what, () => assert.deepEqual(merged({ affinity, local, remote: remotes }), expected));
  }
});

test('remote backends join only a service that is global here', () => {
  assert.deepEqual(merged({ global: false, local: { '10.1.1.1': 'ready' }, remote }), [L1]);
});

test('restored backends of a service that stopped being global are let go', () => {
  assert.deepEqual(merged({ global: false, restored: [backend('10.2.1.1', 2)] }), []);
});

test('a service that had fallen back to terminating backends keeps them all while its slices come in one by one', () => {
  const restored = [backend('10.1.1.1'), backend('10.1.1.2')];
  assert.deepEqual(merged({ local: { '10.1.1.1': 'terminating' }, restored }), [L1, L2]);
});

test('frontends are those of this cluster, one row per address and port, each with backends of its own family', () => {
  const rows = mergeService({
    clusterId: OWN_ID,
    service: localService({
      clusterIPs: ['10.96.0.10', 'fd00::1'],
      ports: [
        { name: 'http', protocol: 'TCP', port: 80 },
        { name: 'dns', protocol: 'UDP', port: 53 },
        { name: 'signal', protocol: 'SCTP', port: 99 },
      ],
    }),
    local: [],
    remotes: [{ clusterId: 2, groups: groupsOfService(remoteService('us', 2, ['10.2.1.1', 'fd02::1'])) }],
    restored: nothingRestored,
  });
  assert.deepEqual(
    rows.map(({ frontend, backends }) => [
      `${frontend.ip} ${frontend.port}/${frontend.protocol}`,
      backends.map(({ ip }) => ip),
    ]),
    [
      ['10.96.0.10 80/TCP', ['10.2.1.1']],
      ['10.96.0.10 53/UDP', []],
      ['10.96.0.10 99/SCTP', []],
      ['fd00::1 80/TCP', ['fd02::1']],
      ['fd00::1 53/UDP', []],
      ['fd00::1 99/SCTP', []],
    ],
  );
});

describe('ports', () => {
  const backends = (
    ports: Record<string, { Protocol: string; Port: number }>,
    name: string,
    protocol: 'TCP' | 'UDP' = 'TCP',
  ) =>
    mergeService({
      clusterId: OWN_ID,
      service: localService({ ports: [{ name, protocol, port: 80 }] }),
      local: [],
      remotes: [
        { clusterId: 2, groups: groupsOfService(remoteService('us', 2, [], { backends: { '10.2.1.1': ports } })) },
      ],
      restored: nothingRestored,
    })[0]?.backends.map((b) => b.port);

  const both = { http: { Protocol: 'TCP', Port: 8080 }, admin: { Protocol: 'TCP', Port: 9090 } };
  test('are joined by name', () => assert.deepEqual(backends(both, 'admin'), [9090]));
  test('of another name are not joined', () => assert.deepEqual(backends(both, 'other'), []));
  test('of another protocol are not joined', () => assert.deepEqual(backends(both, 'http', 'UDP'), []));
  test('without a name take the only one there is', () =>
    assert.deepEqual(backends({ http: { Protocol: 'TCP', Port: 8080 } }, ''), [8080]));
  test('without a name take none of several', () => assert.deepEqual(backends(both, ''), []));
});

test('backends are in one order everywhere, each address and port once', () => {
  const mixed = [
    backend('10.2.1.1', 2),
    backend('10.1.1.10'),
    backend('10.1.1.9'),
    backend('10.1.1.9'),
    backend('10.1.1.9', 1, 80),
  ];
  assert.deepEqual(sortBackends(mixed), [
    backend('10.1.1.9', 1, 80),
    backend('10.1.1.9'),
    backend('10.1.1.10'),
    backend('10.2.1.1', 2),
  ]);
});

describe('besides its backends, a row has', () => {
  const rowOf = (
    service: Parameters<typeof localService>[0],
    local: Record<string, EndpointState>,
    sliceOverrides: Parameters<typeof slice>[1] = {},
  ) =>
    mergeService({
      clusterId: OWN_ID,
      service: localService(service),
      local: [groupOfLocalSlice(slice(local, sliceOverrides))],
      remotes: [{ clusterId: 2, groups: groupsOfService(remoteService('us', 2, ['10.2.1.1'])) }],
      restored: nothingRestored,
      restoredDraining: () => [backend('10.3.1.1', 3)],
    })[0]!;

  test('those that are not chosen but not gone either: connections to them may go on', () => {
    const local = { '10.1.1.1': 'ready', '10.1.1.2': 'terminating', '10.1.1.3': 'not-ready' } as const;
    const ips = (backends: readonly Backend[] = []) => backends.map(({ ip }) => ip);
    const home = rowOf({ affinity: 'local' }, local);
    assert.deepEqual(ips(home.backends), ['10.1.1.1']);
    assert.deepEqual(ips(home.draining), ['10.1.1.2', '10.1.1.3', '10.2.1.1', '10.3.1.1']);
    const away = rowOf({ affinity: 'remote' }, local);
    assert.deepEqual(ips(away.backends), ['10.2.1.1']);
    assert.deepEqual(ips(away.draining), ['10.1.1.1', '10.1.1.2', '10.1.1.3', '10.3.1.1']);
    const alone = rowOf({ global: false }, { '10.1.1.1': 'ready' });
    assert.ok(!('draining' in alone), 'nothing of other clusters');
  });

  test('the weight of the slice that a backend came from', () => {
    const { backends, draining } = rowOf({}, { '10.1.1.1': 'ready', '10.1.1.2': 'terminating' }, { weight: 3 });
    assert.deepEqual(backends, [{ ...backend('10.1.1.1'), weight: 3 }, backend('10.2.1.1', 2)]);
    assert.deepEqual(draining, [backend('10.1.1.2'), backend('10.3.1.1', 3)]);
  });

  test('the weights that another cluster gives its backends in the legacy form; what is no weight is left out', () => {
    const weighted = (weights: unknown) => {
      const service = {
        ...remoteService('us', 2, ['10.2.1.1', '10.2.1.2', '10.2.1.3']),
        'x-clustermesh': { weights },
      };
      const decoded = decodeGlobalService(JSON.stringify(service));
      assert.ok(decoded.ok);
      const [row] = mergeService({
        clusterId: OWN_ID,
        service: localService({}),
        local: [],
        remotes: [{ clusterId: 2, groups: groupsOfService(decoded.value) }],
        restored: nothingRestored,
        restoredDraining: () => [],
      });
      return Object.fromEntries((row?.backends ?? []).map(({ ip, weight }) => [ip, weight]));
    };
    const none = { '10.2.1.1': undefined, '10.2.1.2': undefined, '10.2.1.3': undefined };
    assert.deepEqual(weighted({ '10.2.1.2': 3, '10.9.9.9': 7 }), { ...none, '10.2.1.2': 3 });
    assert.deepEqual(weighted({ '10.2.1.2': 'many' }), none);
    assert.deepEqual(weighted(undefined), none);
  });

  test('the algorithm and the affinity that the service asks for', () => {
    const { flags, affinitySeconds } = rowOf({ lbAlgorithm: 'maglev', sessionAffinitySeconds: 60 }, {});
    assert.deepEqual([flags, affinitySeconds], [SERVICE_FLAG.maglev, 60]);
    const plain = rowOf({}, {});
    assert.deepEqual([plain.flags, plain.affinitySeconds], [0, undefined]);
  });
});
