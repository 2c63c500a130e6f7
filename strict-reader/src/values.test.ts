/** Every rule refuses what breaks it, and nothing else. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { canonicalIp, maskLength } from './addresses.ts';
import { acceptConfig } from './cluster-config.ts';
import { bytesOf, newerVectors, type Vector, vectors } from './testing/source.ts';
import { type Peer, timeProblems, valueProblems } from './values.ts';

const peer: Peer = { cluster: 'cluster3', id: 3, maxConnectedClusters: 255, allowUnknownFields: false };
const nameOf = (vector: Vector) => vector.state.split('/').slice(5).join('/');
const first = (family: string) => vectors.find((vector) => vector.family === family) as Vector;
const problems = (family: string, value: string | Buffer, name = nameOf(first(family)), of = peer) =>
  valueProblems(family, name, Buffer.from(value), of);
const spoiled = (family: string, change: Record<string, unknown>) => {
  const merged: Record<string, unknown> = { ...JSON.parse(first(family).value), ...change };
  return JSON.stringify(merged);
};
const without = (family: string, field: string) => spoiled(family, { [field]: undefined });

describe('good values', () => {
  for (const vector of vectors) {
    it(`${vector.state}${vector.comment === undefined ? '' : `: ${vector.comment}`}`, () =>
      assert.deepEqual(valueProblems(vector.family, nameOf(vector), bytesOf(vector), peer), []));
  }

  it('of a newer writer are so where that is allowed', () => {
    assert.ok(newerVectors.length > 0);
    for (const vector of newerVectors) {
      const newer = { ...peer, allowUnknownFields: true };
      assert.deepEqual(valueProblems(vector.family, nameOf(vector), bytesOf(vector), newer), []);
    }
    assert.match(problems('nodes', spoiled('nodes', { Later: 1 })).join(), /Later is no field/);
  });

  it('may carry the extension of this project', () => {
    for (const family of ['nodes', 'services', 'ip'])
      assert.deepEqual(problems(family, spoiled(family, { 'x-clustermesh': { region: 'eu' } })), [], family);
  });
});

describe('bad values', () => {
  const json: [string, Record<string, unknown>, RegExp][] = [
    ['nodes', { Cluster: 'cluster4' }, /Cluster is "cluster4", expected "cluster3"/],
    ['nodes', { Name: 'other' }, /Name is "other", expected "node-1"/],
    ['nodes', { ClusterID: 4 }, /ClusterID is 4, expected 3/],
    ['nodes', { ClusterID: '3' }, /ClusterID is "3"/],
    ['nodes', { EncryptionKey: 256 }, /EncryptionKey is 256/],
    ['nodes', { EncryptionKey: 1.5 }, /EncryptionKey is 1.5/],
    ['nodes', { IPv4AllocCIDR: '10.244.1.0/24' }, /IPv4AllocCIDR is .*not an object/],
    ['nodes', { IPv4AllocCIDR: { IP: '10.244.1.0', Mask: '/wD/AA==' } }, /IPv4AllocCIDR has a mask that is none/],
    ['nodes', { IPv4AllocCIDR: { IP: '10.244.1.0', Mask: '//////////8AAAAAAAAAAA==' } }, /mask that is none/],
    ['nodes', { IPAddresses: [{ Type: 'Hostname', IP: 'node-1' }] }, /IPAddresses\[0\].IP is "node-1", not an address/],
    ['nodes', { IPAddresses: [{ Type: 'Other', IP: '10.0.0.1' }] }, /IPAddresses\[0\].Type/],
    ['nodes', { IPv6HealthIP: null }, /IPv6HealthIP is null/],
    ['nodes', { name: 'node-1' }, /name would be read as Name/],
    ['nodes', { Labels: { a: 1 } }, /Labels\["a"\] is 1/],
    ['ip', { IP: '10.244.1.80' }, /entry of 10.244.1.80 under the key of 10.244.1.79/],
    ['ip', { Mask: '////AA==' }, /entry of 10.244.1.79\/24 under the key of 10.244.1.79/],
    ['ip', { Mask: 'AAAA' }, /Mask is none/],
    ['ip', { ID: 262_144 }, /ID 262144 is outside 196608…262143/],
    ['ip', { ID: 196_607 }, /outside/],
    ['ip', { ID: -1 }, /ID is -1/],
    ['ip', { HostIP: 'node-1' }, /HostIP/],
    ['ip', { Key: 256 }, /Key is 256/],
    ['ip', { K8sPodName: '' }, /K8sPodName is ""/],
    ['services', { cluster: 'cluster4' }, /cluster is "cluster4"/],
    ['services', { name: 'other' }, /namespace\/name is "foo\/other", expected "foo\/svc"/],
    ['services', { clusterID: 4 }, /clusterID is 4/],
    ['services', { shared: false }, /shared is false/],
    ['services', { includeExternal: 'true' }, /includeExternal/],
    ['services', { backends: null }, /backends is null/],
    ['services', { backends: { 'pod-1': {} } }, /backends: name "pod-1" is no address/],
    ['services', { backends: { 'fe80::1%eth0': {} } }, /no address/],
    ['services', { backends: { '10.0.0.1': { a: { Protocol: 'TCP', Port: 65_536 } } } }, /Port is 65536/],
    [
      'services',
      { backends: { '10.0.0.1': { a: { protocol: 'TCP', Port: 1 } } } },
      /protocol would be read as Protocol/,
    ],
    ['services', { zones: { '10.0.0.1': { zone: 'a' } } }, /forZones is missing/],
    ['serviceexports', { exportCreationTimestamp: null }, /exportCreationTimestamp/],
    ['serviceexports', { exportCreationTimestamp: '0001-01-01T00:00:00Z' }, /time that is set/],
    ['serviceexports', { sessionAffinity: '' }, /sessionAffinity is ""/],
    ['serviceexports', { type: 'ExternalName' }, /type/],
    ['serviceexports', { cluster: 'cluster4' }, /cluster4/],
    ['serviceexports', { internalTrafficPolicy: 'Nearby' }, /internalTrafficPolicy/],
  ];
  for (const [family, change, expected] of json) {
    it(`${family} with ${JSON.stringify(change)}`, () =>
      assert.match(problems(family, spoiled(family, change)).join('\n'), expected));
  }

  for (const family of ['nodes', 'ip', 'services', 'serviceexports']) {
    const always = Object.keys(JSON.parse(first(family).value));
    const optional = ['K8sNamespace', 'K8sPodName', 'K8sServiceAccount', 'zones'];
    for (const field of always.filter((name) => !optional.includes(name))) {
      it(`${family} without ${field}`, () =>
        assert.match(problems(family, without(family, field)).join('\n'), new RegExp(`${field} is missing`)));
    }
    it(`${family} that is no object`, () => {
      for (const text of ['', '{', '[]', 'null', '7', '\ufffd\ufffd'])
        assert.ok(problems(family, text).length > 0, text);
      assert.match(problems(family, Buffer.from([0x7b, 0xff, 0x7d])).join(), /is not JSON/);
    });
  }

  it('identities', () => {
    const good = first('identities').value;
    const bad: [string, RegExp, string?][] = [
      [good.replace('cluster3', 'cluster4'), /cluster label is "cluster4"/],
      [good.replace('k8s:io.cilium.k8s.policy', 'any:io.cilium.k8s.policy'), /source any/],
      ['k8s:app=baz;', /no cluster label/],
      [good.slice(0, -1), /do not end in a semicolon/],
      [`k8s:z=1;${good}`, /comes after z: not sorted/],
      [`rubbish;${good}`, /"rubbish" is not source:key=value/],
      [good, /outside/, '262144'],
      [good, /decimal number/, '0196915'],
    ];
    for (const [value, expected, name] of bad) assert.match(problems('identities', value, name).join('\n'), expected);
  });

  it('endpoint slices', () => {
    const plain = bytesOf(first('endpointslices'));
    assert.match(problems('endpointslices', plain.subarray(0, 10)).join(), /is no compressed slice/);
    assert.match(problems('endpointslices', 'text').join(), /is no compressed slice/);
    assert.match(problems('endpointslices', plain, 'bar/other').join(), /namespace\/name is "bar\/foo"/);
    const elsewhere = { ...peer, cluster: 'cluster4', id: 4 };
    const found = problems('endpointslices', plain, 'bar/foo', elsewhere).join('\n');
    assert.match(found, /cluster is "cluster3", expected "cluster4"\nclusterID is 3, expected 4/);
  });

  it('names that are none', () => {
    for (const [family, name] of [
      ['nodes', 'a/b'],
      ['services', 'svc'],
      ['services', 'a/b/c'],
      ['ip', 'node-1'],
      ['ip', '10.0.0.1/24/2'],
      ['identities', 'x'],
    ] as const)
      assert.match(problems(family, first(family).value, name).join('\n'), /is no name of this family/, name);
  });

  it('times', () => {
    assert.deepEqual(timeProblems(Buffer.from('2026-01-02T03:04:05Z')), []);
    for (const text of ['', 'now', '2026-01-02', '2026-13-02T03:04:05Z'])
      assert.equal(timeProblems(Buffer.from(text)).length, 1, text);
  });
});

describe('cluster configs', () => {
  const read = (text: string, layout: 'state' | 'cache' = 'state', max: 255 | 511 = 255) => {
    const found: string[] = [];
    const expected = { layout, ownId: 1, maxConnectedClusters: max, allowUnknownFields: false } as const;
    return { accepted: acceptConfig(Buffer.from(text), expected, found), found: found.join('\n') };
  };

  it('say which families are read', () => {
    const families = (capabilities: object) =>
      read(JSON.stringify({ id: 3, capabilities })).accepted?.families.toSorted();
    assert.deepEqual(families({}), ['identities', 'ip', 'nodes', 'services']);
    assert.deepEqual(families({ serviceExportsEnabled: false, endpointSlicesExportMode: 'endpointslices-only' }), [
      'endpointslices',
      'identities',
      'ip',
      'nodes',
      'serviceexports',
    ]);
  });

  const wrong: [string, RegExp, ('state' | 'cache')?, (255 | 511)?][] = [
    ['{"id":0,"capabilities":{}}', /id 0 is not in/],
    ['{"capabilities":{}}', /id is missing/],
    ['{"id":256,"capabilities":{}}', /id 256 is not in 1…255/],
    ['{"id":1,"capabilities":{}}', /reader's own/],
    ['{"id":3,"capabilities":{"maxConnectedClusters":511}}', /is 511, the reader's is 255/],
    ['{"id":3,"capabilities":{}}', /is 255, the reader's is 511/, 'state', 511],
    ['{"id":3,"capabilities":{"endpointSlicesExportMode":"all"}}', /unknown "all"/],
    ['{"id":3,"capabilities":{"cached":true,"syncedCanaries":true}}', /cached is true/],
    ['{"id":3,"capabilities":{"syncedCanaries":true}}', /cached is false/, 'cache'],
    ['{"id":3,"capabilities":{"cached":true}}', /no canaries/, 'cache'],
    ['not JSON', /is not JSON/],
  ];
  for (const [text, expected, layout, max] of wrong) {
    it(`${text} is refused`, () => {
      const { accepted, found } = read(text, layout, max);
      assert.equal(accepted, undefined);
      assert.match(found, expected);
    });
  }

  it('without capabilities are read, and said to be incomplete', () => {
    const { accepted, found } = read('{"id":3}');
    assert.equal(accepted?.id, 3);
    assert.match(found, /capabilities is missing/);
  });
});

describe('text forms', () => {
  it('of addresses are those of Go', () => {
    for (const [from, to] of [
      ['10.0.0.1', '10.0.0.1'],
      ['FD00:0:0:1::0001', 'fd00:0:0:1::1'],
      ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
      ['1:0:2:3:4:5:6:7', '1:0:2:3:4:5:6:7'],
      ['::ffff:10.1.2.3', '10.1.2.3'],
    ] as const)
      assert.equal(canonicalIp(from), to);
  });

  it('of masks have a length, or are none', () => {
    assert.equal(maskLength('////AA==', '10.0.0.0'), 24);
    assert.equal(maskLength('/////w==', '10.0.0.0'), 32);
    assert.equal(maskLength('AAAAAA==', '10.0.0.0'), 0);
    assert.equal(maskLength('//////////8AAAAAAAAAAA==', 'fd00::'), 64);
    for (const mask of ['', '/wD/AA==', '////AA', '!!!!AA=='])
      assert.equal(maskLength(mask, '10.0.0.0'), undefined, mask);
  });
});
