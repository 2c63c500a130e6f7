import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  clusterConfigKey,
  encodeClusterConfig,
  endpointRecordKey,
  nodeRecordKey,
  nodeSyncedKey,
} from '@clustermesh/contract';
import type { SinkBatch } from '@clustermesh/kvstore';
import { createClusters } from './clusters.ts';
import { createNodeRecords } from './node-records.ts';

const batch = (kind: SinkBatch['kind'], puts: Record<string, string>, removes: string[] = []): SinkBatch => ({
  kind,
  revision: 1,
  upserts: Object.entries(puts).map(([key, value]) => ({ key, value: Buffer.from(value), modRevision: 1 })),
  removes,
});

describe('clusters', () => {
  const config = (id: number, capabilities: object = {}) =>
    encodeClusterConfig({
      id,
      capabilities: { cached: true, syncedCanaries: true, maxConnectedClusters: 255, ...capabilities },
    });
  const clusters = () => createClusters({ name: 'eu', id: 1, maxConnectedClusters: 255 });
  const US = clusterConfigKey('us');
  const families = ['nodes', 'services', 'identities', 'ip'];
  const US_PEER = { name: 'us', id: 2, families };

  test('a mirrored cluster is followed, the own one is not', () => {
    const c = clusters();
    const changes = c.apply(batch('list', { [US]: config(2), [clusterConfigKey('eu')]: config(1) }), true);
    assert.deepEqual(changes, { start: [US_PEER], drain: [], change: [] });
    assert.deepEqual(c.apply(batch('watch', { [US]: config(2) }), true), { start: [], drain: [], change: [] });
  });

  for (const [what, kind, isSameStore, drained] of [
    ['deleted while we watch', 'watch', true, true],
    ['deleted while we watch a rebuilt etcd', 'watch', false, true],
    ['absent from a list of the same etcd', 'list', true, true],
    ['absent from a list of a rebuilt etcd', 'list', false, false],
  ] as const) {
    test(`a config ${what} ${drained ? 'drains' : 'holds'} the peer`, () => {
      const c = clusters();
      c.apply(batch('list', { [US]: config(2) }), true);
      assert.deepEqual(c.apply(batch(kind, {}, [US]), isSameStore).drain, drained ? ['us'] : []);
      assert.deepEqual([...c.held()], drained ? [] : ['us']);
    });
  }

  test('a held peer that comes back is not begun again', () => {
    const c = clusters();
    c.apply(batch('list', { [US]: config(2) }), true);
    c.apply(batch('list', {}, [US]), false);
    assert.deepEqual(c.apply(batch('watch', { [US]: config(2) }), true), { start: [], drain: [], change: [] });
    assert.equal(c.held().size, 0);
  });

  test('a peer that changes its id is drained, then begun again', () => {
    const c = clusters();
    c.apply(batch('list', { [US]: config(2) }), true);
    assert.deepEqual(c.apply(batch('watch', { [US]: config(7) }), true), {
      drain: ['us'],
      start: [{ name: 'us', id: 7, families }],
      change: [],
    });
  });

  for (const [what, text, reason] of [
    ['that is no mirror', config(2, { cached: false }), /not that of a mirror/],
    ['with our own id', config(1), /own id/],
    ['with an id out of range', config(256), /not in 1…255/],
    ['with another maximum', config(2, { maxConnectedClusters: 511 }), /maxConnectedClusters 511/],
    ['that is no JSON', '{', /not JSON/],
  ] as const) {
    test(`a config ${what} is refused, with the reason`, () => {
      const c = clusters();
      assert.deepEqual(c.apply(batch('list', { [US]: text }), true).start, []);
      assert.match(c.refused().get('us') ?? '', reason);
    });
  }

  test('a config that goes bad does not cut off a peer that is part of the mesh', () => {
    const c = clusters();
    c.apply(batch('list', { [US]: config(2) }), true);
    assert.deepEqual(c.apply(batch('watch', { [US]: '{' }), true), { start: [], drain: [], change: [] });
    assert.ok(c.peers().has('us'));
  });

  test('a cluster refused because its id was taken joins when the id is free', () => {
    const c = clusters();
    const other = clusterConfigKey('zz');
    c.apply(batch('list', { [US]: config(2), [other]: config(2) }), true);
    assert.match(c.refused().get('zz') ?? '', /which cluster us has already/);
    assert.deepEqual(c.apply(batch('watch', {}, [US]), true), {
      drain: ['us'],
      start: [{ name: 'zz', id: 2, families }],
      change: [],
    });
    assert.equal(c.refused().size, 0);
  });
});

