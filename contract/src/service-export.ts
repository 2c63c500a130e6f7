/** `cilium/state/serviceexports/v1/<cluster>/<ns>/<name>`: a service exported by the MCS API (wire-contract §1.9). */
import { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';
import { decodeJson } from './json.ts';

const stringMap = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value) => value ?? undefined);

/** RFC 3339 as Go reads it. Kubernetes writes a time that is not set as null. */
const timestamp = z
  .string()
  .regex(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/, 'is no RFC 3339 time')
  .refine((text) => !Number.isNaN(Date.parse(text)), 'is no date')
  .refine((text) => !text.startsWith('0001-01-01T00:00:00'), 'is unset');

const schema = z.looseObject({
  cluster: z.string().min(1),
  name: z.string().min(1),
  namespace: z.string().min(1),
  annotations: stringMap,
  labels: stringMap,
  /** Of the ServiceExport: on a conflict between clusters the oldest wins. */
  exportCreationTimestamp: timestamp,
  ports: z
    .array(
      z.looseObject({
        name: z.string().optional(),
        protocol: z.string().optional(),
        appProtocol: z.string().nullish(),
        port: z.number().int().min(0).max(65_535),
      }),
    )
    .nullish()
    .transform((value) => value ?? []),
  type: z.enum(['ClusterSetIP', 'Headless']),
  /** Current readers refuse the empty text that older writers left here; it means None. We read it and never write it. */
  sessionAffinity: z
    .enum(['ClientIP', 'None', ''])
    .nullish()
    .transform((value) => (value === 'ClientIP' ? value : 'None')),
  sessionAffinityConfig: z
    .looseObject({ clientIP: z.looseObject({ timeoutSeconds: z.number().int().nullish() }).nullish() })
    .nullish(),
  ipFamilies: z
    .array(z.string())
    .nullish()
    .transform((value) => value ?? undefined),
  internalTrafficPolicy: z.enum(['Cluster', 'Local']).nullish(),
  trafficDistribution: z.enum(['PreferClose', 'PreferSameZone', 'PreferSameNode']).nullish(),
});

export type ServiceExport = z.infer<typeof schema>;

export function encodeServiceExport(value: ServiceExport): string {
  return JSON.stringify(value);
}

export function decodeServiceExport(text: string): Decoded<ServiceExport> {
  return decodeJson('service export', text, schema);
}

/** A reader's check: cluster and `ns/name` as the key says. The value carries no cluster id. */
export function validateServiceExport(
  value: ServiceExport,
  expected: { readonly cluster: string; readonly name: string },
): Decoded<ServiceExport> {
  const own = `${value.namespace}/${value.name}`;
  if (value.cluster !== expected.cluster)
    return reject(`service export ${own} says cluster ${JSON.stringify(value.cluster)}, expected ${expected.cluster}`);
  if (own !== expected.name) return reject(`service export ${own} lies under the key of ${expected.name}`);
  return accept(value);
}
