import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  type EndpointRecord,
  type IpEntry,
  type MeshNode,
  makeNode,
  maskToBase64,
  type NodeRecord,
} from '@clustermesh/contract';
import fc from 'fast-check';
import type { IpcacheRow, NodeRow } from '../datapath/types.ts';
import { createDesired, type DesiredOptions } from '../desired.ts';
import type { PeerRef } from '../mesh/peer.ts';
import { createClaims } from './claims.ts';
import { createNodeIds } from './node-ids.ts';
import { localNodeClaims, remoteIpClaims, remoteNodeClaims } from './rows.ts';

const US: PeerRef = { name: 'us', id: 2 };
const AP: PeerRef = { name: 'ap', id: 3 };
const n2: NodeRecord = { name: 'n2', internalIp: '172.31.1.12', gatewayIp: '10.1.2.1', podCidr: '10.1.2.0/24' };
const endpoint = (id: string, ipv4: string, identity = 65_999): EndpointRecord => ({
  id,
  namespace: 'default',
  pod: id,
  labels: 'k8s:a=b;',
  identity,
  ipv4,
});
const entry = (ip: string, overrides: Partial<IpEntry> = {}): IpEntry => ({
  IP: ip,
  HostIP: '172.31.2.11',
  ID: 131_372,
  Key: 0,
  Metadata: '',
  ...overrides,
});
const usNode: MeshNode = makeNode({
  name: 'p1',
  cluster: 'us',
  clusterId: 2,
  internalIp: '172.31.2.11',
  gatewayIp: '10.2.1.1',
  podCidr: '10.2.1.0/24',
  labels: {},
});

function rig(ipv6?: DesiredOptions['own']['ipv6'], direct: readonly string[] = []) {
  const settled = new Set<string>();
  const gone = new Set<number>();
  const settledNodes = new Set<string>();
  const ipcache = new Map<string, IpcacheRow>();
  const nodes = new Map<string, NodeRow>();
  const sink = <Row>(map: Map<string, Row>) => ({
    set: (key: string, row: Row) => void map.set(key, row),
    delete: (key: string) => void map.delete(key),
  });
  const desired = createDesired({
    own: {
      cluster: 'eu',
      maxConnectedClusters: 255,
      clusterId: 1,
      nodeIp: '172.31.1.11',
      gatewayIp: '10.1.1.1',
      podCidr: '10.1.1.0/24',
      ipv6,
    },
    allowHost: true,
    view: {
      isSettled: (id, family) => settled.has(`${id}/${family}`),
      arePoliciesHeard: () => true,
      areSlicesHeard: () => false,
      isGone: (id) => gone.has(id),
      isNodeSettled: (ip) => settledNodes.has(ip),
    },
    serviceV2: 'prefer-legacy',
    onChanged: () => {},
    isDirect: (cluster) => direct.includes(cluster),
  });
  const flush = () =>
    desired.flush({
      ipcache: sink(ipcache),
      nodes: sink(nodes),
      services: sink(new Map()),
      policies: sink(new Map()),
      policyStates: sink(new Map()),
    });
  flush();
  return { desired, settled, gone, settledNodes, ipcache, nodes, flush };
}
const shown = (rows: ReadonlyMap<string, IpcacheRow>) =>
  Object.fromEntries(
    [...rows.values()].map((row) => [
      row.prefix,
      `${row.identity} of ${row.clusterId} via ${row.tunnelEndpoint ?? '-'}`,
    ]),
  );

test('with nothing known, every lookup still ends in an identity', () => {
  assert.deepEqual(shown(rig().ipcache), {
    '0.0.0.0/0': '2 of 0 via -',
    '::/0': '10 of 0 via -',
    '172.31.1.11/32': '1 of 1 via -',
    '10.1.1.1/32': '1 of 1 via -',
  });
});

