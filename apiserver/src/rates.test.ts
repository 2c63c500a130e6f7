/** `rates` of apiserver.yaml: a writer sends a tenth of a second's keys per transaction, which etcd's revisions show. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect, startCluster, type TestCluster } from './testing/control-plane.ts';

const SERVICES = 6;
const RATES = { keysPerSecond: 10, bootstrapKeysPerSecond: 20 };

/** Global services `shop/web-<n>`, with one slice each. */
const manifest = (backend: string) =>
  Array.from(
    { length: SERVICES },
    (_, n) => `apiVersion: v1
kind: Service
metadata: { name: web-${n}, namespace: shop, annotations: { service.cilium.io/global: "true" } }
spec: { clusterIP: 10.96.0.${10 + n}, ports: [{ name: http, port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-${n}-1, namespace: shop, labels: { kubernetes.io/service-name: web-${n} } }
addressType: IPv4
endpoints: [{ addresses: ["${backend}"] }]
ports: [{ name: http, port: 8080 }]
`,
  ).join('---\n');

/** The most keys under a prefix that were written by one transaction, once all services there have the backend. */
async function largestBatch(cluster: TestCluster, layout: 'state' | 'cache', owner: string, backend: string) {
  const { admin } = cluster;
  const services = `cilium/${layout}/services/v1/${owner}/`;
  await cluster.eventually(`${services} with ${backend}`, async () => {
    const { kvs } = await admin.range(services);
    return kvs.length === SERVICES && kvs.every((kv) => kv.value.includes(`"${backend}"`));
  });
  const perRevision = new Map<number, number>();
  for (const { modRevision } of (await admin.range(services)).kvs)
    perRevision.set(modRevision, (perRevision.get(modRevision) ?? 0) + 1);
  return Math.max(...perRevision.values());
}

test("what is written of this cluster and of a peer keeps to the config's rates, at the beginning and afterwards", async (t) => {
  const [eu, us] = await Promise.all([
    startCluster(t, { name: 'eu', id: 1, config: { rates: RATES } }),
    startCluster(t, { name: 'us', id: 2 }),
  ]);
  await eu.stop();
  eu.manifest('shop.yaml', manifest('10.1.1.5'));
  us.manifest('shop.yaml', manifest('10.2.1.5'));
  assert.equal(await largestBatch(us, 'state', 'us', '10.2.1.5'), SERVICES, 'us is not slowed down');
  await eu.start();
  await connect(eu, us);
  assert.ok((await largestBatch(eu, 'state', 'eu', '10.1.1.5')) <= 2);
  assert.ok((await largestBatch(eu, 'cache', 'us', '10.2.1.5')) <= 2);
  await eu.eventually('all of us to be mirrored', () => eu.plane.mirror.peers()[0]?.ready);
  await eu.eventually('all of eu to be written', () => eu.plane.notReady() === undefined);

  eu.manifest('shop.yaml', manifest('10.1.1.6'));
  us.manifest('shop.yaml', manifest('10.2.1.6'));
  assert.equal(await largestBatch(eu, 'state', 'eu', '10.1.1.6'), 1);
  assert.equal(await largestBatch(eu, 'cache', 'us', '10.2.1.6'), 1);
});
