import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseTargets } from './targets.ts';

const all = ['eu/etcd', 'eu/agent/n1', 'eu/agent/n2', 'eu/pod/default/shop-0', 'eu/pod/other/shop-0'].map((name) => ({
  name,
}));
const names = (...patterns: string[]) => chooseTargets(all, patterns, 'kill').map((target) => target.name);

test('a target is a name, or a pattern that stays within its parts', () => {
  assert.deepEqual(names('eu/etcd'), ['eu/etcd']);
  assert.deepEqual(names('eu/agent/*'), ['eu/agent/n1', 'eu/agent/n2']);
  assert.deepEqual(names('eu/pod/default/shop-*'), ['eu/pod/default/shop-0']);
});

test('what is named twice is meant once', () => {
  assert.deepEqual(names('eu/agent/n1', 'eu/agent/*'), ['eu/agent/n1', 'eu/agent/n2']);
});

test('a target that means nothing is an error that lists what there is', () => {
  assert.throws(() => names('eu/etcd', 'us/*'), /kill: there is nothing named us\/\*/);
  assert.throws(() => names('eu.etcd'), /nothing named/);
});
