/** Vectors of our own for what the recorded ones lack: every family in both layouts, read and written again. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import {
  type Decoded,
  dataPrefix,
  decodeClusterConfig,
  decodeEndpointSliceMessage,
  decodeGlobalService,
  decodeIdentityEntry,
  decodeIpEntry,
  decodeNode,
  decodeServiceExport,
  encodeClusterConfig,
  encodeEndpointSliceMessage,
  encodeGlobalService,
  encodeIpEntry,
  encodeNode,
  encodeServiceExport,
  endpointSliceKey,
  formatLabels,
  identityKey,
  ipEntryName,
  ipKey,
  keyName,
  type Layout,
  nodeKey,
  parseLabels,
  publishedFamilies,
  serviceExportKey,
  serviceKey,
  validateEndpointSlice,
  validateGlobalService,
  validateIpEntry,
  validateNode,
  validatePeerConfig,
  validateServiceExport,
  WIRE_FAMILIES,
  type WireFamily,
} from './index.ts';

interface Vector {
  readonly family: WireFamily;
  readonly comment?: string;
  readonly state: string;
  readonly cache: string;
  readonly name: string;
  readonly value: string;
  /** Endpoint slices: the message inside `value`, and what it says. */
  readonly message?: string;
  readonly slice?: object;
}

interface Fixture {
  readonly cluster: string;
  readonly clusterId: number;
  readonly configs: readonly { readonly comment: string; readonly value: string; readonly families: WireFamily[] }[];
  readonly vectors: readonly Vector[];
}

const fixture: Fixture = JSON.parse(readFileSync(new URL('../fixtures/both-layouts.json', import.meta.url), 'utf8'));
const peer = { cluster: fixture.cluster, clusterId: fixture.clusterId };

function accepted<T>(decoded: Decoded<T>): T {
  assert.ok(decoded.ok, decoded.ok ? '' : decoded.reason);
  return decoded.value;
}

/** Reads a value as a reader of its key would; what comes back is written again, and the key that it belongs under. */
type RoundTrip = (vector: Vector) => { readonly written: string; readonly key: (layout: Layout) => string };

const roundTrips: Readonly<Record<WireFamily, RoundTrip>> = {
  nodes: ({ name, value }) => {
    const node = accepted(validateNode(accepted(decodeNode(value)), { ...peer, name }));
    return { written: encodeNode(node), key: (layout) => nodeKey(node.Cluster, node.Name, layout) };
  },
  services: ({ name, value }) => {
    const service = accepted(validateGlobalService(accepted(decodeGlobalService(value)), { ...peer, name }));
    const key = (layout: Layout) => serviceKey(service.cluster, service.namespace, service.name, layout);
    return { written: encodeGlobalService(service), key };
  },
  identities: ({ name, value }) => {
    const entry = accepted(decodeIdentityEntry(name, value, { ...peer, maxConnectedClusters: 255 }));
    const written = JSON.stringify(formatLabels(parseLabels(entry.labels) ?? []));
    return { written, key: (layout) => identityKey(peer.cluster, entry.id, layout) };
  },
  ip: ({ name, value }) => {
    const entry = accepted(decodeIpEntry(value));
    accepted(validateIpEntry(entry, { ...peer, maxConnectedClusters: 255, name }));
    return { written: encodeIpEntry(entry), key: (layout) => ipKey(peer.cluster, ipEntryName(entry) ?? '', layout) };
  },
  serviceexports: ({ name, value }) => {
    const entry = accepted(validateServiceExport(accepted(decodeServiceExport(value)), { ...peer, name }));
    const key = (layout: Layout) => serviceExportKey(entry.cluster, entry.namespace, entry.name, layout);
    return { written: encodeServiceExport(entry), key };
  },
  endpointslices: ({ name, message = '' }) => {
    const slice = accepted(decodeEndpointSliceMessage(Buffer.from(message, 'base64')));
    accepted(validateEndpointSlice(slice, { ...peer, name }));
    const written = JSON.stringify(Buffer.from(encodeEndpointSliceMessage(slice)).toString('base64'));
    return { written, key: (layout) => endpointSliceKey(slice.cluster, slice.namespace, slice.name, layout) };
  },
};

/** A list that Go had none of is null on the wire, and empty here. */
function sameMeaning(family: WireFamily, written: string, value: string): void {
  const expected = JSON.parse(value);
  if (family === 'serviceexports') expected.ports ??= [];
  assert.deepEqual(JSON.parse(written), expected);
}

describe('every family, in both layouts', () => {
  it('has vectors', () => {
    const families = new Set(fixture.vectors.map((vector) => vector.family));
    assert.deepEqual([...families].sort(), [...WIRE_FAMILIES].sort());
  });

  for (const vector of fixture.vectors) {
    const { family, comment } = vector;
    it(`${vector.state}${comment === undefined ? '' : `: ${comment}`}`, () => {
      const { written, key } = roundTrips[family](vector);
      for (const layout of ['state', 'cache'] as const) {
        assert.equal(key(layout), vector[layout]);
        assert.equal(keyName(vector[layout], dataPrefix(peer.cluster, family, layout)), vector.name);
      }
      if (family === 'identities') assert.equal(JSON.parse(written), vector.value);
      else if (family === 'endpointslices') assert.equal(JSON.parse(written), vector.message);
      else sameMeaning(family, written, vector.value);
    });
  }

  for (const { comment, value, families } of fixture.configs) {
    it(`cluster config ${comment}`, () => {
      const config = accepted(decodeClusterConfig(value));
      accepted(validatePeerConfig(peer.cluster, config, { id: 1, maxConnectedClusters: 255 }));
      assert.deepEqual(JSON.parse(encodeClusterConfig(config)), JSON.parse(value));
      assert.deepEqual(publishedFamilies(config), families);
    });
  }
});
