import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { EndpointAddRequest } from '@clustermesh/contract';
import { checkEndpointRequest } from './request.ts';

const request: EndpointAddRequest = {
  id: 'default.web-0.abc',
  namespace: 'default',
  pod: 'web-0',
  labels: { app: 'web' },
  serviceAccount: '',
  interface: 'cmp1',
  hostMac: '02:00:00:00:00:01',
  podMac: '02:00:00:00:00:02',
  ipv4: '10.1.1.5',
};
const own = { cluster: 'eu', podCidr: '10.1.1.0/24', gatewayIp: '10.1.1.1' };

for (const [ipv4, refused] of [
  ['10.1.1.1', /ipv4 "10\.1\.1\.1" is the gateway address of this node's pod CIDR 10\.1\.1\.0\/24/],
  ['10.1.1.0', /is the network address of/],
  ['10.1.1.255', /is the broadcast address of/],
  ['10.1.0.255', /is no address of this node's pod CIDR/],
  ['10.1.2.0', /is no address of this node's pod CIDR/],
  ['10.1.1', /is no address of this node's pod CIDR/],
  ['fd00::1', /is no address of this node's pod CIDR/],
] as const) {
  test(`an endpoint cannot have the address ${ipv4}`, () => {
    assert.throws(() => checkEndpointRequest({ ...request, ipv4 }, own), refused);
  });
}

for (const [ipv4, podCidr] of [
  ['10.1.1.2', '10.1.1.0/24'],
  ['10.1.1.254', '10.1.1.0/24'],
  ['10.1.1.255', '10.1.0.0/16'],
  ['10.1.2.0', '10.1.0.0/16'],
  ['10.1.1.4', '10.1.1.4/31'],
  ['10.1.1.5', '10.1.1.5/32'],
  ['128.0.0.0', '0.0.0.0/0'],
] as const) {
  test(`an endpoint can have the address ${ipv4} of ${podCidr}`, () => {
    assert.equal(checkEndpointRequest({ ...request, ipv4 }, { ...own, podCidr }).ipv4, ipv4);
  });
}

const dual = { ...own, ipv6: { podCidr: 'fd00:1:1::/64', gatewayIp: 'fd00:1:1::1' } };

for (const [ipv6, refused] of [
  ['fd00:1:1::1', /ipv6 "fd00:1:1::1" is the gateway address of this node's pod CIDR fd00:1:1::\/64/],
  ['fd00:1:1::', /is the routers' address of/],
  ['fd00:1:2::5', /is no address of this node's pod CIDR/],
  ['10.1.1.5', /is no address of this node's pod CIDR/],
  ['fd00:1:1::5%eth0', /is no address of this node's pod CIDR/],
] as const) {
  test(`an endpoint cannot have the address ${ipv6}, beside one of IPv4`, () => {
    assert.throws(() => checkEndpointRequest({ ...request, ipv6 }, dual), refused);
  });
}

test('an endpoint has an IPv6 address where its node has a CIDR for it, in its one form', () => {
  assert.equal(checkEndpointRequest({ ...request, ipv6: 'FD00:1:1:0::05' }, dual).ipv6, 'fd00:1:1::5');
  assert.equal(checkEndpointRequest({ ...request, ipv6: '' }, dual).ipv6, undefined);
  assert.throws(() => checkEndpointRequest({ ...request, ipv6: 'fd00:1:1::5' }, own), /this node has no IPv6 pod CIDR/);
});

test('labels that no pod may set are named and do not count', () => {
  const reserved = { 'io.cilium.k8s.policy.cluster': 'us', 'io.kubernetes.pod.namespace': 'a;b' };
  const facts = checkEndpointRequest({ ...request, labels: { ...request.labels, ...reserved } }, own);
  assert.deepEqual(facts.ignoredLabels, Object.keys(reserved));
  assert.equal(facts.labels, checkEndpointRequest(request, own).labels);
});

test('named ports are kept as given, and refused all at once where they are none', () => {
  const http = { name: 'http', port: 8080, protocol: 'TCP' };
  assert.deepEqual(checkEndpointRequest({ ...request, namedPorts: [http] }, own).namedPorts, [http]);
  assert.equal('namedPorts' in checkEndpointRequest(request, own), false);
  const wrong = [
    { ...http, port: 0 },
    { ...http, protocol: 'GRE' },
  ];
  assert.throws(
    () => checkEndpointRequest({ ...request, namedPorts: wrong }, own),
    /namedPorts \{"name":"http","port":0,.*: port .*; namedPorts \{.*"GRE"\}: protocol /,
  );
});
