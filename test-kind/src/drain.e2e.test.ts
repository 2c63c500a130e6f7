/** Two clusters part while traffic flows from one to the other, and no request fails. */
import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { shopUrl } from './demo/shop.ts';
import { clustermesh, connect, deployShop, openLab, type TestLab } from './testing/e2e.ts';
import { startLoad } from './traffic.ts';

let test: TestLab;
before(async () => {
  test = await openLab();
  await deployShop(test);
  await connect(test);
});
after(() => test?.close());

it('disconnect --drain moves traffic away first: none of the requests fails', async () => {
  const load = await startLoad(test.lab, 'us/default/client-0', `${await shopUrl(test.lab, 'us')}/`, {
    intervalMs: 10,
    timeoutMs: 5000,
  });
  await waitFor(() => load.results.some((result) => result.cluster === 'eu'), {
    what: 'traffic to the other cluster',
    timeoutMs: 30_000,
  });
  const pair = ['--context', `${test.instance}/us`, '--destination-context', `${test.instance}/eu`];
  const output = await clustermesh('disconnect', ...pair, '--drain');
  assert.equal(output.code, 0, output.stdout + output.stderr);
  const parted = Date.now();
  await waitFor(() => load.results.some((result) => result.at > parted + 500), { what: 'more', timeoutMs: 30_000 });
  const results = await load.stop();
  assert.match(output.stdout, /withdraw-services.*await-moved.*remove-config/s);
  assert.deepEqual(
    results.filter((result) => result.error !== undefined),
    [],
  );
  assert.ok(results.every((result) => result.at <= parted || result.cluster === 'us'));
  console.log(`${results.length} requests, none failed`);
});
