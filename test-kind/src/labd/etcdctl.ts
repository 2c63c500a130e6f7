/** etcdctl for the etcd of a lab's cluster, with the certificate of whoever is to be tried. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { parse } from 'yaml';
import { inNamespace } from '../netns/exec.ts';
import { clusterPaths, controlPlaneNamespace, nodePaths } from '../netns/names.ts';
import { findCluster, type Topology } from '../topology.ts';
import { ETCD_PORT, GATE_PORT } from './cluster-files.ts';

export const ETCD_ROLES = ['admin', 'local', 'node', 'remote', 'nobody'] as const;
export type EtcdRole = (typeof ETCD_ROLES)[number];

/** Which door to knock at, and the certificate and key to show there, if any: a peer comes through the gate. */
export function etcdCredentials(
  instance: string,
  topology: Topology,
  clusterName: string,
  role: EtcdRole,
): readonly string[] {
  const cluster = findCluster(topology, clusterName);
  const { pki } = clusterPaths(instance, cluster.name);
  const at = (port: number) => `--endpoints=https://127.0.0.1:${port}`;
  const pair = (cert: string, key: string, port = ETCD_PORT) => [at(port), `--cert=${cert}`, `--key=${key}`];
  switch (role) {
    case 'nobody':
      return [at(ETCD_PORT)];
    case 'admin':
    case 'local':
      return pair(join(pki, `${role}.crt`), join(pki, `${role}.key`));
    case 'node': {
      const node = nodePaths(instance, cluster.name, cluster.nodes[0]!.name);
      return pair(join(node.pki, 'node.crt'), join(node.pki, 'node.key'));
    }
    case 'remote':
      return pair(...remotePair(instance, topology, clusterName), GATE_PORT);
  }
}

/** The certificate that `cluster` signed for a peer is where that peer keeps it: its config directory, wire-contract §5.1. */
function remotePair(instance: string, topology: Topology, cluster: string): [string, string] {
  for (const peer of topology.clusters) {
    const file = join(clusterPaths(instance, peer.name).peers, cluster);
    if (peer.name === cluster || !existsSync(file)) continue;
    const config = parse(readFileSync(file, 'utf8')) as { 'cert-file'?: string; 'key-file'?: string };
    if (config['cert-file'] !== undefined && config['key-file'] !== undefined)
      return [config['cert-file'], config['key-file']];
  }
  throw new MeshError({
    code: 'not-found',
    message: `opening the etcd of ${cluster} as a peer: no other cluster has a certificate for it`,
    hint: `connect the clusters first: npm run clustermesh -- connect --context ${instance}/${cluster} --destination-context ${instance}/PEER`,
  });
}

/** The command line, for the namespace where that etcd listens. */
export function etcdctlCommand(
  instance: string,
  cluster: string,
  credentials: readonly string[],
  args: readonly string[],
): string[] {
  return inNamespace(controlPlaneNamespace(instance, cluster), [
    ...['env', 'ETCDCTL_API=3', 'etcdctl'],
    `--cacert=${join(clusterPaths(instance, cluster).pki, 'ca.crt')}`,
    ...credentials,
    ...args,
  ]);
}
