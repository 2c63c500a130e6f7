/** Every way in which a cluster may publish, read by the strict reader at its source and in a peer's mirror. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { repoRoot } from '@clustermesh/runtime';
import { connect, shopManifest, startCluster, type TestCluster } from './testing/control-plane.ts';
import { assertAccepted, counts, startReader } from './testing/strict-reader.ts';

interface Mode {
  /** Sections of apiserver.yaml. */
  readonly config?: Readonly<Record<string, unknown>>;
  /** Of both clusters (default 255). */
  readonly maxClusters?: 255 | 511;
  /** No service, no node: every prefix is empty. */
  readonly isEmpty?: boolean;
  /** By another writer, while the apiserver is not there. */
  readonly meddle?: (us: TestCluster) => Promise<void>;
  /** Differences to one object of every family but service exports. */
  readonly expected?: Readonly<Record<string, number>>;
  /** Capabilities in the config that was read. */
  readonly capabilities?: Readonly<Record<string, unknown>>;
}

const ONE_EACH = { nodes: 1, services: 1, identities: 1, ip: 1, serviceexports: 0, endpointslices: 1 };
const NOTHING = { nodes: 0, services: 0, identities: 0, ip: 0, serviceexports: 0, endpointslices: 0 };

/** The golden vectors of service exports: our own apiserver has none to publish. */
async function putExports(us: TestCluster): Promise<void> {
  const file = join(repoRoot(), 'contract/fixtures/both-layouts.json');
  const { vectors } = JSON.parse(readFileSync(file, 'utf8').replaceAll('cluster3', 'us')) as {
    vectors: { family: string; comment?: string; state: string; value: string }[];
  };
  for (const { family, comment = '', state, value } of vectors)
    if (family === 'serviceexports' && !comment.includes('newer writer')) await us.admin.put(state, value);
  const config = 'cilium/cluster-config/us';
  const { id, capabilities } = JSON.parse((await us.admin.get(config))?.value.toString() ?? '');
  await us.admin.put(config, JSON.stringify({ id, capabilities: { ...capabilities, serviceExportsEnabled: true } }));
  await us.admin.put('cilium/synced/us/cilium/state/serviceexports/v1', new Date().toISOString());
}

const leased = async (cluster: TestCluster, prefix: string) => {
  const { kvs } = await cluster.admin.range(prefix);
  return kvs.length > 0 && kvs.every(({ lease }) => lease !== '0');
};

const MODES: Readonly<Record<string, Mode>> = {
  'services alone': {
    config: { export: { endpointSlices: 'services' } },
    expected: { endpointslices: 0 },
    capabilities: { endpointSlicesExportMode: undefined },
  },
  'endpoint slices alone': {
    config: { export: { endpointSlices: 'endpointslices-only' } },
    expected: { services: 0 },
    capabilities: { endpointSlicesExportMode: 'endpointslices-only' },
  },
  'leased keys': {
    config: { export: { leaseTtlSeconds: 900 } },
    meddle: async (us) => {
      for (const prefix of ['cilium/state/', 'cilium/synced/us/']) assert.ok(await leased(us, prefix), prefix);
    },
  },
  'empty prefixes': { isEmpty: true, expected: NOTHING },
  'service exports': {
    meddle: putExports,
    expected: { serviceexports: 2 },
    capabilities: { serviceExportsEnabled: true },
  },
  '511 clusters': { maxClusters: 511, capabilities: { maxConnectedClusters: 511 } },
};

/** `us`, whose sources were all there before its control plane was. */
async function publisher(t: TestContext, { config = {}, maxClusters = 255, isEmpty = false }: Mode) {
  const cluster = { maxConnectedClusters: maxClusters };
  const nodes = isEmpty ? [] : ['n1'];
  const us = await startCluster(t, { name: 'us', id: 2, nodes, cluster, config });
  await us.eventually('bootstrap', () => us.plane.bootstrap.ready());
  await us.plane.bootstrap.addPeer('eu');
  await us.stop();
  if (!isEmpty) {
    us.manifest('shop.yaml', shopManifest(['10.2.1.2']));
    const identity = (maxClusters === 255 ? 2 << 16 : 2 << 15) + 300;
    await us.publishNode('n1', 1, [{ id: 'a', ipv4: '10.2.1.2', identity }]);
  }
  // As if it had never run: the canaries of the first run are not those that are to be judged.
  await us.admin.deletePrefix('cilium/');
  await us.start();
  await us.eventually('export', () => us.plane.exporter.synced().has('ip') && us.plane.exporter.counts());
  return us;
}

for (const [name, mode] of Object.entries(MODES))
  test(`a strict reader accepts what is published with ${name}, at its source and mirrored`, async (t) => {
    const us = await publisher(t, mode);
    const cluster = { maxConnectedClusters: mode.maxClusters ?? 255 };
    const eu = await startCluster(t, { name: 'eu', id: 1, cluster });
    await connect(eu, us);
    await eu.eventually('us', () => eu.plane.mirror.peers().find((peer) => peer.cluster === 'us')?.ready);
    await us.stop();
    await mode.meddle?.(us);
    const expected = { ...ONE_EACH, ...mode.expected };
    await eu.eventually('the copies', async () => {
      const copies = await Promise.all(
        Object.keys(expected).map(async (family) => [family, await eu.admin.count(`cilium/cache/${family}/v1/us/`)]),
      );
      return JSON.stringify(Object.fromEntries(copies)) === JSON.stringify(expected);
    });
    const options = ['--own-id', '1', '--max-clusters', String(mode.maxClusters ?? 255), '--unchanging'];
    for (const [from, as, layout] of [
      [us, 'remote-eu', 'state'],
      [eu, 'local-eu', 'cache'],
    ] as const) {
      const unlessChanged = mode.meddle === putExports ? options.slice(0, -1) : options;
      const report = await (await startReader(t, from, as, 'us', layout, unlessChanged)).ended;
      assertAccepted(report);
      assert.deepEqual(counts(report), expected, layout);
      for (const [capability, value] of Object.entries(mode.capabilities ?? {}))
        assert.equal(report.config?.capabilities[capability], value, `${layout}: ${capability}`);
    }
  });
