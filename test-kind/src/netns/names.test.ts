import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  assertInstanceName,
  namespacePrefix,
  nodeNamespace,
  podCgroup,
  podInterface,
  podMacs,
  podNamespace,
} from './names.ts';

test('no instance is the prefix of another', () => {
  assert.throws(() => assertInstanceName('a-b'), /must be 1 to 12/);
  assert.throws(() => assertInstanceName('../etc'));
  assert.throws(() => assertInstanceName(''));
  assert.ok(!podNamespace('ab', 'eu', 'default', 'x').startsWith(namespacePrefix('a')));
});

test('namespace and pod cannot be confused in a cgroup', () => {
  assert.notEqual(podCgroup('t', 'eu', 'n1', 'a-b', 'c'), podCgroup('t', 'eu', 'n1', 'a', 'b-c'));
});

test('no two pods, and no pod and node, share a network namespace', () => {
  assert.notEqual(podNamespace('t', 'eu', 'a-b', 'c'), podNamespace('t', 'eu', 'a', 'b-c'));
  assert.notEqual(podNamespace('t', 'eu', 'a', 'b'), nodeNamespace('t', 'eu', 'a-b'));
  assert.notEqual(podNamespace('t', 'eu-a', 'b', 'c'), podNamespace('t', 'eu', 'a-b', 'c'));
});

test('interface names fit the kernel and differ per endpoint', () => {
  const name = podInterface('default.a-very-long-name-of-a-pod-indeed.0a1b2c');
  assert.ok(name.length <= 15, name);
  assert.notEqual(name, podInterface('default.a-very-long-name-of-a-pod-indeed.0a1b2d'));
});

test('MACs are local, unicast and follow from the address', () => {
  assert.deepEqual(podMacs('10.1.2.30'), { pod: '02:01:0a:01:02:1e', host: '02:02:0a:01:02:1e' });
});
