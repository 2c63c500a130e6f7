/** Values of our own keys in the local etcd (architecture, "Keys of our own"). JSON, validated on read like a stranger's. */
import { z } from 'zod';
import { LB_ALGORITHMS } from './annotations.ts';
import type { Decoded } from './decoded.ts';
import { decodeJson } from './json.ts';
import { namedPortSchema } from './named-ports.ts';
import { parseCidr } from './net.ts';

const stringMap = z.record(z.string(), z.string());
const protocol = z.enum(['TCP', 'UDP', 'SCTP']);

export const localServiceSchema = z.looseObject({
  namespace: z.string(),
  name: z.string(),
  /** Allocated or explicit; empty for headless services. */
  clusterIPs: z.array(z.string()),
  ports: z.array(
    z.looseObject({
      name: z.string(),
      protocol,
      port: z.number().int(),
      /** Of every node's own addresses. */
      nodePort: z.number().int().min(1).max(65535).optional(),
    }),
  ),
  /** Its external addresses and those of its load balancer. Absent: none. */
  externalIPs: z.array(z.string()).optional(),
  /** Only backends of the node that is asked: from outside of the cluster, and by the cluster addresses. Absent: any. */
  externalTrafficPolicy: z.literal('Local').optional(),
  internalTrafficPolicy: z.literal('Local').optional(),
  /** Joined with the services of the same namespace/name in other clusters; false in a namespace that is not global. */
  global: z.boolean(),
  shared: z.boolean(),
  affinity: z.enum(['none', 'local', 'remote']),
  lbAlgorithm: z.enum(LB_ALGORITHMS).optional(),
  /** `sessionAffinity: ClientIP`: seconds that a client keeps its backend after its last use. */
  sessionAffinitySeconds: z.number().int().min(1).optional(),
  labels: stringMap,
  selector: stringMap.nullable(),
});
export type LocalService = z.infer<typeof localServiceSchema>;

export const localSliceSchema = z.looseObject({
  namespace: z.string(),
  name: z.string(),
  service: z.string(),
  endpoints: z.array(
    z.looseObject({
      addresses: z.array(z.string()),
      /** Kubernetes' reading: absent means ready. */
      ready: z.boolean(),
      serving: z.boolean(),
      terminating: z.boolean(),
      zone: z.string().optional(),
      nodeName: z.string().optional(),
      hostname: z.string().optional(),
    }),
  ),
  ports: z.array(z.looseObject({ name: z.string(), protocol, port: z.number().int() })),
  /** Of each of its backends; absent: the default. */
  weight: z.number().int().min(0).optional(),
});
export type LocalSlice = z.infer<typeof localSliceSchema>;

export const localNamespaceSchema = z.looseObject({ name: z.string(), global: z.boolean(), labels: stringMap });
export type LocalNamespace = z.infer<typeof localNamespaceSchema>;

const cidr = z.string().refine((text) => parseCidr(text) !== undefined, 'is no CIDR');

export const nodeRecordSchema = z.looseObject({
  name: z.string().min(1),
  internalIp: z.string(),
  gatewayIp: z.string(),
  podCidr: cidr,
  /** What the node has of IPv6 beside; `internalIp`: an underlay address, if there is one. */
  ipv6: z.object({ internalIp: z.string().optional(), gatewayIp: z.string(), podCidr: cidr }).optional(),
  zone: z.string().optional(),
  region: z.string().optional(),
  /** Of the underlay device, in bytes; absent when the agent does not tell. */
  mtu: z.number().int().positive().optional(),
  routingMode: z.enum(['tunnel', 'native']).optional(),
});
export type NodeRecord = z.infer<typeof nodeRecordSchema>;

export const endpointRecordSchema = z.looseObject({
  id: z.string().min(1),
  namespace: z.string(),
  pod: z.string(),
  /** The identity's label string. */
  labels: z.string(),
  identity: z.number().int().min(1),
  ipv4: z.string(),
  /** Absent where pods have none. */
  ipv6: z.string().optional(),
  serviceAccount: z.string().optional(),
  /** Absent: none of its ports has a name. */
  namedPorts: z.array(namedPortSchema).optional(),
});
export type EndpointRecord = z.infer<typeof endpointRecordSchema>;

/** Per peer (own cluster included) and family: every change up to this revision of the local etcd is in the kernel. */
export const agentStatusSchema = z.looseObject({
  node: z.string(),
  version: z.string(),
  updatedAt: z.string(),
  applied: z.record(z.string(), z.record(z.string(), z.number())),
  /** Readable sentences; empty when all is well. */
  problems: z.array(z.string()).default([]),
  /** What the agent reads its etcd with (HeldTrust); absent: it does not tell, or reads without TLS. */
  trust: z.object({ trustedCas: z.array(z.string()), signedBy: z.string() }).optional(),
});
export type AgentStatus = z.infer<typeof agentStatusSchema>;

export const peerStatusSchema = z.looseObject({
  cluster: z.string(),
  clusterId: z.number().int(),
  connected: z.boolean(),
  /** All families synced since the mirror started. */
  ready: z.boolean(),
  /** Age in milliseconds of the last proof of life when this record was written; null before the first. */
  lastProofAgeMs: z.number().nullable(),
  updatedAt: z.string(),
  error: z.string().optional(),
  families: z.record(
    z.string(),
    z.looseObject({
      synced: z.boolean(),
      count: z.number().int(),
      /** Revision, in the local etcd, of the mirror's last change to this family's data. */
      revision: z.number(),
      quarantined: z.number().int(),
      lastQuarantineReason: z.string().optional(),
    }),
  ),
});
export type PeerStatus = z.infer<typeof peerStatusSchema>;

/** An agent that has not named the family has not even listed it: revision 0 of an empty family counts only when it did. */
export function hasApplied(agent: AgentStatus, peer: string, family: string, revision: number): boolean {
  const applied = agent.applied[peer]?.[family];
  return applied !== undefined && applied >= revision;
}

export const decodeLocalService = (text: string): Decoded<LocalService> =>
  decodeJson('local service', text, localServiceSchema);
export const decodeLocalSlice = (text: string): Decoded<LocalSlice> =>
  decodeJson('local endpoint slice', text, localSliceSchema);
export const decodeLocalNamespace = (text: string): Decoded<LocalNamespace> =>
  decodeJson('local namespace', text, localNamespaceSchema);
export const decodeNodeRecord = (text: string): Decoded<NodeRecord> =>
  decodeJson('node record', text, nodeRecordSchema);
export const decodeEndpointRecord = (text: string): Decoded<EndpointRecord> =>
  decodeJson('endpoint record', text, endpointRecordSchema);
export const decodeAgentStatus = (text: string): Decoded<AgentStatus> =>
  decodeJson('agent status', text, agentStatusSchema);
export const decodePeerStatus = (text: string): Decoded<PeerStatus> =>
  decodeJson('peer status', text, peerStatusSchema);