test('own endpoints, other nodes, their endpoints and peers, then all withdrawn again', () => {
  const r = rig();
  const start = shown(r.ipcache);
  r.desired.ownEndpoint('a', { ips: ['10.1.1.5'], identity: 65_999, endpointId: 1, labels: '' });
  r.desired.node('n2', n2);
  r.desired.nodeEndpoint('n2', 'b', endpoint('b', '10.1.2.5'), n2);
  r.desired.peerNode(US, 'p1', usNode);
  r.desired.peerIp(US, '10.2.1.5', entry('10.2.1.5'));
  r.flush();
  assert.deepEqual(shown(r.ipcache), {
    ...start,
    '10.1.1.5/32': '65999 of 1 via -',
    '172.31.1.12/32': '6 of 1 via -',
    '10.1.2.1/32': '6 of 1 via 172.31.1.12',
    '10.1.2.0/24': '3 of 1 via 172.31.1.12',
    '10.1.2.5/32': '65999 of 1 via 172.31.1.12',
    '172.31.2.11/32': '6 of 2 via -',
    '10.2.1.1/32': '6 of 2 via 172.31.2.11',
    '10.2.1.0/24': '3 of 2 via 172.31.2.11',
    '10.2.1.5/32': '131372 of 2 via 172.31.2.11',
  });
  assert.deepEqual(
    [...r.nodes.values()].map((row) => `${row.ip} ${row.clusterId} ${row.nodeId}`),
    ['172.31.1.11 1 1', '172.31.1.12 1 2', '172.31.2.11 2 3'],
  );
  r.desired.ownEndpoint('a', undefined);
  r.desired.nodeEndpoint('n2', 'b', undefined, undefined);
  r.desired.node('n2', undefined);
  r.desired.peerNode(US, 'p1', undefined);
  r.desired.peerIp(US, '10.2.1.5', undefined);
  r.flush();
  assert.deepEqual(shown(r.ipcache), start);
  assert.deepEqual([...r.nodes.keys()], ['172.31.1.11']);
});

describe('a peer', () => {
  test('cannot override what this cluster knows of itself, whoever speaks first', () => {
    for (const peerFirst of [true, false]) {
      const r = rig();
      const steps = [
        () => {
          r.desired.peerIp(US, '10.1.1.5', entry('10.1.1.5'));
          r.desired.peerIp(US, '172.31.1.11', entry('172.31.1.11'));
          r.desired.peerIp(US, '10.1.2.5', entry('10.1.2.5'));
        },
        () => {
          r.desired.ownEndpoint('a', { ips: ['10.1.1.5'], identity: 65_999, endpointId: 1, labels: '' });
          r.desired.nodeEndpoint('n2', 'b', endpoint('b', '10.1.2.5'), n2);
        },
      ];
      for (const step of peerFirst ? steps : steps.reverse()) {
        step();
        r.flush();
      }
      const rows = shown(r.ipcache);
      assert.equal(rows['10.1.1.5/32'], '65999 of 1 via -');
      assert.equal(rows['172.31.1.11/32'], '1 of 1 via -');
      assert.equal(rows['10.1.2.5/32'], '65999 of 1 via 172.31.1.12');
    }
  });

  test('cannot claim the default route, nor addresses of pods that this cluster might have, whoever speaks first', () => {
    for (const peerFirst of [true, false]) {
      const r = rig();
      const peerSpeaks = () => {
        for (const [ip, mask] of [
          ['0.0.0.0', 'AAAAAA=='],
          ['10.1.1.77', undefined],
          ['10.1.2.77', undefined],
          ['10.1.2.128', '////gA=='],
        ] as const) {
          const claimed = entry(ip, { Mask: mask });
          r.desired.peerIp(US, mask === undefined ? ip : `${ip}/x`, claimed);
        }
        r.flush();
      };
      if (peerFirst) peerSpeaks();
      r.desired.node('n2', n2);
      r.flush();
      if (!peerFirst) peerSpeaks();
      assert.deepEqual(
        [...r.ipcache.values()].filter((row) => row.clusterId === 2),
        [],
      );
      assert.equal(r.ipcache.get('0.0.0.0/0')?.identity, 2);
      assert.match(r.desired.problems().join(), /^3 addresses .* claimed by other clusters/);
      // A node that leaves gives its addresses free.
      r.desired.node('n2', undefined);
      r.flush();
      assert.deepEqual(
        [...r.ipcache.values()]
          .filter((row) => row.clusterId === 2)
          .map((row) => row.prefix)
          .sort(),
        ['10.1.2.128/25', '10.1.2.77/32'],
      );
    }
  });

  test('that claims what another peer claims wins or loses regardless of order, and the other takes over when it goes', () => {
    for (const order of [
      [US, AP],
      [AP, US],
    ]) {
      const r = rig();
      for (const peer of order) {
        r.desired.peerIp(peer, '10.9.9.9', entry('10.9.9.9', { ID: peer.id * 65_536 }));
        r.flush();
      }
      assert.equal(r.ipcache.get('10.9.9.9/32')?.clusterId, 3);
      r.desired.peerIp(AP, '10.9.9.9', undefined);
      r.flush();
      assert.equal(r.ipcache.get('10.9.9.9/32')?.clusterId, 2);
    }
  });

  test('entries without a host, of the host itself, and with a mask', () => {
    assert.equal(remoteIpClaims(entry('10.2.1.5', { HostIP: '' }), 2)[0]?.row.tunnelEndpoint, null);
    assert.equal(remoteIpClaims(entry('172.31.2.11'), 2)[0]?.row.tunnelEndpoint, null);
    assert.equal(remoteIpClaims(entry('10.2.3.7', { Mask: '////AA==' }), 2)[0]?.key, '10.2.3.0/24');
    assert.equal(remoteIpClaims(entry('fd00:2:3:4::7', { Mask: maskToBase64(48, 16) }), 2)[0]?.key, 'fd00:2:3::/48');
    assert.deepEqual(remoteIpClaims(entry('nonsense'), 2), []);
  });

  test('nodes without an underlay address have no rows; one of IPv6 will do', () => {
    const withAddress = (IP: string) => ({ ...usNode, IPAddresses: [{ Type: 'InternalIP', IP }] });
    assert.deepEqual(remoteNodeClaims(withAddress('nonsense'), 2), []);
    const claims = remoteNodeClaims(withAddress('FD31::2'), 2);
    assert.deepEqual(
      claims.map(({ key, row }) => [key, row.tunnelEndpoint]),
      [
        ['fd31::2/128', null],
        ['10.2.1.0/24', 'fd31::2'],
      ],
    );
  });
});

