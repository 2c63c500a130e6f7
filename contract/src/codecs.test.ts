/** What a stranger may not get past us, and the forms that are as good as the usual ones. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  type Decoded,
  decodeClusterConfig,
  decodeGlobalService,
  decodeIdentityEntry,
  decodeIpEntry,
  decodeNode,
  encodeIpEntry,
  encodeNode,
  makeNode,
  nodeInternalIp,
  nodePodCidrs,
  validateGlobalService,
  validateIpEntry,
  validateNode,
  validatePeerConfig,
} from './index.ts';

const peer = { cluster: 'cluster3', clusterId: 3 };
const range = { ...peer, maxConnectedClusters: 255 } as const;

const nodeText =
  '{"Name":"node-1","Cluster":"cluster3","IPAddresses":[{"Type":"InternalIP","IP":"172.18.0.3"},{"Type":"CiliumInternalIP","IP":"10.244.1.9"}],"IPv4AllocCIDR":{"IP":"10.244.1.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"10.244.1.5","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":3,"Source":"custom-resource","EncryptionKey":0,"Labels":{},"Annotations":null,"WireguardPubKey":"","BootID":""}';
const ipText =
  '{"IP":"10.244.1.79","HostIP":"172.18.0.3","ID":199472,"Key":0,"Metadata":"","K8sNamespace":"foo","K8sPodName":"cep-001","K8sServiceAccount":"default"}';
const serviceText =
  '{"cluster":"cluster3","namespace":"foo","name":"svc","frontends":{"10.96.0.7":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.244.1.79":{"http":{"Protocol":"TCP","Port":8080}}},"zones":{"10.244.1.79":{"zone":"a","forZones":null}},"labels":{},"selector":{"app":"baz"},"includeExternal":true,"shared":true,"clusterID":3}';
const configText =
  '{"id":3,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false}}';
const labelText = 'k8s:app=baz;k8s:io.cilium.k8s.policy.cluster=cluster3;k8s:io.kubernetes.pod.namespace=bar;';

function change(text: string, fields: Record<string, unknown>): string {
  return JSON.stringify({ ...JSON.parse(text), ...fields });
}

function value<T>(decoded: Decoded<T>): T {
  assert.ok(decoded.ok, decoded.ok ? '' : decoded.reason);
  return decoded.value;
}

/** Decodes, then validates if it decoded: what a reader does with one object. */
const readers = {
  node: (text: string, name = 'node-1') => {
    const decoded = decodeNode(text);
    return decoded.ok ? validateNode(decoded.value, { ...peer, name }) : decoded;
  },
  ip: (text: string, name = '10.244.1.79') => {
    const decoded = decodeIpEntry(text);
    return decoded.ok ? validateIpEntry(decoded.value, { ...range, name }) : decoded;
  },
  service: (text: string, name = 'foo/svc') => {
    const decoded = decodeGlobalService(text);
    return decoded.ok ? validateGlobalService(decoded.value, { ...peer, name }) : decoded;
  },
  config: (text: string) => {
    const decoded = decodeClusterConfig(text);
    return decoded.ok ? validatePeerConfig('cluster3', decoded.value, { id: 1, maxConnectedClusters: 255 }) : decoded;
  },
  identity: (text: string, name = '196915') => decodeIdentityEntry(name, text, range),
};

function refuses(read: () => Decoded<unknown>, why: RegExp): void {
  const decoded = read();
  assert.equal(decoded.ok, false, 'was accepted');
  if (!decoded.ok) assert.match(decoded.reason, why);
}

