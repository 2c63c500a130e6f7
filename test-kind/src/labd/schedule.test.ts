import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseTopology } from '../topology.ts';
import { createIpam } from './ipam.ts';
import { parseObjects } from './objects.ts';
import { desiredPods, type Placed, placePod } from './schedule.ts';

const [cluster] = parseTopology('clusters: [{ name: eu, id: 1, nodes: [a, b, c] }]', 'test').clusters;
const objectsOf = (text: string) =>
  parseObjects(text, 'test').flatMap((document) => ('object' in document ? [document.object] : []));
const deployment = (name: string, replicas: number, extra = '') =>
  `kind: Deployment\nmetadata: { name: ${name} }\nspec: { replicas: ${replicas}, template: { spec: { containers: [{ command: [x] }]${extra} } } }\n---\n`;

test('spreads each deployment over the nodes, and all of them together', () => {
  const placed: Placed[] = [];
  for (const pod of desiredPods(objectsOf(deployment('x', 3) + deployment('y', 3) + deployment('z', 1)))) {
    const answer = placePod(pod, cluster!, placed);
    assert.ok('node' in answer);
    placed.push({ node: answer.node, owner: pod.owner });
  }
  assert.deepEqual(placed.map((pod) => pod.node).join(''), 'abcabca');
});

test('honours node name and selector, and says what does not fit', () => {
  const [pinned] = desiredPods(objectsOf(deployment('x', 1, ', nodeName: c')));
  assert.deepEqual(placePod(pinned!, cluster!, []), { node: 'c' });
  const [lost] = desiredPods(objectsOf(deployment('x', 1, ', nodeSelector: { topology.kubernetes.io/zone: mars }')));
  const answer = placePod(lost!, cluster!, []);
  assert.ok('problem' in answer && answer.problem.includes('mars'));
});

test('an address rests before it is given to another pod', () => {
  const ipam = createIpam('10.1.1.0/24');
  const first = ipam.allocate();
  assert.equal(first, '10.1.1.2');
  ipam.release(first);
  assert.equal(ipam.allocate(), '10.1.1.3');
});

test('a full node says so', () => {
  const ipam = createIpam('10.1.1.0/29');
  for (let i = 0; i < 5; i++) ipam.allocate();
  assert.throws(() => ipam.allocate(), /all 5 are in use/);
});
