import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseManifestFile } from './parse.ts';

const GOOD = `
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { ports: [{ port: 80 }] }
`;

test('reads many documents, lists, and defaults the namespace', () => {
  const parsed = parseManifestFile(
    'app.yaml',
    `---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Service
    metadata: { name: web }
    spec: { ports: [{ port: 80 }] }
  - apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
    addressType: IPv4
    endpoints: [{ addresses: [10.1.0.5] }]
    ports: [{ port: 8080 }]
---
# nothing but a comment
`,
  );
  assert.deepEqual(parsed.problems, []);
  assert.deepEqual(
    parsed.objects.map((object) => object.key),
    ['Namespace shop', 'Service default/web', 'EndpointSlice shop/web-1'],
  );
});

test('other kinds are ignored with a note', () => {
  const parsed = parseManifestFile('a.yaml', 'apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: x }\n');
  assert.deepEqual(parsed.problems, []);
  assert.match(parsed.notes.join(), /a\.yaml, document 1: kind Deployment of apps\/v1 is not read by the mesh/);
});

for (const { title, text, problem } of [
  { title: 'broken YAML', text: 'kind: [', problem: /document 2: not YAML/ },
  { title: 'no Kubernetes object', text: 'just: a map', problem: /document 2: apiVersion and kind are needed/ },
  { title: 'a scalar', text: 'hello', problem: /document 2: apiVersion and kind are needed/ },
  {
    title: 'a service without ports',
    text: 'apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: {}',
    problem: /Service web: spec\.ports: must not be empty/,
  },
  {
    title: 'a port out of range',
    text: 'apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: { ports: [{ port: 70000 }] }',
    problem: /spec\.ports\.0\.port/,
  },
  {
    title: 'two unnamed ports',
    text: 'apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: { ports: [{ port: 1 }, { port: 2 }] }',
    problem: /spec\.ports\.0\.name: is needed with more than one port/,
  },
  {
    title: 'a malformed clusterIP',
    text: 'apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: { clusterIP: 10.96.0, ports: [{ port: 1 }] }',
    problem: /spec\.clusterIP: is neither an IP address nor None/,
  },
  {
    title: 'a name that is no name',
    text: 'apiVersion: v1\nkind: Service\nmetadata: { name: ../x }\nspec: { ports: [{ port: 1 }] }',
    problem: /metadata\.name: is no DNS label/,
  },
  {
    title: 'an annotation that is a boolean instead of a string',
    text: 'apiVersion: v1\nkind: Service\nmetadata: { name: web, annotations: { service.cilium.io/global: true } }\nspec: { ports: [{ port: 1 }] }',
    problem: /must be a string \(quote it\)/,
  },
  {
    title: 'a slice with a malformed address',
    text: 'apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: { name: s, labels: { kubernetes.io/service-name: web } }\naddressType: IPv4\nendpoints: [{ addresses: [10.1.0.500] }]',
    problem: /EndpointSlice s: endpoints\.0\.addresses\.0: "10\.1\.0\.500" is no IPv4 address/,
  },
  {
    title: 'a slice that names no service',
    text: 'apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: { name: s }\naddressType: IPv4\nendpoints: []',
    problem: /metadata\.labels\.kubernetes\.io\/service-name: is needed/,
  },
  {
    title: 'aliases without end',
    text: `a: &a [1,1,1,1,1,1,1,1,1]\n${'bcdefgh'.replace(/./g, (name, index: number) => `${name}: &${name} [${`*${'abcdefgh'[index]},`.repeat(9).slice(0, -1)}]\n`)}`,
    problem: /not YAML/,
  },
]) {
  test(`${title} is reported with its place, and the documents around it are read`, () => {
    const parsed = parseManifestFile('app.yaml', `${GOOD}---\n${text}\n---\n${GOOD.replace('web', 'api')}`);
    assert.match(parsed.problems.join('\n'), problem);
    assert.deepEqual(
      parsed.objects.map((object) => object.key),
      ['Service shop/web', 'Service shop/api'],
    );
  });
}
