/** This cluster's handshake value (wire-contract §1.3). Pure. */
import { EXTENSION_FIELD, encodeClusterConfig, type MaxConnectedClusters } from '@clustermesh/contract';

export function ownClusterConfig(cluster: {
  readonly id: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly region: string;
}): string {
  return encodeClusterConfig({
    id: cluster.id,
    capabilities: {
      syncedCanaries: true,
      maxConnectedClusters: cluster.maxConnectedClusters,
      serviceExportsEnabled: false,
    },
    ...(cluster.region === '' ? {} : { [EXTENSION_FIELD]: { region: cluster.region } }),
  });
}
