import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LabObject } from './objects.ts';
import { parseObjects } from './objects.ts';
import { type SlicePod, slicesOf, targetPortsOf } from './slices.ts';

const one = (text: string): LabObject => {
  const [document] = parseObjects(text, 'test');
  assert.ok(document !== undefined && 'object' in document, JSON.stringify(document));
  return document.object;
};
const service = one(`kind: Service
metadata: { name: shop }
spec: { selector: { app: shop }, ports: [{ name: http, port: 80, targetPort: web }] }`);

function pod(name: string, change: Partial<SlicePod> = {}, containerPort = 8080): SlicePod {
  const object = one(`kind: Pod
metadata: { name: ${name} }
spec: { containers: [{ command: [x], ports: [{ name: web, containerPort: ${containerPort} }] }] }`);
  assert.ok(object.kind === 'Pod');
  const base = {
    namespace: 'default',
    name,
    node: 'n1',
    zone: 'z',
    ip: '10.1.1.2',
    labels: { app: 'shop' },
    spec: object.template.spec,
  };
  return { ...base, ready: true, serving: true, terminating: false, ...change };
}

test('lists selected pods only, with node and zone, in a stable order', () => {
  const [slice, ...more] = slicesOf(service, [
    pod('b'),
    pod('a'),
    pod('c', { labels: { app: 'other' } }),
    pod('d', { namespace: 'x' }),
  ]);
  assert.equal(more.length, 0);
  assert.equal(slice?.metadata.labels['kubernetes.io/service-name'], 'shop');
  assert.deepEqual(slice?.ports, [{ name: 'http', protocol: 'TCP', port: 8080 }]);
  const names = slice?.endpoints.map((endpoint) => (endpoint as { targetRef: { name: string } }).targetRef.name);
  assert.deepEqual(names, ['a', 'b']);
});

test('a terminating pod serves but is not ready; a dead one does neither', () => {
  const [slice] = slicesOf(service, [pod('a', { terminating: true }), pod('b', { ready: false, serving: false })]);
  const conditions = slice?.endpoints.map((endpoint) => (endpoint as { conditions: object }).conditions);
  assert.deepEqual(conditions, [
    { ready: false, serving: true, terminating: true },
    { ready: false, serving: false, terminating: false },
  ]);
});

test('pods that resolve a named port differently are in slices of their own', () => {
  const slices = slicesOf(service, [pod('a', {}, 8080), pod('b', {}, 9090)]);
  assert.deepEqual(slices.map((slice) => slice.ports[0]?.port).toSorted(), [8080, 9090]);
  assert.equal(new Set(slices.map((slice) => slice.metadata.name)).size, 2);
});

test('a service of two families has a slice of each, of the pods that have an address of it', () => {
  const dual = one(`kind: Service
metadata: { name: shop }
spec: { selector: { app: shop }, ipFamilyPolicy: PreferDualStack, ports: [{ port: 80 }] }`);
  const slices = slicesOf(dual, [pod('a', { ipv6: 'fd00:1:1::2' }), pod('b', { ip: '10.1.1.3' })]);
  const addresses = slices.map(({ addressType, endpoints }) => [
    addressType,
    ...endpoints.flatMap((endpoint) => (endpoint as { addresses: string[] }).addresses),
  ]);
  assert.deepEqual(addresses, [
    ['IPv4', '10.1.1.2', '10.1.1.3'],
    ['IPv6', 'fd00:1:1::2'],
  ]);
  assert.equal(new Set(slices.map((slice) => slice.metadata.name)).size, 2);
});

test('what it does not understand selects nothing', () => {
  assert.deepEqual(slicesOf(one('kind: Service\nmetadata: { name: s }\nspec: { ports: 7 }'), [pod('a')]), []);
  assert.deepEqual(slicesOf(one('kind: Service\nmetadata: { name: s }\nspec: { ports: [] }'), [pod('a')]), []);
});

test('services say which ports of a pod to ask', () => {
  assert.deepEqual(targetPortsOf([service], pod('a')), [8080]);
  assert.deepEqual(targetPortsOf([service], pod('a', { labels: {} })), []);
});
