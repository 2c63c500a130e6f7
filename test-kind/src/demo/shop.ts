/** The shop: the app that the demonstration shows and the whole-mesh tests ask. Its manifests are in test-kind/demo. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot, waitFor } from '@clustermesh/runtime';
import type { LabClient } from '../client.ts';

/** The promise: a transfer across clusters never stands still for longer, whatever restarts. */
export const STALL_LIMIT_MS = 200;

export const manifestFile = (cluster: string) => `test-kind/demo/shop-${cluster}.yaml`;
export const shopManifest = (cluster: string) => readFileSync(join(repoRoot(), manifestFile(cluster)), 'utf8');

export async function shopUrl(lab: LabClient, cluster: string, name = 'shop'): Promise<string> {
  const find = async () =>
    (await lab.services()).find(
      (service) => service.cluster === cluster && service.name === name && service.clusterIP !== '',
    );
  const service = await waitFor(find, {
    what: `the ClusterIP of service ${name} in ${cluster}`,
    timeoutMs: 15_000,
    intervalMs: 100,
  });
  return `http://${service.clusterIP}:${service.ports[0]?.port}`;
}
