import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  CANARY_FAMILIES,
  canaryKey,
  clusterConfigKey,
  dataPrefix,
  endpointRecordKey,
  identityByIdKey,
  identityByLabelsKey,
  identityKey,
  ipKey,
  keyName,
  localCanaryKey,
  localKey,
  nodeKey,
  nodeRecordKey,
  nodeSyncedKey,
  parseNodesKey,
  serviceKey,
  WIRE_FAMILIES,
} from './keys.ts';

describe('keys', () => {
  it('have the state layout of the wire', () => {
    assert.equal(clusterConfigKey('eu'), 'cilium/cluster-config/eu');
    assert.equal(nodeKey('eu', 'n1'), 'cilium/state/nodes/v1/eu/n1');
    assert.equal(serviceKey('eu', 'shop', 'web'), 'cilium/state/services/v1/eu/shop/web');
    assert.equal(identityKey('eu', 65_999), 'cilium/state/identities/v1/id/65999');
    assert.equal(ipKey('eu', '10.1.1.5'), 'cilium/state/ip/v1/default/10.1.1.5');
    assert.equal(ipKey('eu', 'fd00::/64'), 'cilium/state/ip/v1/default/fd00::/64');
  });

  it('put the cluster into identities and addresses in the cache layout', () => {
    assert.equal(nodeKey('eu', 'n1', 'cache'), 'cilium/cache/nodes/v1/eu/n1');
    assert.equal(serviceKey('eu', 'shop', 'web', 'cache'), 'cilium/cache/services/v1/eu/shop/web');
    assert.equal(identityKey('eu', 65_999, 'cache'), 'cilium/cache/identities/v1/eu/id/65999');
    assert.equal(ipKey('eu', '10.1.1.5', 'cache'), 'cilium/cache/ip/v1/eu/10.1.1.5');
  });

  it('name a canary per family, one level above identities and addresses', () => {
    assert.deepEqual(
      CANARY_FAMILIES.map((family) => canaryKey('eu', family, 'state')),
      ['nodes', 'services', 'identities', 'ip', 'serviceexports'].map((f) => `cilium/synced/eu/cilium/state/${f}/v1`),
    );
    assert.equal(canaryKey('eu', 'ip', 'cache'), 'cilium/synced/eu/cilium/cache/ip/v1');
    assert.equal(canaryKey('eu', 'endpointslices', 'state'), 'cilium/synced/eu/cilium/state/endpointslices/v1');
  });

  it('lead back to the name, in both layouts and all families', () => {
    for (const layout of ['state', 'cache'] as const) {
      for (const family of WIRE_FAMILIES) {
        const prefix = dataPrefix('eu', family, layout);
        assert.ok(prefix.endsWith('/'), prefix);
        assert.equal(keyName(`${prefix}a/b`, prefix), 'a/b');
        assert.equal(keyName(prefix, prefix), undefined, 'the bare prefix is no key');
        assert.equal(keyName(`${dataPrefix('eu-2', family, layout)}x`, `cilium/${layout}/${family}/v1/eu/`), undefined);
      }
    }
  });

  it('of our own do not meet', () => {
    assert.equal(localKey('services', 'shop/web'), 'clustermesh/local/services/shop/web');
    assert.equal(localCanaryKey('services'), 'clustermesh/local/synced/services');
    assert.equal(identityByIdKey(65_999), 'clustermesh/identities/id/65999');
    assert.equal(identityByLabelsKey('k8s:a=b;'), 'clustermesh/identities/value/k8s:a=b;');
  });

  it('under clustermesh/nodes/ are told apart', () => {
    assert.deepEqual(parseNodesKey(nodeRecordKey('n1')), { kind: 'node', node: 'n1' });
    assert.deepEqual(parseNodesKey(nodeSyncedKey('n1')), { kind: 'synced', node: 'n1' });
    assert.deepEqual(parseNodesKey(endpointRecordKey('n1', '7')), { kind: 'endpoint', node: 'n1', endpoint: '7' });
    for (const foreign of [
      'clustermesh/nodes/',
      'clustermesh/nodes/n1',
      'clustermesh/nodes/n1/other',
      'clustermesh/nodes//node',
      'clustermesh/nodes/n1/endpoints/',
      'clustermesh/nodes/n1/endpoints/7/8',
      'cilium/state/nodes/v1/eu/n1',
    ]) {
      assert.equal(parseNodesKey(foreign), undefined, foreign);
    }
  });
});
