/** Backends that travel as endpoint slices: alone, and beside a legacy value that a service has outgrown. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { shopManifest, shopUrl } from './demo/shop.ts';
import { askAgent } from './labd/daemons.ts';
import { nodePaths } from './netns/names.ts';
import { clustermesh, connect, converged, deployShop, openLab, statusOf, type TestLab } from './testing/e2e.ts';
import { countBy, requests } from './traffic.ts';

const cluster = (name: string, id: number, more = '') => `{ name: ${name}, id: ${id}, nodes: 1${more} }`;
const topology = (more?: string) => `clusters: [${cluster('eu', 1)}, ${cluster('us', 2, more)}]`;

/** All of 100 requests from a pod of eu succeed, and both regions answer. */
async function assertServed(test: TestLab): Promise<void> {
  const results = await requests(test.lab, 'eu/default/client-0', `${await shopUrl(test.lab, 'eu')}/`, 100);
  assert.deepEqual(
    countBy(results, ({ error }) => error ?? 'ok'),
    { ok: 100 },
  );
  const { us = 0, eu = 0 } = countBy(results, (result) => result.cluster ?? '');
  assert.ok(us > 0 && eu > 0, `${eu} answers of eu, ${us} of us`);
}

/** Rows of us that a daemon of eu has, by family. */
const countsAtAgent = async ({ instance }: TestLab) => {
  const { families } = await askAgent(nodePaths(instance, 'eu', 'n1').socket, 'GetStatus');
  return Object.fromEntries(families.flatMap(({ peer, family, count }) => (peer === 'us' ? [[family, count]] : [])));
};
const usAtApiserver = async (test: TestLab) => (await statusOf(test, 'eu')).peers.find(({ name }) => name === 'us');

describe('a region that exports endpoint slices alone', () => {
  let test: TestLab;
  before(async () => {
    test = await openLab({ topology: topology(', endpointSlices: endpointslices-only') });
    await deployShop(test);
    await connect(test);
  });
  after(() => test?.close());

  it('serves pods of the other region, and both sides say that slices are all there is', async () => {
    await assertServed(test);
    const counts = await countsAtAgent(test);
    assert.equal(counts['services'], undefined, 'not followed');
    assert.equal(counts['endpointslices'], 2, 'one slice each of shop and shop-remote');
    const families = (await usAtApiserver(test))?.families.map(({ family }) => family) ?? [];
    assert.ok(families.includes('endpointslices') && !families.includes('services'), families.join());
    const { stdout } = await clustermesh('status', '--context', `${test.instance}/eu`);
    assert.match(stdout, /ENDPOINTSLICES/);
  });
});

describe('a service with more backends than one value of etcd holds', () => {
  let test: TestLab;
  before(async () => {
    test = await openLab({ topology: topology() });
    await deployShop(test);
    await connect(test);
  });
  after(() => test?.close());

  it('is served to the other region all the same, and the status says which readers see what', async () => {
    // The backends of its second port are many; those of the first are pods that answer.
    const withBulk = shopManifest('us').replace(
      '- { name: http, port: 80, targetPort: http, protocol: TCP }',
      '$&\n    - { name: bulk, port: 9000, targetPort: bulk, protocol: TCP }',
    );
    const slice = (n: number) => `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: bulk-${n}, namespace: default, labels: { kubernetes.io/service-name: shop } }
addressType: IPv4
ports: [{ name: bulk, protocol: TCP, port: 9000 }]
endpoints: [${Array.from({ length: 200 }, (_, i) => `{ addresses: ["10.2.${100 + n}.${i + 1}"], zone: us-east-availability-a }`).join(', ')}]
`;
    const bulk = Array.from({ length: 80 }, (_, n) => slice(n)).join('---\n');
    await test.lab.apply('us', `${withBulk}---\n${bulk}`);
    const outgrown =
      /Service default\/shop: with 1600\d backends .* readers of services alone keep its last version that fitted; its endpoint slices carry all backends/;
    await waitFor(async () => outgrown.test((await statusOf(test, 'us')).problems.join('\n')), {
      what: 'the status of us to say so',
      timeoutMs: 30_000,
    });
    const { stdout } = await clustermesh('status', '--context', `${test.instance}/us`);
    assert.match(stdout, outgrown);
    await waitFor(async () => (await countsAtAgent(test))['endpointslices'] === 82, {
      what: 'all slices at the agent of eu',
      timeoutMs: 30_000,
    });
    await converged(test);
    assert.equal((await countsAtAgent(test))['services'], 2, 'the marked value stays');
    await assertServed(test);
  });
});
