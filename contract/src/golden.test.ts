/** Keys and values that Cilium 1.20 wrote: we read each of them, and write it again with the same meaning. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import {
  type CanaryFamily,
  canaryKey,
  clusterConfigKey,
  type Decoded,
  dataPrefix,
  decodeClusterConfig,
  decodeGlobalService,
  decodeIdentityEntry,
  decodeIpEntry,
  decodeNode,
  encodeClusterConfig,
  encodeGlobalService,
  encodeIpEntry,
  encodeNode,
  type Family,
  formatLabels,
  identityKey,
  ipEntryName,
  ipKey,
  keyName,
  nodeKey,
  parseLabels,
  serviceKey,
  validateGlobalService,
  validateIpEntry,
  validateNode,
  validatePeerConfig,
} from './index.ts';

interface Vector {
  readonly key: string;
  readonly value: string;
}

const vectors: readonly Vector[] = JSON.parse(
  readFileSync(new URL('../fixtures/cilium-1.20-cached-layout.json', import.meta.url), 'utf8'),
);
const clusterIds: Readonly<Record<string, number>> = { 'cluster-003': 3, 'cluster-004': 4 };

function accepted<T>(decoded: Decoded<T>): T {
  assert.ok(decoded.ok, decoded.ok ? '' : decoded.reason);
  return decoded.value;
}

/** The vectors of a family with the cluster and the name behind its prefix. */
function ofFamily(family: Family): (Vector & { cluster: string; clusterId: number; name: string })[] {
  return Object.entries(clusterIds).flatMap(([cluster, clusterId]) =>
    vectors.flatMap((vector) => {
      const name = keyName(vector.key, dataPrefix(cluster, family, 'cache'));
      return name === undefined ? [] : [{ ...vector, cluster, clusterId, name }];
    }),
  );
}

function sameMeaning(actual: string, expected: string): void {
  assert.deepEqual(JSON.parse(actual), JSON.parse(expected));
}

describe('what Cilium 1.20 wrote', () => {
  it('is recognised key by key', () => {
    const families = (['nodes', 'services', 'identities', 'ip'] as const).map((family) => ofFamily(family).length);
    assert.deepEqual(families, [4, 1, 6, 8]);
    const others = vectors.filter((vector) => !vector.key.startsWith('cilium/cache/'));
    const known = Object.keys(clusterIds).flatMap((cluster) => [
      clusterConfigKey(cluster),
      ...(['nodes', 'services', 'identities', 'ip'] as CanaryFamily[]).map((f) => canaryKey(cluster, f, 'cache')),
    ]);
    assert.deepEqual(others.map((vector) => vector.key).sort(), known.sort());
  });

  for (const { key, value, cluster, clusterId, name } of ofFamily('nodes')) {
    it(`node ${key}`, () => {
      const node = accepted(decodeNode(value));
      accepted(validateNode(node, { cluster, clusterId, name }));
      sameMeaning(encodeNode(node), value);
      assert.deepEqual(Object.keys(JSON.parse(encodeNode(node))), Object.keys(JSON.parse(value)), 'field order');
      assert.equal(nodeKey(node.Cluster, node.Name, 'cache'), key);
      assert.equal(node.IPv4AllocCIDR?.length, 28);
      assert.equal(node.IPv6AllocCIDR?.length, 120);
    });
  }

  for (const { key, value, cluster, clusterId, name } of ofFamily('ip')) {
    it(`ip entry ${key}`, () => {
      const entry = accepted(decodeIpEntry(value));
      accepted(validateIpEntry(entry, { cluster, clusterId, maxConnectedClusters: 255, name }));
      sameMeaning(encodeIpEntry(entry), value);
      assert.equal(ipKey(cluster, ipEntryName(entry) ?? '', 'cache'), key);
    });
  }

  for (const { key, value, cluster, clusterId, name } of ofFamily('identities')) {
    it(`identity ${key}`, () => {
      const entry = accepted(decodeIdentityEntry(name, value, { cluster, clusterId, maxConnectedClusters: 255 }));
      assert.equal(formatLabels(parseLabels(entry.labels) ?? []), value);
      assert.equal(identityKey(cluster, entry.id, 'cache'), key);
    });
  }

  for (const { key, value, cluster, clusterId, name } of ofFamily('services')) {
    it(`service ${key}`, () => {
      const service = accepted(decodeGlobalService(value));
      accepted(validateGlobalService(service, { cluster, clusterId, name }));
      sameMeaning(encodeGlobalService(service), value);
      assert.equal(serviceKey(service.cluster, service.namespace, service.name, 'cache'), key);
    });
  }

  for (const cluster of Object.keys(clusterIds)) {
    it(`cluster config of ${cluster}`, () => {
      const value = vectors.find((vector) => vector.key === clusterConfigKey(cluster))?.value ?? '';
      const config = accepted(decodeClusterConfig(value));
      accepted(validatePeerConfig(cluster, config, { id: 1, maxConnectedClusters: 255 }));
      assert.equal(config.id, clusterIds[cluster]);
      sameMeaning(encodeClusterConfig(config), value);
    });
  }
});
