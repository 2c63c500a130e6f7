import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeLocalPolicy, type PolicyContext } from '@clustermesh/contract';
import { parseManifestFile } from './parse.ts';
import { readPolicies } from './policies.ts';

const LOCAL: PolicyContext = { cluster: 'eu', defaultLocalCluster: true };
const read = (text: string) => {
  const parsed = parseManifestFile('p.yaml', text);
  return { ...readPolicies(parsed.objects, LOCAL), malformed: parsed.problems };
};

const FILE = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web, namespace: shop }
spec: { podSelector: { matchLabels: { app: web } }, ingress: [{ ports: [{ port: 80 }] }] }
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: web, namespace: shop }
spec: { endpointSelector: {}, egress: [{ toFQDNs: [{ matchName: example.org }] }, { toEntities: [cluster] }] }
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: { name: base }
specs: [{ endpointSelector: {}, ingressDeny: [{ fromEntities: [world] }] }]
`;

test('policies of all three kinds come out in one form, by kind, namespace and name', () => {
  const { policies, malformed } = read(FILE);
  assert.deepEqual(malformed, []);
  assert.deepEqual([...policies.keys()].sort(), ['ccnp/base', 'cnp/shop/web', 'knp/shop/web']);
  for (const policy of policies.values()) {
    const again = decodeLocalPolicy(JSON.stringify(policy));
    assert.ok(again.ok);
    assert.deepEqual(again.value, policy);
  }
});

test('what is not supported is a problem with file, document, policy and place', () => {
  assert.deepEqual(read(FILE).problems, [
    'p.yaml, document 2: CiliumNetworkPolicy shop/web: spec.egress[0].toFQDNs: DNS names are not supported; the rule allows nothing',
  ]);
});

test('a port may be given by name', () => {
  const { policies, problems } = read(FILE.replace('{ port: 80 }', '{ port: http }'));
  const rules = policies.get('knp/shop/web')?.specs.flatMap((spec) => spec.rules);
  assert.deepEqual(rules?.[0]?.layer4, [{ kind: 'named', protocol: 'TCP', name: 'http' }]);
  assert.ok(!problems.join().includes('http'));
});

test('a malformed policy is a problem like any malformed document, and the ones beside it stay', () => {
  const { policies, malformed } = read(FILE.replace('{ port: 80 }', '{ port: 80, endPort: 79 }'));
  assert.match(malformed.join(), /p\.yaml, document 1: NetworkPolicy web: spec\.ingress\.0\.ports\.0: endPort needs/);
  assert.equal(policies.size, 2);
});

test('a namespaced policy for nodes, and one without any spec, are malformed', () => {
  for (const spec of ['spec: { nodeSelector: {}, ingress: [{}] }', 'specs: []']) {
    const { malformed } = read(`apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: { name: x }\n${spec}\n`);
    assert.equal(malformed.length, 1, spec);
  }
});
