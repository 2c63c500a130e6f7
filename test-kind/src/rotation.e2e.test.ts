/** Certificates and CA of a cluster are replaced under everybody's feet: no request fails, and no change is missed on the other side. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { isIssuedBy, loadCa } from '@clustermesh/pki';
import { waitFor } from '@clustermesh/runtime';
import { shopUrl } from './demo/shop.ts';
import { clusterPaths, nodePaths } from './netns/names.ts';
import { clustermesh, connect, converged, deployShop, etcdctl, openLab, type TestLab } from './testing/e2e.ts';
import { type Load, startLoad } from './traffic.ts';

/** A pod of us that uses the global service, half of which is in eu; and the other way round. */
const CLIENTS = [
  ['us', 'us/default/client-0'],
  ['eu', 'eu/default/client-0'],
] as const;
const ROTATING = 'eu';

let test: TestLab;
before(async () => {
  test = await openLab();
  await deployShop(test);
  await connect(test);
});
after(() => test?.close());

async function command(...args: string[]): Promise<string> {
  const output = await clustermesh(...args, '--context', `${test.instance}/${ROTATING}`);
  assert.equal(output.code, 0, `clustermesh ${args.join(' ')}:\n${output.stdout}${output.stderr}`);
  return output.stdout;
}

const serviceOf = (number: number) => `counted-${number}`;

/** Counts by global services of eu, one after the other: each is a change that us has to hear of. */
function startCounting() {
  let isRunning = true;
  let count = 0;
  const done = (async () => {
    while (isRunning) {
      const metadata = `{ name: ${serviceOf(count)}, annotations: { service.cilium.io/global: "true" } }`;
      const spec = '{ selector: { app: nobody }, ports: [{ port: 80 }] }';
      await test.lab.apply(ROTATING, `apiVersion: v1\nkind: Service\nmetadata: ${metadata}\nspec: ${spec}\n`);
      count++;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  })();
  return {
    count: () => count,
    async stop() {
      isRunning = false;
      await done;
      return count;
    },
  };
}

async function heardByUs(): Promise<ReadonlySet<string>> {
  const prefix = `cilium/cache/services/v1/${ROTATING}/default/`;
  const { stdout } = await etcdctl(test, 'us', 'admin', 'get', prefix, '--prefix', '--keys-only');
  return new Set(stdout.split('\n').map((key) => key.slice(prefix.length)));
}

async function pidsOf(): Promise<Readonly<Record<string, number | undefined>>> {
  const { daemons } = await test.lab.status();
  return Object.fromEntries(daemons.map(({ name, pid }) => [name, pid]));
}

const goesOn = (loads: readonly Load[]) => {
  const from = loads.map(({ results }) => results.length);
  return waitFor(() => loads.every(({ results }, index) => results.length > from[index]! + 100), {
    what: 'two seconds more of requests',
    timeoutMs: 60_000,
  });
};

it('F15, F16 leaves and CA of one cluster are replaced: 0 failed requests, 0 changes missed', async () => {
  const loads = await Promise.all(
    CLIENTS.map(async ([cluster, pod]) => startLoad(test.lab, pod, `${await shopUrl(test.lab, cluster)}/`)),
  );
  const counting = startCounting();
  const { pki } = clusterPaths(test.instance, ROTATING);
  const before = { ca: loadCa(pki).certPem, pids: await pidsOf() };
  await goesOn(loads);

  const leaves = await command('rotate', 'leaves');
  assert.match(leaves, /server\.crt \(asked for\)/);
  await goesOn(loads);
  const startedAt = performance.now();
  const rotated = await command('rotate', 'ca', '--overlap', '2s');
  console.log(`${rotated}CA replaced in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
  await goesOn(loads);

  const now = loadCa(pki).certPem;
  assert.notEqual(now, before.ca);
  assert.equal(readFileSync(join(pki, 'ca.crt'), 'utf8').trim(), now.trim(), 'the old one is not trusted any more');
  for (const { name } of test.topology.clusters.find(({ name: cluster }) => cluster === ROTATING)!.nodes) {
    const files = nodePaths(test.instance, ROTATING, name).pki;
    assert.ok(isIssuedBy(readFileSync(join(files, 'node.crt'), 'utf8'), now), name);
    assert.equal(readFileSync(join(files, 'ca.crt'), 'utf8').trim(), now.trim(), name);
  }
  const held = join(clusterPaths(test.instance, 'us').peers, `${ROTATING}.etcd-client.crt`);
  assert.ok(isIssuedBy(readFileSync(held, 'utf8'), now), 'the peer shows a certificate of the new CA');

  const count = await counting.stop();
  const expected = Array.from({ length: count }, (_, number) => serviceOf(number));
  let missing: readonly string[] = expected;
  await waitFor(
    async () => {
      const heard = await heardByUs();
      missing = expected.filter((service) => !heard.has(service));
      return missing.length === 0;
    },
    { what: 'every change of eu at us', timeoutMs: 60_000, intervalMs: 500 },
  ).catch((error: Error) => assert.fail(`${error.message}: of ${count} missing ${missing.slice(0, 10).join(', ')}`));
  await converged(test);

  const results = (await Promise.all(loads.map((load) => load.stop()))).flat();
  const failed = results.filter(({ error }) => error !== undefined);
  assert.deepEqual(failed, [], `${failed.length} of ${results.length} requests failed`);
  for (const cluster of ['eu', 'us'])
    assert.ok(
      results.some((result) => result.cluster === cluster),
      `${cluster} has answered`,
    );
  const restarted = Object.entries(await pidsOf()).flatMap(([name, pid]) => (pid === before.pids[name] ? [] : [name]));
  assert.deepEqual(restarted.sort(), [`${ROTATING}/etcd`, `${ROTATING}/redis`], 'nothing else was restarted');
  console.log(`${results.length} requests, none failed; ${count} changes, none missed`);
});
