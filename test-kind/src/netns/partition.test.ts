import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseTopology } from '../topology.ts';
import { add, cut, heal, partitionRules } from './partition.ts';

const topology = parseTopology('clusters: [{ name: eu, id: 1 }, { name: us, id: 2 }, { name: ap, id: 3 }]', 'test');
const drops = (rules: string) => rules.split('\n').filter((line) => line.includes('drop')).length;

test('a cut of the data plane drops node to node, both ways, and nothing of the control plane', () => {
  const rules = partitionRules(topology, cut('eu', 'us', ['data'], false));
  assert.equal(drops(rules), 2);
  assert.match(
    rules,
    /ip saddr { 172\.31\.1\.11, 172\.31\.1\.12 } ip daddr { 172\.31\.2\.11, 172\.31\.2\.12 } counter drop/,
  );
  assert.ok(!rules.includes('172.31.1.2 '));
});

test('nodes with IPv6 are cut off in both families', () => {
  const dual = parseTopology('ipv6: true\nclusters: [{ name: eu, id: 1 }, { name: us, id: 2 }]', 'test');
  const rules = partitionRules(dual, cut('eu', 'us', ['data'], false));
  assert.equal(drops(rules), 4);
  assert.match(rules, /ip6 saddr { fd31:1::11, fd31:1::12 } ip6 daddr { fd31:2::11, fd31:2::12 } counter drop/);
});

test('one way leaves the way back open', () => {
  const rules = partitionRules(topology, cut('eu', 'us', ['control'], true));
  assert.match(rules, /ip saddr 172\.31\.1\.2 ip daddr 172\.31\.2\.2 counter drop/);
  assert.ok(!rules.includes('ip saddr 172.31.2.2 '));
});

test('healing ends every cut between the two and none with a third', () => {
  const all = add(add([], cut('eu', 'us', ['control', 'data'], false)), cut('eu', 'ap', ['data'], false));
  assert.deepEqual(add(all, cut('eu', 'us', ['data'], true)), all);
  assert.deepEqual(heal(all, 'us', 'eu'), cut('eu', 'ap', ['data'], false));
});
