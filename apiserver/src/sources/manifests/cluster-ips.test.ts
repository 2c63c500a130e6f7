import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cidrContains, ipv4Contains, parseCidr } from '@clustermesh/contract';
import { allocateClusterIps, type ClusterIpRequest } from './cluster-ips.ts';

const CIDR = '10.96.0.0/24';
const auto = (service: string): ClusterIpRequest => ({ service, explicit: undefined });
const fixed = (service: string, explicit: string): ClusterIpRequest => ({ service, explicit });
const none = new Map<string, string>();

test('addresses lie in the CIDR, differ, and do not depend on the order of arrival', () => {
  const names = Array.from({ length: 100 }, (_, index) => auto(`shop/service-${index}`));
  const forward = allocateClusterIps(names, none, CIDR);
  const backward = allocateClusterIps([...names].reverse(), none, CIDR);
  assert.deepEqual(forward.problems, []);
  assert.equal(new Set(forward.assigned.values()).size, 100);
  assert.deepEqual([...forward.assigned].sort(), [...backward.assigned].sort());
  for (const ip of forward.assigned.values()) assert.ok(ipv4Contains(parseCidr(CIDR)!, ip), ip);
});

test('a service keeps its address whatever comes and goes around it', () => {
  const first = allocateClusterIps([auto('a/x')], none, CIDR).assigned;
  const many = Array.from({ length: 200 }, (_, index) => auto(`a/s-${index}`));
  const crowded = allocateClusterIps([...many, auto('a/x')], first, CIDR).assigned;
  assert.equal(crowded.get('a/x'), first.get('a/x'));
  assert.equal(allocateClusterIps([auto('a/x')], crowded, CIDR).assigned.get('a/x'), first.get('a/x'));
});

test('a deleted service frees its address', () => {
  const first = allocateClusterIps([fixed('a/x', '10.96.0.77')], none, CIDR);
  const second = allocateClusterIps([fixed('a/y', '10.96.0.77')], first.assigned, CIDR);
  assert.deepEqual([...second.assigned], [['a/y', '10.96.0.77']]);
  assert.deepEqual(second.problems, []);
});

for (const { title, requests, previous, assigned, problem } of [
  {
    title: 'an explicit address is honoured',
    requests: [fixed('a/x', '10.96.0.10')],
    previous: {},
    assigned: { 'a/x': '10.96.0.10' },
    problem: undefined,
  },
  {
    title: 'an explicit address outside the CIDR is reported and the service left out',
    requests: [fixed('a/x', '10.97.0.10')],
    previous: {},
    assigned: {},
    problem: /a\/x: clusterIP 10\.97\.0\.10 is outside the service CIDR 10\.96\.0\.0\/24; the service is left out/,
  },
  {
    title: 'an IPv6 address in an IPv4 CIDR is reported',
    requests: [fixed('a/x', 'fd00::1')],
    previous: {},
    assigned: {},
    problem: /fd00::1 is outside/,
  },
  {
    title: 'the network address is refused',
    requests: [fixed('a/x', '10.96.0.0')],
    previous: {},
    assigned: {},
    problem: /first or last address/,
  },
  {
    title: 'of two services with one explicit address the holder keeps it',
    requests: [fixed('a/x', '10.96.0.10'), fixed('b/y', '10.96.0.10')],
    previous: { 'b/y': '10.96.0.10' },
    assigned: { 'b/y': '10.96.0.10' },
    problem: /a\/x: clusterIP 10\.96\.0\.10 belongs to service b\/y; the service is left out/,
  },
  {
    title: 'a service whose new explicit address is taken keeps its old one',
    requests: [fixed('a/x', '10.96.0.11'), fixed('b/y', '10.96.0.10')],
    previous: { 'a/x': '10.96.0.11', 'b/y': '10.96.0.12' },
    assigned: { 'a/x': '10.96.0.11', 'b/y': '10.96.0.10' },
    problem: undefined,
  },
  {
    title: 'a conflicting change is reported with what stays in force',
    requests: [fixed('a/x', '10.96.0.11'), fixed('b/y', '10.96.0.11')],
    previous: { 'a/x': '10.96.0.11', 'b/y': '10.96.0.12' },
    assigned: { 'a/x': '10.96.0.11', 'b/y': '10.96.0.12' },
    problem: /b\/y: clusterIP 10\.96\.0\.11 belongs to service a\/x; it keeps 10\.96\.0\.12/,
  },
]) {
  test(title, () => {
    const result = allocateClusterIps(requests, new Map(Object.entries(previous)), CIDR);
    assert.deepEqual(Object.fromEntries([...result.assigned].sort()), assigned);
    const text = result.problems.map(({ service, reason }) => `${service}: ${reason}`).join('\n');
    if (problem === undefined) assert.equal(text, '');
    else assert.match(text, problem);
  });
}

test('an exhausted CIDR leaves out the service that came too late and says so', () => {
  const requests = ['a/1', 'a/2', 'a/3'].map(auto);
  const result = allocateClusterIps(requests, none, '10.96.0.0/30');
  assert.equal(result.assigned.size, 2);
  assert.match(result.problems[0]?.reason ?? '', /no free address in the service CIDR 10\.96\.0\.0\/30/);
});

test('automatic addresses stay out of the band for explicit ones until nothing else is left', () => {
  const requests = Array.from({ length: 254 }, (_, index) => auto(`a/s-${index}`));
  const { assigned, problems } = allocateClusterIps(requests, none, CIDR);
  assert.deepEqual(problems, []);
  const few = allocateClusterIps(requests.slice(0, 200), none, CIDR).assigned;
  assert.equal(assigned.size, 254);
  for (const ip of few.values()) assert.ok(Number(ip.split('.')[3]) >= 16, ip);
});

test('IPv6 is given out the same way: explicit, kept, refused outside, in the short form', () => {
  const cidr = 'fd96:1::/112';
  const first = allocateClusterIps([auto('a/x'), fixed('a/y', 'fd96:1::9')], none, cidr);
  assert.deepEqual(first.problems, []);
  assert.equal(first.assigned.get('a/y'), 'fd96:1::9');
  const automatic = first.assigned.get('a/x')!;
  assert.ok(cidrContains(parseCidr(cidr)!, automatic), automatic);
  const crowd = Array.from({ length: 300 }, (_, index) => auto(`a/s-${index}`));
  const crowded = allocateClusterIps([...crowd, auto('a/x')], first.assigned, cidr).assigned;
  assert.equal(crowded.get('a/x'), automatic);
  assert.equal(new Set(crowded.values()).size, 301);
  const outside = allocateClusterIps([{ ...fixed('a/z', 'fd97::1'), isOneOfTwo: true }], none, cidr);
  assert.match(outside.problems[0]?.reason ?? '', /outside the service CIDR fd96:1::\/112; the service has the other/);
});
