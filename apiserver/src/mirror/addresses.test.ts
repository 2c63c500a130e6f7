import assert from 'node:assert/strict';
import { isIPv6 } from 'node:net';
import { describe, it } from 'node:test';
import {
  type CanaryFamily,
  encodeEndpointSlice,
  encodeNode,
  makeNode,
  maskToBase64,
  type NodeInput,
} from '@clustermesh/contract';
import { openZstd } from '@clustermesh/runtime';
import { type AddressFacts, agreedRanges, NodeIps, takenCidr } from './addresses.ts';
import { judgeObject } from './validate.ts';

const us = { cluster: 'us', clusterId: 2, maxConnectedClusters: 255 } as const;
const zstd = openZstd();
const POD = 131_100;
const HOST = 1;
const REMOTE_NODE = 6;

const own = takenCidr('10.1.0.0/16', 'this cluster');

/** One range of IPv4 was agreed, and none of IPv6. */
const facts: AddressFacts = {
  agreed: agreedRanges({ id: 2, podCidr: '10.2.0.0/16', podCidrV6: '' }, own),
  nodeIps: new Set(['172.31.2.11', '10.2.1.1', 'fd00:2::11']),
  taken: [
    ...own,
    ...takenCidr('10.3.0.0/16', 'cluster ap'),
    ...takenCidr('', 'cluster sa'),
    ...takenCidr('fd00:1::/48', 'this cluster'),
  ],
};
const byHand: AddressFacts = { ...facts, agreed: undefined };
const both: AddressFacts = {
  ...facts,
  agreed: agreedRanges({ id: 2, podCidr: '10.2.0.0/16', podCidrV6: 'fd00:2::/32' }, own),
};

const judged = (family: CanaryFamily, name: string, value: string, held: AddressFacts) =>
  judgeObject(family, name, Buffer.from(value), us, held, zstd);
const judge = (...of: Parameters<typeof judged>) => judged(...of).problem;

function entry(name: string, identity: number, held: AddressFacts) {
  const [ip = '', length] = name.split('/');
  const mask = length === undefined ? null : maskToBase64(Number(length), ip.includes(':') ? 16 : 4);
  const value = { IP: ip, Mask: mask, HostIP: '172.31.2.11', ID: identity, Key: 0, Metadata: '' };
  return judge('ip', name, JSON.stringify(value), held);
}

function judgeService(backends: readonly string[], held: AddressFacts) {
  const ports = { http: { Protocol: 'TCP', Port: 80 } };
  const value = {
    ...{ cluster: 'us', clusterID: 2, namespace: 'shop', name: 'web', shared: true, includeExternal: true },
    frontends: { '10.96.0.1': ports },
    backends: Object.fromEntries(backends.map((ip) => [ip, ports])),
    hostnames: Object.fromEntries(backends.map((ip, index) => [ip, `web-${index}`])),
    aFieldOfTomorrow: 1,
  };
  return judged('services', 'shop/web', JSON.stringify(value), held);
}

const service = (backends: readonly string[], held: AddressFacts) => judgeService(backends, held).problem;

function slice(backends: readonly string[], held: AddressFacts) {
  const value = encodeEndpointSlice(
    {
      ...{
        cluster: 'us',
        clusterID: 2,
        namespace: 'shop',
        name: 'web-x2x4z',
        addressType: isIPv6(backends[0] ?? '') ? 'IPv6' : 'IPv4',
      },
      labels: { 'kubernetes.io/service-name': 'web' },
      endpoints: backends.map((ip) => ({ addresses: [ip], conditions: { ready: true } })),
      ports: [{ name: 'http', protocol: 'TCP', port: 80 }],
    },
    zstd,
  );
  return judgeObject('endpointslices', 'shop/web-x2x4z', value, us, held, zstd).problem;
}

const IPV6 = { gatewayIp: 'fd00:2:2::1', podCidr: 'fd00:2:2::/64' };
type NodeFields = Partial<Pick<NodeInput, 'internalIp' | 'gatewayIp' | 'podCidr' | 'ipv6'>>;

function judgeNode(fields: NodeFields, held: AddressFacts) {
  const defaults = { internalIp: '172.31.2.12', gatewayIp: '10.2.2.1', podCidr: '10.2.2.0/24' };
  const made = makeNode({ name: 'n2', cluster: 'us', clusterId: 2, labels: {}, ...defaults, ...fields });
  return judged('nodes', 'n2', encodeNode(made), held);
}
const node = (fields: NodeFields, held: AddressFacts) => judgeNode(fields, held).problem;

