import type { ClusterInfo, HostAlias } from '@clustermesh/contract';
import { loadCa } from '@clustermesh/pki';
import { version } from '@clustermesh/runtime';
import type { OwnCluster } from '../operations/peer-checks.ts';

/** What peers are told of this cluster. The CA's certificate is public; its key stays in `pkiDir`. */
export function readClusterInfo(options: {
  readonly own: OwnCluster;
  readonly region: string;
  readonly advertise: { readonly endpoints: readonly string[]; readonly hostAliases: readonly HostAlias[] };
  readonly pkiDir: string;
}): ClusterInfo {
  return {
    name: options.own.name,
    id: options.own.id,
    maxConnectedClusters: options.own.maxConnectedClusters,
    region: options.region,
    endpoints: options.advertise.endpoints,
    hostAliases: options.advertise.hostAliases,
    caPem: loadCa(options.pkiDir).certPem,
    version: version(),
    podCidr: options.own.podCidr,
  };
}
