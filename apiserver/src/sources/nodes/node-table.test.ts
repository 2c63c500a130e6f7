import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type NodesDelta, NodeTable } from './node-table.ts';

const GRACE = 1000;

const put = (key: string, value: object | string, modRevision = 1) => ({
  key: `clustermesh/nodes/${key}`,
  value: Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)),
  modRevision,
});
const node = (name: string) =>
  put(`${name}/node`, { name, internalIp: '172.31.1.11', gatewayIp: '10.1.1.1', podCidr: '10.1.1.0/24' });
const pod = (name: string, id: string, ipv4: string) =>
  put(`${name}/endpoints/${id}`, { id, namespace: 'shop', pod: id, labels: 'k8s:a=b;', identity: 65_800, ipv4 });
const synced = (name: string) => put(`${name}/synced`, '2025-01-01T00:00:00Z');
const keys = (...names: string[]) => names.map((name) => `clustermesh/nodes/${name}`);
const addresses = (table: NodeTable, nowMs: number) =>
  table
    .snapshot(nowMs)
    .endpoints.map((endpoint) => endpoint.record.ipv4)
    .sort();

function published(graceMs = GRACE): NodeTable {
  const table = new NodeTable({ graceMs, known: [] });
  table.apply(
    { upserts: [node('n1'), pod('n1', 'a', '10.1.1.5'), pod('n1', 'b', '10.1.1.6'), synced('n1')], removes: [] },
    0,
  );
  table.listed(0);
  return table;
}

const WIPED = keys('n1/node', 'n1/endpoints/a', 'n1/endpoints/b', 'n1/synced');

test('is not complete before the first list', () => {
  const table = new NodeTable({ graceMs: GRACE, known: [] });
  assert.equal(table.snapshot(0).complete, false);
  table.listed(0);
  assert.equal(table.snapshot(0).complete, true);
});

test('follows a node while its list is complete', () => {
  const table = published();
  assert.deepEqual(addresses(table, 0), ['10.1.1.5', '10.1.1.6']);
  table.apply({ upserts: [], removes: keys('n1/endpoints/a') }, 1);
  assert.deepEqual(addresses(table, 1), ['10.1.1.6']);
  assert.deepEqual(table.known, ['n1']);
});

test('keeps the last complete rows through a wipe, until the node has published again', () => {
  const table = published();
  table.apply({ upserts: [], removes: WIPED }, 10);
  table.listed(10);
  assert.deepEqual(addresses(table, 20), ['10.1.1.5', '10.1.1.6']);
  assert.equal(table.snapshot(20).nodes.size, 1);
  assert.equal(table.snapshot(20).complete, true, 'what is held is a complete statement');
  table.apply({ upserts: [node('n1'), pod('n1', 'b', '10.1.1.6')], removes: [] }, 30);
  assert.deepEqual(addresses(table, 30), ['10.1.1.5', '10.1.1.6'], 'half a list changes nothing');
  table.apply({ upserts: [synced('n1')], removes: [] }, 40);
  assert.deepEqual(addresses(table, 40), ['10.1.1.6']);
});

test('gives up on a node that does not come back within the grace period', () => {
  const table = published();
  table.apply({ upserts: [], removes: WIPED }, 10);
  assert.equal(table.nextDeadlineMs(), 10 + GRACE);
  assert.deepEqual(addresses(table, 10 + GRACE - 1), ['10.1.1.5', '10.1.1.6']);
  assert.deepEqual(addresses(table, 10 + GRACE), []);
  assert.deepEqual(table.known, []);
  assert.equal(table.nextDeadlineMs(), undefined);
});

test('after a restart waits for the nodes it knew, and says for which', () => {
  const table = new NodeTable({ graceMs: GRACE, known: ['n1', 'n2'] });
  table.apply({ upserts: [node('n1'), synced('n1')], removes: [] }, 0);
  table.listed(5);
  assert.equal(table.snapshot(5).complete, false);
  assert.deepEqual(table.snapshot(5).waitingFor, ['n2']);
  table.apply({ upserts: [node('n2'), pod('n2', 'c', '10.1.2.5'), synced('n2')], removes: [] }, 6);
  assert.equal(table.snapshot(6).complete, true);
});

test('after a restart waits no longer than the grace period', () => {
  const table = new NodeTable({ graceMs: GRACE, known: ['gone'] });
  table.listed(5);
  assert.equal(table.snapshot(5 + GRACE - 1).complete, false);
  assert.equal(table.snapshot(5 + GRACE).complete, true);
});

test('a bad record is reported and the rest applied; mended, it counts', () => {
  const table = published();
  table.apply(
    {
      upserts: [put('n1/endpoints/c', '{'), put('n1/endpoints/d', { id: 'other' }), pod('n1', 'e', '10.1.1.300')],
      removes: [],
    },
    1,
  );
  assert.deepEqual(addresses(table, 1), ['10.1.1.5', '10.1.1.6']);
  assert.equal(table.snapshot(1).problems.length, 3);
  table.apply({ upserts: [pod('n1', 'c', '10.1.1.7')], removes: keys('n1/endpoints/d', 'n1/endpoints/e') }, 2);
  assert.deepEqual(addresses(table, 2), ['10.1.1.5', '10.1.1.6', '10.1.1.7']);
  assert.deepEqual(table.snapshot(2).problems, []);
});

test('who follows is told everything once, then what changes; who follows next begins anew', () => {
  const table = published();
  const idsOf = (follower: { take(nowMs: number): NodesDelta }) =>
    follower
      .take(1)
      .endpoints.map(({ id, endpoint }) => (endpoint === undefined ? `-${id}` : id))
      .sort();
  const first = table.follow();
  assert.deepEqual(idsOf(first), ['a', 'b']);
  assert.deepEqual(idsOf(first), []);
  table.apply({ upserts: [pod('n1', 'c', '10.1.1.7')], removes: keys('n1/endpoints/a') }, 1);
  const next = table.follow();
  first.end();
  assert.deepEqual(idsOf(next), ['b', 'c'], 'another that leads knows of nothing before');
  table.apply({ upserts: [], removes: keys('n1/endpoints/b') }, 1);
  assert.deepEqual(idsOf(next), ['-b']);
});