describe('nodes', () => {
  it('are read as published', () => {
    const node = value(readers.node(nodeText));
    assert.equal(nodeInternalIp(node), '172.18.0.3');
    assert.deepEqual(nodePodCidrs(node), ['10.244.1.0/24']);
  });

  it('may give CIDRs as text; we write the object form', () => {
    const text = change(nodeText, { IPv4AllocCIDR: '10.244.1.0/24', IPv6SecondaryAllocCIDRs: ['fd00:1::/64'] });
    const node = value(readers.node(text));
    assert.deepEqual(nodePodCidrs(node), ['10.244.1.0/24', 'fd00:1::/64']);
    const written = JSON.parse(encodeNode(node));
    assert.deepEqual(written.IPv4AllocCIDR, { IP: '10.244.1.0', Mask: '////AA==' });
    assert.deepEqual(written.IPv6SecondaryAllocCIDRs, [{ IP: 'fd00:1::', Mask: '//////////8AAAAAAAAAAA==' }]);
  });

  it('keep fields that we do not know, and our own extension', () => {
    const node = value(readers.node(change(nodeText, { NewField: [1], 'x-clustermesh': { region: 'eu-west' } })));
    assert.deepEqual(JSON.parse(encodeNode(node)).NewField, [1]);
    assert.equal(node['x-clustermesh']?.region, 'eu-west');
  });

  it('of ours have every field of the struct in its order', () => {
    const made = makeNode({
      name: 'n1',
      cluster: 'eu',
      clusterId: 1,
      internalIp: '172.31.1.11',
      gatewayIp: '10.1.1.1',
      podCidr: '10.1.1.0/24',
      labels: {},
    });
    assert.deepEqual(Object.keys(JSON.parse(encodeNode(made))), Object.keys(JSON.parse(nodeText)));
  });

  const wrong: [string, Record<string, unknown>, RegExp][] = [
    ['of another cluster', { Cluster: 'cluster4' }, /cluster4.*expected cluster3/],
    ['with another cluster id', { ClusterID: 4 }, /cluster id 4, expected 3/],
    ['under the key of another', { Name: 'node-2' }, /node-2.*node-1/],
    ['without a name', { Name: '' }, /Name/],
    ['with a malformed mask', { IPv4AllocCIDR: { IP: '10.1.0.0', Mask: '/wD/AA==' } }, /IPv4AllocCIDR/],
    [
      'with a mask of the other family',
      { IPv4AllocCIDR: { IP: '10.1.0.0', Mask: '/////wAAAAAAAAAAAAAAAA==' } },
      /CIDR/,
    ],
    ['with a malformed text CIDR', { IPv4AllocCIDR: '10.1.0.0/40' }, /IPv4AllocCIDR/],
    ['with a tunnel address that is none', { IPAddresses: [{ Type: 'InternalIP', IP: 'nowhere' }] }, /nowhere/],
    ['with a number for an address list', { IPAddresses: 7 }, /IPAddresses/],
  ];
  for (const [what, fields, why] of wrong) {
    it(`${what} are refused`, () => refuses(() => readers.node(change(nodeText, fields)), why));
  }
});

describe('ip entries', () => {
  it('are read with and without a null mask', () => {
    assert.equal(value(readers.ip(ipText)).ID, 199_472);
    assert.equal(value(readers.ip(change(ipText, { Mask: null }))).ID, 199_472);
  });

  it('of a prefix lie under the prefix', () => {
    const text = change(ipText, { IP: '10.244.1.0', Mask: '////AA==' });
    value(readers.ip(text, '10.244.1.0/24'));
    refuses(() => readers.ip(text, '10.244.1.0'), /lies under the key of 10\.244\.1\.0$/);
  });

  it("make a peer's host a remote node, and keep other reserved numbers", () => {
    assert.equal(value(readers.ip(change(ipText, { ID: 1 }))).ID, 6);
    assert.equal(value(readers.ip(change(ipText, { ID: 4 }))).ID, 4);
  });

  it('are written back as they were', () => {
    assert.deepEqual(JSON.parse(encodeIpEntry(value(decodeIpEntry(ipText)))), JSON.parse(ipText));
  });

  const wrong: [string, Record<string, unknown>, RegExp][] = [
    ['under the key of another address', { IP: '10.244.1.80' }, /10\.244\.1\.80 lies under the key of 10\.244\.1\.79/],
    ['with the identity of another cluster', { ID: 262_144 }, /262144.*not in the range of cluster cluster3/],
    ['with the identity just below the range', { ID: 196_607 }, /range/],
    ['with a node-local identity', { ID: 0x01000001 }, /range/],
    ['with a negative identity', { ID: -1 }, /ID/],
    ['with a fractional identity', { ID: 199_472.5 }, /ID/],
    ['without an address', { IP: '' }, /IP/],
    ['with an address that is none', { IP: '10.244.1' }, /malformed/],
    ['with a tunnel endpoint that is none', { HostIP: 'node-1' }, /HostIP/],
    ['with a key beyond a byte', { Key: 256 }, /Key/],
  ];
  for (const [what, fields, why] of wrong) {
    it(`${what} are refused`, () => refuses(() => readers.ip(change(ipText, fields)), why));
  }

  it('with a mask of the other address family are refused', () => {
    const text = change(ipText, { IP: '10.244.1.0', Mask: '////////////////////AA==' });
    refuses(() => readers.ip(text, '10.244.1.0/120'), /malformed/);
  });
});

