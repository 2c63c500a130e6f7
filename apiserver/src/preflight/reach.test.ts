import assert from 'node:assert/strict';
import { it } from 'node:test';
import type { NodeFacts } from '@clustermesh/contract';
import { nodesCheck } from './reach.ts';

const node = (name: string, address: string): NodeFacts => ({
  ...{ name, address, addressV6: '', podCidrs: [], mtu: 0 },
  routingMode: '',
});

it('takes a node that refuses for one that is there', async () => {
  const nodes = Array.from({ length: 40 }, (_, index) => node(`n${index}`, '127.0.0.1'));
  assert.match((await nodesCheck('us', nodes, 1000)).what, /^16 of 40 nodes of us were asked, and all answer$/);
  assert.equal((await nodesCheck('us', [], 1000)).state, 'ok');
});

it('warns of a node without a route to it, by name', async () => {
  // The kernel refuses TCP to a broadcast address itself: nothing leaves this machine.
  const check = await nodesCheck('us', [node('near', '127.0.0.1'), node('far', '255.255.255.255')], 500);
  assert.equal(check.state, 'warning');
  assert.match(check.what, /1 of 2 nodes of us do not answer: far \(255\.255\.255\.255\): no route/);
});