type Row = readonly [what: string, problem: string | undefined, expected: RegExp | undefined];
function table(rows: readonly Row[]) {
  for (const [what, problem, expected] of rows)
    it(`${what}: ${expected === undefined ? 'taken over' : 'quarantined'}`, () => {
      if (expected === undefined) assert.equal(problem, undefined);
      else assert.match(problem ?? '', expected);
    });
}

/** The host of a pod is where packets to it are sent: the node of another cluster, or anybody, must not be named as that. */
describe('hosts of ip entries', () => {
  const at = (host: string, held: AddressFacts) => {
    const value = { IP: '10.2.1.5', Mask: null, HostIP: host, ID: POD, Key: 0, Metadata: '' };
    return judge('ip', '10.2.1.5', JSON.stringify(value), held);
  };
  const strange =
    /^ip entry 10\.2\.1\.5 is at host 172\.31\.1\.11, which is no address of a node that the cluster has published$/;
  table([
    ['a node of the peer', at('172.31.2.11', facts), undefined],
    ['its IPv6 address', at('fd00:2::11', facts), undefined],
    ['none', at('', facts), undefined],
    ["this cluster's node", at('172.31.1.11', facts), strange],
    ['the same of a peer that was configured by hand', at('172.31.1.11', byHand), strange],
    ['loopback', at('127.0.0.1', facts), /is at host 127\.0\.0\.1, which is no address of a node/],
  ]);
});

describe("addresses of a peer's nodes", () => {
  const called = (name: string, internalIp: string) =>
    makeNode({
      name,
      cluster: 'us',
      clusterId: 2,
      labels: {},
      internalIp,
      gatewayIp: '10.2.2.1',
      podCidr: '10.2.2.0/24',
    });

  it('follow the nodes; one that two nodes have, while one is renamed, stays until the last of them goes', () => {
    const ips = new NodeIps();
    assert.equal(ips.set('old', called('old', '172.31.2.12')), true);
    assert.equal(ips.set('old', called('old', '172.31.2.12')), false, 'nothing new');
    assert.equal(ips.set('new', called('new', '172.31.2.12')), true);
    assert.equal(ips.set('old', undefined), true);
    assert.equal(ips.has('172.31.2.12'), true);
    assert.equal(ips.set('new', called('new', '172.31.2.13')), true);
    assert.deepEqual([ips.has('172.31.2.12'), ips.has('172.31.2.13'), ips.has('10.2.2.1')], [false, true, true]);
    ips.set('new', undefined);
    assert.deepEqual([ips.has('172.31.2.13'), ips.has('10.2.2.1')], [false, false]);
  });
});

describe('ip entries of a peer with an agreed pod CIDR', () => {
  const outside = /lies outside 10\.2\.0\.0\/16, which was agreed/;
  table([
    ['a pod', entry('10.2.1.5', POD, facts), undefined],
    ['a part of the pod CIDR', entry('10.2.4.0/24', POD, facts), undefined],
    ["this cluster's pod", entry('10.1.1.5', POD, facts), outside],
    ["another peer's pod", entry('10.3.1.5', POD, facts), outside],
    ['more than the pod CIDR', entry('10.0.0.0/8', POD, facts), outside],
    ['everything', entry('0.0.0.0/0', POD, facts), outside],
    ['an IPv6 pod', entry('fd00:2::5', POD, facts), /is of IPv6, for which no pod CIDR/],
    ['its gateway as host', entry('10.2.1.1', HOST, facts), undefined],
    ['its node as remote node', entry('172.31.2.11', REMOTE_NODE, facts), undefined],
    ['its IPv6 node as remote node', entry('fd00:2::11', REMOTE_NODE, facts), undefined],
    ['its node as a pod', entry('172.31.2.11', POD, facts), outside],
    ['a strange node as remote node', entry('172.31.1.11', REMOTE_NODE, facts), outside],
    [
      'a reserved identity for many',
      entry('10.2.4.0/24', HOST, facts),
      /reserved identity 6 for more than one address/,
    ],
  ]);
});

