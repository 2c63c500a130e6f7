/** `cilium/cluster-config/<name>`: the handshake (wire-contract §1.3, reader checks §5.2). */
import { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';
import { EXTENSION_FIELD, extensionSchema } from './extension.ts';
import { decodeJson } from './json.ts';
import { AGENT_FAMILIES, type AgentFamily, WIRE_FAMILIES, type WireFamily } from './keys.ts';
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

/** What a cluster publishes of its services' backends; absent and '' are the legacy services alone. */
export const ENDPOINT_SLICES_EXPORT_MODES = ['', 'services-and-endpointslices', 'endpointslices-only'] as const;
export type EndpointSlicesExportMode = (typeof ENDPOINT_SLICES_EXPORT_MODES)[number];

/** Undefined: a mode of a version that we do not know; its publisher's data cannot be understood as a whole. */
export function endpointSlicesExportMode(config: ClusterConfig): EndpointSlicesExportMode | undefined {
  const mode = config.capabilities.endpointSlicesExportMode ?? '';
  return ENDPOINT_SLICES_EXPORT_MODES.find((known) => known === mode);
}

/** The families that a reader of this cluster waits for; the others have no canary or are of no use to it. */
export function publishedFamilies(config: ClusterConfig): WireFamily[] {
  const mode = endpointSlicesExportMode(config);
  return WIRE_FAMILIES.filter((family) => {
    if (family === 'services') return mode !== 'endpointslices-only';
    if (family === 'serviceexports') return config.capabilities.serviceExportsEnabled !== undefined;
    if (family === 'endpointslices') return mode === 'services-and-endpointslices' || mode === 'endpointslices-only';
    return true;
  });
}

/** Of those, what an agent reads. */
export function agentFamilies(config: ClusterConfig): AgentFamily[] {
  const published = publishedFamilies(config);
  return AGENT_FAMILIES.filter((family) => published.includes(family));
}

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
  // Absent or 0 (Go leaves a zero out): a writer that knows of 255 only.
  const max = config.capabilities.maxConnectedClusters || 255;
  if (max !== local.maxConnectedClusters) {
    return reject(
      `cluster ${peer} has maxConnectedClusters ${max}, this cluster has ${local.maxConnectedClusters}; all clusters must agree`,
    );
  }
  if (endpointSlicesExportMode(config) === undefined)
    return reject(
      `cluster ${peer} has the unknown endpointSlicesExportMode ${JSON.stringify(config.capabilities.endpointSlicesExportMode)}`,
    );
  return accept(config);
}