describe('global services', () => {
  it('are read as published', () => {
    const service = value(readers.service(serviceText));
    assert.deepEqual(service.backends, { '10.244.1.79': { http: { Protocol: 'TCP', Port: 8080 } } });
    assert.equal(service.zones?.['10.244.1.79']?.zone, 'a');
  });

  it('may be headless, unnamed and without labels', () => {
    const text = change(serviceText, {
      frontends: null,
      backends: { 'fd00::1': { '': { Protocol: 'UDP', Port: 53 } } },
    });
    const service = value(readers.service(change(text, { labels: null, selector: null, zones: undefined })));
    assert.deepEqual(service.frontends, {});
    assert.equal(service.backends['fd00::1']?.['']?.Port, 53);
  });

  const wrong: [string, Record<string, unknown>, RegExp][] = [
    ['of another cluster', { cluster: 'cluster4' }, /cluster4.*expected cluster3/],
    ['with another cluster id', { clusterID: 4 }, /cluster id 4, expected 3/],
    ['under the key of another', { name: 'other' }, /foo\/other lies under the key of foo\/svc/],
    ['of another namespace', { namespace: 'bar' }, /bar\/svc lies under/],
    ['with a backend that is no address', { backends: { 'pod-1': {} } }, /pod-1/],
    ['with a port beyond 65535', { backends: { '10.0.0.1': { a: { Protocol: 'TCP', Port: 65_536 } } } }, /Port/],
    ['with a port that is text', { frontends: { '10.0.0.1': { a: { Protocol: 'TCP', Port: '80' } } } }, /Port/],
  ];
  for (const [what, fields, why] of wrong) {
    it(`${what} are refused`, () => refuses(() => readers.service(change(serviceText, fields)), why));
  }
});

describe('identities', () => {
  it('are read with their label string as published', () => {
    assert.deepEqual(value(readers.identity(labelText)), { id: 196_915, labels: labelText });
  });

  it('outside the range, without the cluster label or with a malformed number are refused', () => {
    refuses(() => readers.identity(labelText, '262144'), /not in the range/);
    refuses(() => readers.identity(labelText, '255'), /not in the range/);
    refuses(() => readers.identity(labelText, '0196915'), /no decimal number/);
    refuses(() => readers.identity(labelText, '196915/x'), /no decimal number/);
    refuses(() => readers.identity('k8s:app=baz;'), /expected cluster3/);
    refuses(() => readers.identity(labelText.replace('cluster3', 'cluster4')), /expected cluster3/);
    refuses(() => readers.identity(labelText.replace('k8s:io.cilium.k8s.policy', 'any:io.cilium.k8s.policy')), /label/);
    refuses(() => readers.identity('rubbish'), /malformed/);
  });
});

describe('cluster configs', () => {
  it('are read as published, with absent capabilities too', () => {
    assert.equal(value(readers.config(configText)).capabilities.serviceExportsEnabled, false);
    assert.deepEqual(value(readers.config('{"id":3}')).capabilities, {});
    value(readers.config('{"id":3,"capabilities":{"maxConnectedClusters":0}}'));
  });

  const wrong: [string, string, RegExp][] = [
    ['with id 0', '{"id":0,"capabilities":{}}', /not in 1…255/],
    ['with an id beyond the maximum', '{"id":256,"capabilities":{}}', /256 is not in 1…255/],
    ["with this cluster's own id", '{"id":1,"capabilities":{}}', /own id/],
    ['with another maximum', '{"id":3,"capabilities":{"maxConnectedClusters":511}}', /511.*must agree/],
    ['with an unknown export mode', '{"id":3,"capabilities":{"endpointSlicesExportMode":"all"}}', /"all"/],
    ['with an id that is text', '{"id":"3","capabilities":{}}', /id/],
  ];
  for (const [what, text, why] of wrong) it(`${what} are refused`, () => refuses(() => readers.config(text), why));
});

describe('any decoder', () => {
  it('refuses what is not JSON, not an object, or empty, with a reason and without throwing', () => {
    for (const read of [readers.node, readers.ip, readers.service, readers.config]) {
      for (const text of ['', '{', 'null', '[]', '"text"', '7', '\u0000']) refuses(() => read(text), /\w/);
    }
  });

  it('neither throws nor changes objects of the language, whatever a stranger writes', () => {
    const hostile = '{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}}}';
    fc.assert(
      fc.property(fc.oneof(fc.json(), fc.string(), fc.constant(hostile)), (text) => {
        for (const read of Object.values(readers)) read(text);
        value(readers.node(change(nodeText, { Labels: JSON.parse('{"__proto__":"x"}'), extra: text })));
        assert.equal(({} as { polluted?: unknown }).polluted, undefined);
      }),
    );
  });
});
