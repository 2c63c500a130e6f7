/** This cluster's handshake value (wire-contract §1.3). Pure. */
import {
  type EndpointSlicesExportMode,
  EXTENSION_FIELD,
  encodeClusterConfig,
  type MaxConnectedClusters,
} from '@clustermesh/contract';

export type SliceExport = 'services' | Exclude<EndpointSlicesExportMode, ''>;

export function ownClusterConfig(
  cluster: { readonly id: number; readonly maxConnectedClusters: MaxConnectedClusters; readonly region: string },
  sliceExport: SliceExport,
): string {
  return encodeClusterConfig({
    id: cluster.id,
    capabilities: {
      syncedCanaries: true,
      maxConnectedClusters: cluster.maxConnectedClusters,
      serviceExportsEnabled: false,
      // Readers that know of no slices know of no mode either: "services" is said by saying nothing.
      ...(sliceExport === 'services' ? {} : { endpointSlicesExportMode: sliceExport }),
    },
    ...(cluster.region === '' ? {} : { [EXTENSION_FIELD]: { region: cluster.region } }),
  });
}
