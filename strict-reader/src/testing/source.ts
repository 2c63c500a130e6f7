/** A cluster's data as it should be, from the golden vectors: what the tests spoil. */
import { readFileSync } from 'node:fs';
import type { ReaderOptions } from '../reader.ts';
import type { TestEtcd } from './etcd.ts';

export interface Vector {
  readonly family: string;
  readonly comment?: string;
  readonly state: string;
  readonly cache: string;
  readonly value: string;
}

const fixture: { readonly vectors: readonly Vector[] } = JSON.parse(
  readFileSync(new URL('../../../contract/fixtures/both-layouts.json', import.meta.url), 'utf8'),
);

/** What a newer writer wrote is no violation, but has fields that this tool does not know. */
export const vectors = fixture.vectors.filter((vector) => !vector.comment?.includes('newer writer'));
export const newerVectors = fixture.vectors.filter((vector) => vector.comment?.includes('newer writer'));

export const bytesOf = (vector: Vector): Buffer =>
  Buffer.from(vector.value, vector.family === 'endpointslices' ? 'base64' : 'utf8');

export const FAMILIES = ['nodes', 'services', 'identities', 'ip', 'serviceexports', 'endpointslices'] as const;
export const CLUSTER = 'cluster3';
const now = () => new Date().toISOString();

export const canary = (family: string, layout: 'state' | 'cache' = 'state') =>
  `cilium/synced/${CLUSTER}/cilium/${layout}/${family}/v1`;

export function config(change: Record<string, unknown> = {}, layout: 'state' | 'cache' = 'state'): string {
  const capabilities = {
    syncedCanaries: true,
    ...(layout === 'cache' ? { cached: true } : {}),
    maxConnectedClusters: 255,
    serviceExportsEnabled: true,
    endpointSlicesExportMode: 'services-and-endpointslices',
    ...change,
  };
  return JSON.stringify({ id: 3, capabilities });
}

/** Everything in the right order: heartbeat, config, data, canaries. */
export async function publish(etcd: TestEtcd, layout: 'state' | 'cache' = 'state'): Promise<void> {
  await etcd.put('cilium/.heartbeat', now());
  await etcd.put(`cilium/cluster-config/${CLUSTER}`, config({}, layout));
  for (const vector of vectors) await etcd.put(vector[layout], bytesOf(vector));
  for (const family of FAMILIES) await etcd.put(canary(family, layout), now());
}

export const reader = (etcd: TestEtcd, change: Partial<ReaderOptions> = {}): ReaderOptions => ({
  endpoint: etcd.endpoint,
  cluster: CLUSTER,
  layout: 'state',
  ownId: 1,
  followMs: 0,
  connectTimeoutMs: 5_000,
  configTimeoutMs: 300,
  syncTimeoutMs: 500,
  ...change,
});
