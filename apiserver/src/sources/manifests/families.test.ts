import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type FamilyRequest, readFamilies } from './families.ts';

for (const { title, request, dual, single, problem } of [
  { title: 'nothing said', request: {}, dual: 'IPv4', single: 'IPv4' },
  { title: 'IPv6 alone', request: { ipFamilies: ['IPv6'] }, dual: 'IPv6', single: '', problem: /left out/ },
  { title: 'an IPv6 address', request: { clusterIPs: ['fd96::9'] }, dual: 'IPv6', single: '', problem: /left out/ },
  { title: 'both preferred', request: { ipFamilyPolicy: 'PreferDualStack' }, dual: 'IPv4 IPv6', single: 'IPv4' },
  {
    title: 'both required',
    request: { ipFamilyPolicy: 'RequireDualStack' },
    dual: 'IPv4 IPv6',
    single: 'IPv4',
    problem: /serviceCIDRv6 is not set; the service has IPv4 only/,
  },
  {
    title: 'both named, IPv6 first',
    request: { ipFamilies: ['IPv6', 'IPv4'] },
    dual: 'IPv6 IPv4',
    single: 'IPv4',
    problem: /IPv4 only/,
  },
  {
    title: 'both preferred, IPv6 first',
    request: { ipFamilyPolicy: 'PreferDualStack', ipFamilies: ['IPv6'] },
    dual: 'IPv6 IPv4',
    single: 'IPv4',
  },
  {
    title: 'an address of each',
    request: { clusterIPs: ['10.96.0.9', 'fd96::9'] },
    dual: 'IPv4 IPv6',
    single: 'IPv4',
    problem: /IPv4 only/,
  },
] as {
  title: string;
  request: Partial<FamilyRequest>;
  dual: string;
  single: string;
  problem?: RegExp;
}[]) {
  test(`families: ${title}`, () => {
    const whole: FamilyRequest = { clusterIPs: [], ...request };
    assert.deepEqual(readFamilies(whole, true), { families: dual.split(' ') });
    const one = readFamilies(whole, false);
    assert.equal(one.families.join(' '), single);
    if (problem === undefined) assert.equal(one.problem, undefined);
    else assert.match(one.problem ?? '', problem);
  });
}
