/** The services of a cluster as its apiserver wrote them down, with the cluster's own endpoints. */
import { decodeLocalService, keyName, localPrefix, MeshError } from '@clustermesh/contract';
import { capture } from '../netns/exec.ts';
import type { Topology } from '../topology.ts';
import type { ServiceStatus } from './api.ts';
import { etcdCredentials, etcdctlCommand } from './etcdctl.ts';

export interface ClusterEtcd {
  readonly instance: string;
  readonly topology: Topology;
  readonly cluster: string;
}

/** From the cluster's own etcd, where its agents read them: ClusterIPs are allocated by the apiserver. */
export async function servicesOf(etcd: ClusterEtcd): Promise<ServiceStatus[]> {
  const [rows, slices] = await Promise.all([
    etcdRows(etcd, localPrefix('services')),
    etcdRows(etcd, localPrefix('endpointslices')),
  ]);
  const endpoints = new Map<string, { ready: string[]; notReady: number }>();
  for (const [, text] of slices) {
    const slice = JSON.parse(text) as {
      namespace: string;
      service: string;
      ports: { port: number }[];
      endpoints: { addresses: string[]; ready: boolean }[];
    };
    const key = `${slice.namespace}/${slice.service}`;
    const entry = endpoints.get(key) ?? { ready: [], notReady: 0 };
    endpoints.set(key, entry);
    for (const endpoint of slice.endpoints) {
      if (!endpoint.ready) entry.notReady++;
      else
        for (const { port } of slice.ports)
          entry.ready.push(...endpoint.addresses.map((address) => `${address}:${port}`));
    }
  }
  return rows.flatMap(([, text]) => {
    const decoded = decodeLocalService(text);
    if (!decoded.ok) return [];
    const service = decoded.value;
    const own = endpoints.get(`${service.namespace}/${service.name}`);
    return [
      {
        cluster: etcd.cluster,
        namespace: service.namespace,
        name: service.name,
        clusterIP: service.clusterIPs[0] ?? '',
        clusterIPs: service.clusterIPs,
        ports: service.ports,
        global: service.global,
        shared: service.shared,
        affinity: service.affinity,
        endpoints: own?.ready.sort() ?? [],
        notReady: own?.notReady ?? 0,
      },
    ];
  });
}

async function etcdRows({ instance, topology, cluster }: ClusterEtcd, prefix: string): Promise<[string, string][]> {
  const args = ['--command-timeout=3s', 'get', '--prefix', prefix, '--write-out=json'];
  const credentials = etcdCredentials(instance, topology, cluster, 'admin');
  const [command, ...rest] = etcdctlCommand(instance, cluster, credentials, args);
  const output = await capture(command!, rest, { timeoutMs: 10_000 });
  if (output.code !== 0) {
    throw new MeshError({
      code: 'etcd-unreachable',
      message: `reading ${prefix} from the etcd of ${cluster}: ${output.stderr.trim().split('\n').at(-1)}`,
    });
  }
  const { kvs = [] } = JSON.parse(output.stdout) as { kvs?: { key: string; value: string }[] };
  const decode = (text: string) => Buffer.from(text, 'base64').toString();
  return kvs.map((row) => [keyName(decode(row.key), prefix) ?? '', decode(row.value)]);
}