describe('ip entries of a peer that was configured by hand', () => {
  table([
    ['a pod', entry('10.9.1.5', POD, byHand), undefined],
    ['an IPv6 pod', entry('fd00:9::5', POD, byHand), undefined],
    ['a /8', entry('11.0.0.0/8', POD, byHand), undefined],
    ['a /7', entry('12.0.0.0/7', POD, byHand), /wider than a \/8/],
    ['an IPv6 /15', entry('fc00::/15', POD, byHand), /wider than a \/16/],
    ['loopback', entry('127.0.0.1', HOST, byHand), /is loopback/],
    ['IPv6 loopback', entry('::1', HOST, byHand), /loopback/],
    ['unspecified', entry('0.0.0.0', HOST, byHand), /unspecified/],
    ['link-local', entry('169.254.169.254', POD, byHand), /link-local/],
    ['around link-local', entry('169.0.0.0/8', POD, byHand), /link-local/],
    ['IPv6 link-local', entry('fe80::1', POD, byHand), /link-local/],
    ['multicast', entry('224.0.0.5', POD, byHand), /multicast/],
    ['IPv6 multicast', entry('ff02::1', POD, byHand), /multicast/],
    ['broadcast', entry('255.255.255.255', POD, byHand), /reserved/],
    ['IPv4 in IPv6', entry('::ffff:10.1.1.5', POD, byHand), /in disguise/],
    ["this cluster's pod", entry('10.1.1.5', POD, byHand), /overlaps 10\.1\.0\.0\/16 of this cluster/],
    ["around this cluster's pods", entry('10.0.0.0/8', POD, byHand), /overlaps 10\.1\.0\.0\/16 of this cluster/],
    ["another peer's pod", entry('10.3.1.5', POD, byHand), /overlaps 10\.3\.0\.0\/16 of cluster ap/],
    ["this cluster's IPv6 pod", entry('fd00:1::5', POD, byHand), /overlaps fd00:1::\/48 of this cluster/],
    ["around this cluster's IPv6 pods", entry('fd00::/16', POD, byHand), /overlaps fd00:1::\/48 of this cluster/],
  ]);
});

describe('nodes', () => {
  table([
    ['a node', node({}, facts), undefined],
    ['with a strange pod CIDR', node({ podCidr: '10.4.0.0/24' }, facts), /pod CIDR 10\.4\.0\.0\/24 lies outside/],
    ['with too wide a pod CIDR', node({ podCidr: '10.0.0.0/8' }, facts), /pod CIDR 10\.0\.0\.0\/8 lies outside/],
    ["at this cluster's pod", node({ internalIp: '10.1.1.5' }, facts), /address 10\.1\.1\.5\/32 overlaps/],
    ['at loopback', node({ internalIp: '127.0.0.1' }, facts), /is loopback/],
    ['by hand', node({ podCidr: '10.4.0.0/24', gatewayIp: '10.4.0.1' }, byHand), undefined],
    ["by hand, with this cluster's pod CIDR", node({ podCidr: '10.1.0.0/24' }, byHand), /overlaps .* of this cluster/],
  ]);
});

describe('backends of services', () => {
  table([
    ['pods', service(['10.2.1.5', '10.2.1.6'], facts), undefined],
    ['none', service([], facts), undefined],
    ['a pod on the network of its node', service(['10.2.1.5', '172.31.2.11'], facts), undefined],
    ["this cluster's pod", service(['10.2.1.5', '10.1.1.5'], facts), /backend 10\.1\.1\.5\/32 lies outside/],
    ['a host of nobody', service(['172.31.1.2'], facts), /lies outside/],
    ['by hand, a pod', service(['10.9.1.5'], byHand), undefined],
    ['by hand, loopback', service(['127.0.0.1'], byHand), /is loopback/],
  ]);
});

describe('backends of endpoint slices', () => {
  table([
    ['pods', slice(['10.2.1.5', '10.2.1.6'], facts), undefined],
    ['none', slice([], facts), undefined],
    ['a pod on the network of its node', slice(['10.2.1.5', '172.31.2.11'], facts), undefined],
    [
      "this cluster's pod",
      slice(['10.2.1.5', '10.1.1.5'], facts),
      /web-x2x4z: its backend 10\.1\.1\.5\/32 lies outside/,
    ],
    ['a host of nobody', slice(['172.31.1.2'], facts), /lies outside/],
    ['by hand, a pod', slice(['10.9.1.5'], byHand), undefined],
    ["by hand, another peer's pod", slice(['10.3.1.5'], byHand), /overlaps 10\.3\.0\.0\/16 of cluster ap/],
    ['by hand, loopback', slice(['127.0.0.1'], byHand), /is loopback/],
  ]);
});

