/** `cilium/cluster-config/<name>`: the handshake (wire-contract §1.3, reader checks §5.2). */
import { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';
import { EXTENSION_FIELD, extensionSchema } from './extension.ts';
import { decodeJson } from './json.ts';
import { clusterIdProblem, type MaxConnectedClusters } from './names.ts';

const schema = z.looseObject({
  id: z.number().int().min(0).max(0xffffffff).default(0),
  capabilities: z
    .looseObject({
      syncedCanaries: z.boolean().optional(),
      cached: z.boolean().optional(),
      maxConnectedClusters: z.number().int().min(0).optional(),
      serviceExportsEnabled: z.boolean().optional(),
      endpointSlicesExportMode: z.string().optional(),
    })
    .default({}),
  [EXTENSION_FIELD]: extensionSchema.optional(),
});

export type ClusterConfig = z.infer<typeof schema>;

const EXPORT_MODES = new Set(['', 'services-and-endpointslices', 'endpointslices-only']);

export function encodeClusterConfig(config: ClusterConfig): string {
  return JSON.stringify(config);
}

export function decodeClusterConfig(text: string): Decoded<ClusterConfig> {
  return decodeJson('cluster config', text, schema);
}

export interface LocalClusterFacts {
  readonly id: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
}

/** A reader's check of a peer's config: id in range and not our own, equal maximum when either side is extended, known export mode. */
export function validatePeerConfig(
  peer: string,
  config: ClusterConfig,
  local: LocalClusterFacts,
): Decoded<ClusterConfig> {
  const idProblem = clusterIdProblem(config.id, local.maxConnectedClusters);
  if (idProblem !== undefined) return reject(`cluster ${peer}: ${idProblem}`);
  if (config.id === local.id)
    return reject(`cluster ${peer} has cluster id ${config.id}, which is this cluster's own id`);
  const max = config.capabilities.maxConnectedClusters ?? 255;
  if (max !== local.maxConnectedClusters) {
    return reject(
      `cluster ${peer} has maxConnectedClusters ${max}, this cluster has ${local.maxConnectedClusters}; all clusters must agree`,
    );
  }
  const mode = config.capabilities.endpointSlicesExportMode ?? '';
  if (!EXPORT_MODES.has(mode))
    return reject(`cluster ${peer} has the unknown endpointSlicesExportMode ${JSON.stringify(mode)}`);
  return accept(config);
}
