import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { capture, ipBatch } from '../netns/exec.ts';
import { addPodNetwork, planPodNetwork, removePodNetwork } from './pod-network.ts';

const PREFIX = `cm-podnet${process.pid}`;
const NODE = `${PREFIX}-eu-n1`;
const plan = (id: string, name: string, ip: string) =>
  planPodNetwork({ id, ip, podNamespace: `${PREFIX}-${name}`, nodeNamespace: NODE });
const exists = (namespace: string) => existsSync(`/run/netns/${namespace}`);
const first = plan('default.a.1', 'a', '10.1.1.2');

before(() => ipBatch('making a node', [`netns add ${NODE}`]));
after(async () => {
  await removePodNetwork(first);
  await ipBatch('removing a node', [`netns del ${NODE}`]);
});

test('a pod network that cannot be made takes nothing of another pod', async () => {
  await addPodNetwork(first);
  await assert.rejects(addPodNetwork(plan('default.a.2', 'a', '10.1.1.3')), /File exists/);
  const { stdout } = await capture('ip', ['-n', first.podNamespace, '-o', 'addr', 'show', 'dev', 'eth0']);
  assert.match(stdout, /10\.1\.1\.2\/32/);
  assert.equal((await capture('ip', ['-n', NODE, 'link', 'show', first.interface])).code, 0);
});

test('a pod network that cannot be made leaves nothing of itself', async () => {
  // Its address is routed to the first pod already, which shows only after namespace and cable are there.
  const second = plan('default.b.1', 'b', first.ip);
  await assert.rejects(addPodNetwork(second), /File exists/);
  assert.equal(exists(second.podNamespace), false);
  assert.notEqual((await capture('ip', ['-n', NODE, 'link', 'show', second.interface])).code, 0);
  assert.ok(exists(first.podNamespace));
});