describe('two address families', () => {
  const outside = /lies outside fd00:2::\/32, which was agreed/;
  const none = /is of IPv6, for which no pod CIDR .* was agreed .*: set cluster\.podCIDRv6 of its apiserver/;
  table([
    ['a pod', entry('fd00:2:1::5', POD, both), undefined],
    ['a pod of IPv4', entry('10.2.1.5', POD, both), undefined],
    ['a part of the pod CIDR', entry('fd00:2:1::/64', POD, both), undefined],
    ["this cluster's pod", entry('fd00:1:1::5', POD, both), outside],
    ['more than the pod CIDR', entry('fd00::/16', POD, both), outside],
    ['everything', entry('::/0', POD, both), outside],
    ['a global address', entry('2001:db8::1', POD, both), outside],
    ['a node', node({ ipv6: IPV6 }, both), undefined],
    ['a node with a strange pod CIDR', node({ ipv6: { ...IPV6, podCidr: 'fd00:3::/64' } }, both), outside],
    [
      "a node at this cluster's pod",
      node({ ipv6: { ...IPV6, internalIp: 'fd00:1::5' } }, both),
      /overlaps fd00:1::\/48/,
    ],
    ['backends', service(['10.2.1.5', 'fd00:2:1::5'], both), undefined],
    ['a strange backend', service(['10.2.1.5', 'fd00:3:1::5'], both), outside],
    ['a slice', slice(['fd00:2:1::5'], both), undefined],
    ['a slice with a strange backend', slice(['fd00:3:1::5'], both), outside],
    ['a slice of a family that was not agreed', slice(['fd00:2:1::5'], facts), none],
    ['backends of a family that was not agreed', service(['10.2.1.5', 'fd00:2:1::5'], facts), none],
  ]);

  it('a node of a family that was not agreed is taken over without it', () => {
    const { value, problem } = judgeNode({ ipv6: IPV6 }, facts);
    assert.match(problem ?? '', /^node n2, taken over without IPv6: its pod CIDR fd00:2:2::\/64 is of IPv6/);
    const left = JSON.parse(value?.toString() ?? '{}');
    assert.deepEqual(
      left,
      JSON.parse(judgeNode({ ipv6: undefined }, facts).value?.toString() ?? '{}'),
      'as if of IPv4 only',
    );
  });

  it('a service is taken over without the backends of a family that was not agreed, and with every other field', () => {
    const { value } = judgeService(['10.2.1.5', 'fd00:2:1::5', 'fd00:2::11'], facts);
    const left = JSON.parse(value?.toString() ?? '{}');
    assert.deepEqual(Object.keys(left.backends), ['10.2.1.5', 'fd00:2::11'], 'one is at a node');
    assert.deepEqual(left.hostnames, { '10.2.1.5': 'web-0', 'fd00:2::11': 'web-2' });
    assert.equal(left.aFieldOfTomorrow, 1);
    const last = judgeService(['fd00:2:1::5'], facts).value;
    assert.deepEqual(JSON.parse(last?.toString() ?? '{}').backends, {}, 'none is left: those before are not either');
  });

  it('what is strange in the family that was agreed is refused as a whole', () => {
    const { value, problem } = judgeService(['10.1.1.5', 'fd00:2:1::5'], facts);
    assert.equal(value, undefined);
    assert.match(problem ?? '', /10\.1\.1\.5\/32 lies outside/);
  });

  it('what is fine is mirrored byte for byte', () => {
    const text = '{"cluster":"us", "clusterID":2,"namespace":"shop","name":"web","backends":{"fd00:2:1:0::5":{}}}';
    assert.equal(judged('services', 'shop/web', text, both).value?.toString(), text);
  });

  it("a range that overlaps this cluster's own was not agreed", () => {
    const later = [...own, ...takenCidr('fd00:2::/48', 'this cluster')];
    const agreed = agreedRanges({ id: 2, podCidr: '10.2.0.0/16', podCidrV6: 'fd00:2::/32' }, later);
    assert.match(entry('fd00:2:1::5', POD, { ...both, agreed }) ?? '', none);
    assert.equal(entry('10.2.1.5', POD, { ...both, agreed }), undefined);
    const neither = agreedRanges({ id: 2, podCidr: '10.1.0.0/16', podCidrV6: '' }, own);
    assert.match(entry('10.9.1.5', POD, { ...both, agreed: neither }) ?? '', /is of IPv4, for which no pod CIDR/);
  });
});
