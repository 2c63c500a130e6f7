import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { repoRoot } from '@clustermesh/runtime';
import { parseTopology, podIpv6 } from './topology.ts';

test('derives every address from cluster id and node index', () => {
  const text = readFileSync(join(repoRoot(), 'test-kind/topologies/two-regions.yaml'), 'utf8');
  const [eu, us] = parseTopology(text, 'two-regions.yaml').clusters;
  assert.equal(eu?.controlPlaneIP, '172.31.1.2');
  assert.deepEqual(us?.nodes[1], {
    name: 'n2',
    zone: 'us-east-b',
    ip: '172.31.2.12',
    podCIDR: '10.2.2.0/24',
    gatewayIP: '10.2.2.1',
  });
});

test('fills in what is left out', () => {
  const [only] = parseTopology('clusters: [{ name: solo, id: 3 }]', 'x').clusters;
  assert.equal(only?.podCIDR, '10.3.0.0/16');
  assert.equal(only?.serviceCIDR, '10.98.0.0/16');
  assert.deepEqual(
    only?.nodes.map((node) => `${node.name} ${node.zone}`),
    ['n1 solo-a', 'n2 solo-b'],
  );
});

test('IPv6 comes with the same numbers, when it is wanted', () => {
  const text = 'clusters: [{ name: solo, id: 30, nodes: 2 }]';
  assert.equal(parseTopology(text, 'x').clusters[0]?.nodes[1]?.ipv6, undefined);
  const [solo] = parseTopology(`ipv6: true\n${text}`, 'x').clusters;
  assert.deepEqual(solo?.ipv6, {
    routerIP: 'fd31:30::1',
    serviceCIDR: 'fd96:30::/112',
    podCIDR: 'fd00:30::/32',
  });
  const node = solo!.nodes[1]!;
  assert.deepEqual(node.ipv6, { ip: 'fd31:30::12', podCIDR: 'fd00:30:2::/64', gatewayIP: 'fd00:30:2::1' });
  assert.equal(podIpv6(node, '10.30.2.17'), 'fd00:30:2::17');
});

test('timers are those of any cluster unless they are given', () => {
  assert.deepEqual(parseTopology('clusters: [{ name: solo, id: 3 }]', 'x').clusters[0]?.timers, {});
  const text =
    'clusters: [{ name: eu, id: 1 }, { name: us, id: 2 }]\ntimers: { agentLeaseSeconds: 5, nodeGraceMs: 6000 }';
  for (const { timers } of parseTopology(text, 'x').clusters)
    assert.deepEqual(timers, { agentLeaseSeconds: 5, nodeGraceMs: 6000 });
});

test('reports all problems of the fields at once', () => {
  const bad = 'clusters: [{ name: EU, id: 0, podCIDR: 10.1.2.3/16 }, { name: us, id: 2, colour: red }]';
  assert.throws(
    () => parseTopology(bad, 'x'),
    (error: Error) => ['EU', 'id 0', 'host bits', 'colour'].every((part) => error.message.includes(part)),
  );
});

test('reports what only shows between clusters', () => {
  const bad =
    'clusters: [{ name: eu, id: 1, nodes: [west-n1, cp] }, { name: eu, id: 1 }, { name: eu-west, id: 2, podCIDR: 10.1.128.0/17, nodes: [n1] }]';
  assert.throws(
    () => parseTopology(bad, 'x'),
    (error: Error) =>
      ['cluster name eu', 'cluster id 1', '"cp"', 'overlaps', 'kernel name eu-west-n1'].every((part) =>
        error.message.includes(part),
      ),
  );
});