describe('node records', () => {
  const record = JSON.stringify({
    name: 'n2',
    internalIp: '172.31.1.12',
    gatewayIp: '10.1.2.1',
    podCidr: '10.1.2.0/24',
  });
  const endpoint = (id: string) =>
    JSON.stringify({ id, namespace: 'default', pod: id, labels: 'k8s:a=b;', identity: 65_999, ipv4: '10.1.2.5' });
  const [NODE, SYNCED, A, B] = [
    nodeRecordKey('n2'),
    nodeSyncedKey('n2'),
    endpointRecordKey('n2', 'a'),
    endpointRecordKey('n2', 'b'),
  ];
  const whole = { [A]: endpoint('a'), [B]: endpoint('b'), [NODE]: record, [SYNCED]: 'now' };
  const filled = () => {
    const nodes = createNodeRecords();
    nodes.apply(batch('list', whole), true);
    return nodes;
  };
  const ids = (nodes: ReturnType<typeof createNodeRecords>) => [...(nodes.get('n2')?.endpoints.keys() ?? [])];

  test('a deleted endpoint goes, and is told', () => {
    const nodes = filled();
    assert.deepEqual(nodes.apply(batch('watch', {}, [A]), true).endpoints, [{ node: 'n2', endpoint: 'a' }]);
    assert.deepEqual(ids(nodes), ['b']);
  });

  test('a node absent from a list of the same etcd goes with all it had', () => {
    const nodes = filled();
    nodes.apply(batch('list', {}, [A, B, NODE, SYNCED]), true);
    assert.equal(nodes.get('n2'), undefined);
  });

  test('a node absent from a rebuilt etcd stays, and counts as not heard', () => {
    const nodes = filled();
    nodes.apply(batch('list', {}, [A, B, NODE, SYNCED]), false);
    assert.deepEqual(ids(nodes), ['a', 'b']);
    assert.equal(nodes.get('n2')?.synced, false);
    assert.equal(nodes.heldCount(), 3);
  });

  test('what is held goes when the node says that it is complete, not before', () => {
    const nodes = filled();
    nodes.apply(batch('list', {}, [A, B, NODE, SYNCED]), false);
    nodes.apply(batch('watch', { [NODE]: record, [A]: endpoint('a') }), true);
    assert.deepEqual(ids(nodes), ['a', 'b']);
    const changes = nodes.apply(batch('watch', { [SYNCED]: 'later' }), true);
    assert.deepEqual(ids(nodes), ['a']);
    assert.deepEqual(changes.endpoints, [{ node: 'n2', endpoint: 'b' }]);
    assert.equal(nodes.heldCount(), 0);
  });

  test('a list of a rebuilt etcd in which the node is complete already is believed', () => {
    const nodes = filled();
    nodes.apply(batch('list', { [A]: endpoint('a'), [NODE]: record, [SYNCED]: 'later' }), false);
    nodes.apply(batch('list', {}, [B]), false);
    assert.deepEqual(ids(nodes), ['a']);
  });

  test('a canary that is written again asks for nothing', () => {
    const nodes = filled();
    assert.equal(nodes.apply(batch('watch', { [SYNCED]: 'later' }), true).nodes.size, 0);
  });

  test('a malformed record is quarantined and the good one before it stays', () => {
    const nodes = filled();
    nodes.apply(batch('watch', { [A]: '{}', [NODE]: record.replace('172.31.1.12', 'nowhere') }), true);
    assert.deepEqual(ids(nodes), ['a', 'b']);
    assert.equal(nodes.get('n2')?.record?.internalIp, '172.31.1.12');
    assert.deepEqual([...nodes.quarantined().keys()].sort(), [A, NODE].sort());
  });
});
