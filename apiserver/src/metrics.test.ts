import assert from 'node:assert/strict';
import { test } from 'node:test';
import { scopeOf } from '@clustermesh/kvstore';
import { Registry } from 'prom-client';
import { countRuns, createKvstoreMetrics } from './kvstore-metrics.ts';
import { byScope, createMetrics, MESH_METRICS, OWN_METRICS } from './metrics.ts';
import { connect, shopManifest, startCluster } from './testing/control-plane.ts';

test('every metric of Cilium that applies is there under its name, for the cluster itself and for a mirrored peer', async (t) => {
  const registry = new Registry();
  const metrics = {
    own: createKvstoreMetrics(OWN_METRICS, registry),
    mesh: createKvstoreMetrics(MESH_METRICS, registry),
  };
  const [eu, us] = await Promise.all([
    startCluster(t, { name: 'eu', id: 1, metrics }),
    startCluster(t, { name: 'us', id: 2 }),
  ]);
  createMetrics(registry, 'eu', eu.plane, () => ({ failed: 2, warning: 0 }));
  us.manifest('shop.yaml', shopManifest(['10.2.1.5']));
  eu.manifest('shop.yaml', shopManifest(['10.1.1.5']));
  await connect(eu, us);
  await eu.eventually('us', () => eu.plane.mirror.peers()[0]?.ready);
  const text = await eu.eventually('all of them', async () => {
    const scraped = await registry.metrics();
    return /^cilium_kvstoremesh_bootstrap_seconds [\d.]+$/m.test(scraped) &&
      /initial_sync_completed\{scope="nodes\/v1",source_cluster="eu",action="write"\} 1/.test(scraped)
      ? scraped
      : undefined;
  });
  const lines = [
    'cilium_clustermesh_apiserver_bootstrap_seconds [\\d.]+',
    'cilium_clustermesh_apiserver_version\\{version="[^"]+"\\} 1',
    'cilium_clustermesh_apiserver_kvstore_operations_duration_seconds_count\\{scope="cluster-config",?.*',
    'cilium_clustermesh_apiserver_kvstore_sync_queue_size\\{scope="endpointslices/v1",source_cluster="eu"\\} \\d+',
    'cilium_clustermesh_apiserver_kvstore_sync_errors_total\\{scope="services/v1",source_cluster="eu"\\} 0',
    'cilium_clustermesh_apiserver_kvstore_initial_sync_completed\\{scope="endpointslices/v1",source_cluster="eu",action="write"\\} 1',
    'cilium_kvstoremesh_remote_clusters 1',
    'cilium_kvstoremesh_remote_cluster_failures\\{target_cluster="us"\\} \\d+',
    'cilium_kvstoremesh_remote_cluster_last_failure_ts\\{target_cluster="us"\\} \\d+',
    'cilium_kvstoremesh_remote_cluster_readiness_status\\{target_cluster="us"\\} 1',
    'cilium_kvstoremesh_remote_cluster_services\\{target_cluster="us"\\} 1',
    'cilium_kvstoremesh_kvstore_operations_duration_seconds_count\\{scope="services/v1",kind="read",action="ListPrefix",outcome="success"\\} \\d+',
    'cilium_kvstoremesh_kvstore_events_queue_seconds_count\\{scope="services/v1",action="upsert"\\} \\d+',
    'cilium_kvstoremesh_kvstore_sync_queue_size\\{scope="nodes/v1",source_cluster="us"\\} \\d+',
    'cilium_kvstoremesh_kvstore_sync_errors_total\\{scope="ip/v1",source_cluster="us"\\} 0',
    'cilium_kvstoremesh_kvstore_initial_sync_completed\\{scope="endpointslices/v1",source_cluster="us",action="write"\\} 1',
    'cilium_clustermesh_apiserver_controllers_group_runs_total\\{group_name="clustermesh-users-management",status="success"\\} [1-9]\\d*',
    'cilium_clustermesh_apiserver_controllers_group_runs_total\\{group_name="clustermesh-cluster-config-enforcer",status="success"\\} [1-9]\\d*',
    'cilium_clustermesh_apiserver_controllers_group_runs_total\\{group_name="export",status="success"\\} [1-9]\\d*',
    'cilium_kvstoremesh_controllers_group_runs_total\\{group_name="mirror",status="success"\\} [1-9]\\d*',
    'cilium_kvstoremesh_controllers_group_runs_total\\{group_name="clustermesh-remote-cluster",status="success"\\} [1-9]\\d*',
    'clustermesh_apiserver_leading 1',
    'clustermesh_mirror_objects\\{target_cluster="us"\\} 2',
    'clustermesh_apiserver_audit_findings\\{state="failed"\\} 2',
    'clustermesh_apiserver_audit_findings\\{state="warning"\\} 0',
  ];
  for (const line of lines) assert.match(text, new RegExp(`^${line}$`, 'm'));
  assert.match(text, /^# TYPE cilium_kvstoremesh_kvstore_quorum_errors_total counter$/m);
});

test('a pass of a control loop counts as what became of it', async () => {
  const registry = new Registry();
  const metrics = createKvstoreMetrics(MESH_METRICS, registry);
  await countRuns(metrics, 'mirror', async () => {})();
  await assert.rejects(
    countRuns(metrics, 'mirror', () => Promise.reject(new Error('away')))(),
    /away/,
    'its caller is to try again',
  );
  const text = await registry.metrics();
  for (const status of ['success', 'failure'])
    assert.match(
      text,
      new RegExp(
        `^cilium_kvstoremesh_controllers_group_runs_total\\{group_name="mirror",status="${status}"\\} 1$`,
        'm',
      ),
    );
});

test('keys that wait are counted by family, and families without any are there', () => {
  const keys = ['cilium/state/nodes/v1/eu/n1', 'cilium/state/nodes/v1/eu/n2', 'cilium/synced/eu/cilium/state/nodes/v1'];
  assert.deepEqual(Object.fromEntries(byScope(keys)), {
    'nodes/v1': 2,
    'services/v1': 0,
    'serviceexports/v1': 0,
    'identities/v1': 0,
    'ip/v1': 0,
    'endpointslices/v1': 0,
    synced: 1,
  });
});

test('keys of any kind have few scopes', () => {
  const scopes = {
    'cilium/state/nodes/v1/eu/n1': 'nodes/v1',
    'cilium/cache/ip/v1/us/10.2.1.5': 'ip/v1',
    'cilium/synced/eu/cilium/state/nodes/v1': 'synced',
    'cilium/cluster-config/eu': 'cluster-config',
    'cilium/.heartbeat': 'heartbeat',
    'clustermesh/local/services/shop/web': 'clustermesh/local',
    x: 'other',
    '': 'other',
  };
  for (const [key, scope] of Object.entries(scopes)) assert.equal(scopeOf(key), scope, key);
});