test('dual stack: every address has its row, in one spelling; tunnels end at the IPv4 underlay; pod CIDRs are guarded', () => {
  const ipv6 = (n: number, net: number) => ({
    internalIp: `fd31::${n}:11`,
    gatewayIp: `fd00:${n}:${net}::1`,
    podCidr: `fd00:${n}:${net}::/64`,
  });
  const r = rig(ipv6(1, 1));
  const start = shown(r.ipcache);
  assert.equal(start['fd00:1:1::1/128'], '1 of 1 via -');
  assert.equal(start['fd31::1:11/128'], '1 of 1 via -');
  const dualN2 = { ...n2, ipv6: { ...ipv6(1, 2), internalIp: 'fd31::1:12' } };
  const dualUs = makeNode({
    ...{ name: 'p1', cluster: 'us', clusterId: 2, internalIp: '172.31.2.11', gatewayIp: '10.2.1.1' },
    ...{ podCidr: '10.2.1.0/24', labels: {}, ipv6: ipv6(2, 1) },
  });
  r.desired.ownEndpoint('a', { ips: ['10.1.1.5', 'fd00:1:1::5'], identity: 65_999, endpointId: 1, labels: '' });
  r.desired.node('n2', dualN2);
  r.desired.nodeEndpoint('n2', 'b', { ...endpoint('b', '10.1.2.5'), ipv6: 'fd00:1:2::5' }, dualN2);
  r.desired.peerNode(US, 'p1', dualUs);
  r.desired.peerIp(US, 'FD00:2:1:0::5', entry('FD00:2:1:0::5'));
  r.desired.peerIp(US, 'fd00:1:1::66', entry('fd00:1:1::66')); // ours: not a peer's to claim
  r.desired.peerIp(US, 'fd00:1:2::66', entry('fd00:1:2::66'));
  r.flush();
  const seen = Object.fromEntries(
    Object.entries(shown(r.ipcache)).filter(([key]) => key.includes(':') && !(key in start)),
  );
  assert.deepEqual(seen, {
    'fd00:1:1::5/128': '65999 of 1 via -',
    'fd00:1:2::5/128': '65999 of 1 via 172.31.1.12',
    'fd31::1:12/128': '6 of 1 via -',
    'fd00:1:2::1/128': '6 of 1 via 172.31.1.12',
    'fd00:1:2::/64': '3 of 1 via 172.31.1.12',
    'fd31::2:11/128': '6 of 2 via -',
    'fd00:2:1::1/128': '6 of 2 via 172.31.2.11',
    'fd00:2:1::/64': '3 of 2 via 172.31.2.11',
    'fd00:2:1::5/128': '131372 of 2 via 172.31.2.11',
  });
  assert.deepEqual([...r.nodes.keys()].sort(), [
    ...['172.31.1.11', '172.31.1.12', '172.31.2.11', 'fd31::1:11', 'fd31::1:12', 'fd31::2:11'],
  ]);
  assert.match(r.desired.problems().join(), /2 addresses in this cluster's pod CIDRs/);
  r.desired.ownEndpoint('a', undefined);
  r.desired.node('n2', undefined);
  r.desired.nodeEndpoint('n2', 'b', undefined, undefined);
  r.desired.peerNode(US, 'p1', undefined);
  for (const ip of ['FD00:2:1:0::5', 'fd00:1:1::66', 'fd00:1:2::66']) r.desired.peerIp(US, ip, undefined);
  r.flush();
  assert.deepEqual(shown(r.ipcache), start);
});

test('a mixed mesh: one peer is reached directly, the other by the tunnel, and what lies behind no node by neither', () => {
  const r = rig(undefined, ['us']);
  r.desired.peerNode(US, 'p1', usNode);
  r.desired.peerIp(US, '10.2.1.5', entry('10.2.1.5'));
  r.desired.peerIp(AP, '10.3.1.5', entry('10.3.1.5'));
  r.flush();
  const direct = [...r.ipcache.values()].filter((row) => row.direct).map((row) => row.prefix);
  assert.deepEqual(direct.sort(), ['10.2.1.0/24', '10.2.1.1/32', '10.2.1.5/32']);
  assert.equal(r.ipcache.get('10.3.1.5/32')?.tunnelEndpoint, '172.31.2.11');
});

test('a pod CIDR given by one of its addresses is programmed as its network', () => {
  const keys = localNodeClaims({ ...n2, podCidr: '10.1.2.77/24' }, 1).map((claim) => claim.key);
  assert.ok(keys.includes('10.1.2.0/24'));
});

describe('restored rows', () => {
  const row = (prefix: string, clusterId: number, tunnelEndpoint: string | null = null): [string, IpcacheRow] => [
    prefix,
    { prefix, identity: 99_999, clusterId, tunnelEndpoint, encryptKey: 0 },
  ];
  const held = new Map([
    row('10.2.1.5/32', 2, '172.31.2.11'),
    row('10.1.2.5/32', 1, '172.31.1.12'),
    row('172.31.1.12/32', 1),
    row('10.1.1.5/32', 1),
    row('10.3.0.0/16', 0),
  ]);
  const restored = () => {
    const r = rig();
    for (const [key, value] of held) r.ipcache.set(key, value);
    r.desired.restore({
      ipcache: held,
      services: new Map(),
      nodes: new Map([['172.31.2.11', { ip: '172.31.2.11', clusterId: 2, nodeId: 42 }]]),
      policies: new Map(),
      policyStates: new Map(),
      endpointIds: [],
    });
    r.flush();
    return r;
  };

  test('of a peer stay until both of its families have synced', () => {
    const r = restored();
    for (const family of ['ip', 'services']) r.settled.add(`2/${family}`);
    r.desired.sourcesChanged();
    r.flush();
    assert.ok(r.ipcache.has('10.2.1.5/32') && r.nodes.has('172.31.2.11'));
    r.settled.add('2/nodes');
    r.desired.sourcesChanged();
    r.flush();
    assert.ok(!r.ipcache.has('10.2.1.5/32') && !r.nodes.has('172.31.2.11'));
  });

  test('of another node of this cluster stay until that node has spoken', () => {
    const r = restored();
    assert.ok(r.ipcache.has('10.1.2.5/32') && r.ipcache.has('172.31.1.12/32'));
    r.settledNodes.add('172.31.1.12');
    r.desired.sourcesChanged();
    r.flush();
    assert.ok(!r.ipcache.has('10.1.2.5/32') && !r.ipcache.has('172.31.1.12/32'));
  });

  test('of this node and of nobody go at once: the disk and the config are the truth', () => {
    const r = restored();
    assert.ok(!r.ipcache.has('10.1.1.5/32') && !r.ipcache.has('10.3.0.0/16'));
  });

  test('of a cluster that left go at once', () => {
    const r = restored();
    r.gone.add(2);
    r.desired.sourcesChanged();
    r.flush();
    assert.ok(!r.ipcache.has('10.2.1.5/32'));
  });

  test('give way to what their source says, also before it is complete', () => {
    const r = restored();
    r.desired.peerIp(US, '10.2.1.5', entry('10.2.1.5'));
    r.flush();
    assert.equal(r.ipcache.get('10.2.1.5/32')?.identity, 131_372);
  });

  test('of nodes keep their numbers when their source confirms them', () => {
    const r = restored();
    r.desired.peerNode(US, 'p1', usNode);
    r.settled.add('2/nodes');
    r.desired.sourcesChanged();
    r.flush();
    assert.equal(r.nodes.get('172.31.2.11')?.nodeId, 42);
  });
});

test('node numbers are not shared, survive, and are free again after release', () => {
  const ids = createNodeIds();
  ids.restore([{ ip: 'a', clusterId: 1, nodeId: 2 }]);
  assert.deepEqual([ids.idOf('b'), ids.idOf('a'), ids.idOf('c')], [1, 2, 3]);
  ids.release('b');
  assert.equal(new Set([ids.idOf('d'), ids.idOf('a'), ids.idOf('c')]).size, 3);
});

test('property: claims come to the same rows in any order, and to nothing when all are withdrawn', () => {
  const source = fc.record({
    name: fc.constantFrom('a', 'b', 'c', 'd'),
    keys: fc.subarray(['x', 'y', 'z']),
    rank: fc.nat(2),
  });
  fc.assert(
    fc.property(fc.uniqueArray(source, { selector: (s) => s.name }), fc.func(fc.nat()), (sources, shuffle) => {
      const run = (list: typeof sources) => {
        const claims = createClaims<{ by: string; clusterId: number }>({ isSettled: () => true });
        const rows = new Map<string, { by: string; clusterId: number }>();
        const sink = {
          set: (key: string, row: { by: string; clusterId: number }) => void rows.set(key, row),
          delete: (key: string) => void rows.delete(key),
        };
        for (const { name, keys, rank } of list) {
          claims.setClaims(
            name,
            keys.map((key) => ({ key, rank, row: { by: name, clusterId: 1 } })),
          );
          claims.flush(sink);
        }
        const result = Object.fromEntries([...rows].sort());
        for (const { name } of list) claims.setClaims(name, []);
        claims.flush(sink);
        assert.equal(rows.size, 0);
        return result;
      };
      assert.deepEqual(run(sources), run([...sources].sort((a, b) => shuffle(a.name) - shuffle(b.name))));
    }),
  );
});

test('property: single claims come to the same rows as sets of one', () => {
  const change = fc.record({
    source: fc.constantFrom('a', 'b', 'c'),
    key: fc.constantFrom('x', 'y'),
    identity: fc.option(fc.nat(3), { nil: undefined }),
    rank: fc.nat(2),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 30 }), (changes) => {
      const [single, sets] = [0, 1].map(() =>
        createClaims<{ clusterId: number; by: string }>({ isSettled: () => true }),
      );
      const kernels = [new Map<string, object>(), new Map<string, object>()] as const;
      const sinkOf = (rows: Map<string, object>) => ({
        set: (key: string, row: object) => void rows.set(key, row),
        delete: (key: string) => void rows.delete(key),
      });
      for (const { source, key, identity, rank } of changes) {
        const row = { by: `${source}${identity}`, clusterId: 1 };
        const claim = identity === undefined ? undefined : { key, rank, row };
        // Sources of equal rank are ordered by name: the names must be so in both.
        single!.setClaim(source, key, claim);
        sets!.setClaims(`${source}/${key}`, claim === undefined ? [] : [claim]);
        single!.flush(sinkOf(kernels[0]));
        sets!.flush(sinkOf(kernels[1]));
        assert.deepEqual([...kernels[0]].sort(), [...kernels[1]].sort());
      }
    }),
  );
});
