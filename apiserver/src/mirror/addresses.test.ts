import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  type CanaryFamily,
  encodeEndpointSlice,
  encodeNode,
  makeNode,
  maskToBase64,
  parseCidr,
} from '@clustermesh/contract';
import { openZstd } from '@clustermesh/runtime';
import { type AddressFacts, takenCidr } from './addresses.ts';
import { objectProblem } from './validate.ts';

const us = { cluster: 'us', clusterId: 2, maxConnectedClusters: 255 } as const;
const zstd = openZstd();
const POD = 131_100;
const HOST = 1;
const REMOTE_NODE = 6;

const facts: AddressFacts = {
  agreed: parseCidr('10.2.0.0/16'),
  nodeIps: new Set(['172.31.2.11', '10.2.1.1', 'fd00:2::11']),
  taken: [
    ...takenCidr('10.1.0.0/16', 'this cluster'),
    ...takenCidr('10.3.0.0/16', 'cluster ap'),
    ...takenCidr('', 'cluster sa'),
    ...takenCidr('fd00:1::/48', 'this cluster'),
  ],
};
const byHand: AddressFacts = { ...facts, agreed: undefined };

const judge = (family: CanaryFamily, name: string, value: string, held: AddressFacts) =>
  objectProblem(family, name, Buffer.from(value), us, held, zstd);

function entry(name: string, identity: number, held: AddressFacts) {
  const [ip = '', length] = name.split('/');
  const mask = length === undefined ? null : maskToBase64(Number(length), ip.includes(':') ? 16 : 4);
  const value = { IP: ip, Mask: mask, HostIP: '172.31.2.11', ID: identity, Key: 0, Metadata: '' };
  return judge('ip', name, JSON.stringify(value), held);
}

function service(backends: readonly string[], held: AddressFacts) {
  const ports = { http: { Protocol: 'TCP', Port: 80 } };
  const value = {
    ...{ cluster: 'us', clusterID: 2, namespace: 'shop', name: 'web', shared: true, includeExternal: true },
    frontends: { '10.96.0.1': ports },
    backends: Object.fromEntries(backends.map((ip) => [ip, ports])),
  };
  return judge('services', 'shop/web', JSON.stringify(value), held);
}

function slice(backends: readonly string[], held: AddressFacts) {
  const value = encodeEndpointSlice(
    {
      ...{ cluster: 'us', clusterID: 2, namespace: 'shop', name: 'web-x2x4z', addressType: 'IPv4' },
      labels: { 'kubernetes.io/service-name': 'web' },
      endpoints: backends.map((ip) => ({ addresses: [ip], conditions: { ready: true } })),
      ports: [{ name: 'http', protocol: 'TCP', port: 80 }],
    },
    zstd,
  );
  return objectProblem('endpointslices', 'shop/web-x2x4z', value, us, held, zstd);
}

function node(fields: { internalIp?: string; gatewayIp?: string; podCidr?: string }, held: AddressFacts) {
  const defaults = { internalIp: '172.31.2.12', gatewayIp: '10.2.2.1', podCidr: '10.2.2.0/24' };
  const made = makeNode({ name: 'n2', cluster: 'us', clusterId: 2, labels: {}, ...defaults, ...fields });
  return judge('nodes', 'n2', encodeNode(made), held);
}

type Row = readonly [what: string, problem: string | undefined, expected: RegExp | undefined];
function table(rows: readonly Row[]) {
  for (const [what, problem, expected] of rows)
    it(`${what}: ${expected === undefined ? 'taken over' : 'quarantined'}`, () => {
      if (expected === undefined) assert.equal(problem, undefined);
      else assert.match(problem ?? '', expected);
    });
}

describe('ip entries of a peer with an agreed pod CIDR', () => {
  const outside = /lies outside 10\.2\.0\.0\/16, which was agreed/;
  table([
    ['a pod', entry('10.2.1.5', POD, facts), undefined],
    ['a part of the pod CIDR', entry('10.2.4.0/24', POD, facts), undefined],
    ["this cluster's pod", entry('10.1.1.5', POD, facts), outside],
    ["another peer's pod", entry('10.3.1.5', POD, facts), outside],
    ['more than the pod CIDR', entry('10.0.0.0/8', POD, facts), outside],
    ['everything', entry('0.0.0.0/0', POD, facts), outside],
    ['an IPv6 pod', entry('fd00:2::5', POD, facts), outside],
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
