/** `cilium/state/services/v1/<cluster>/<ns>/<name>` (wire-contract §1.8). Outer names camelCase, ports PascalCase. */
import { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';
import { EXTENSION_FIELD, extensionSchema } from './extension.ts';
import { decodeJson } from './json.ts';
import { isIpAddress } from './net.ts';

const portSchema = z.looseObject({ Protocol: z.string(), Port: z.number().int().min(0).max(65535) });
const addressMap = z
  .record(
    z.string(),
    z
      .record(z.string(), portSchema)
      .nullish()
      .transform((value) => value ?? {}),
  )
  .nullish()
  .transform((value) => value ?? {});
const stringMap = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value) => value ?? null);

const schema = z.looseObject({
  cluster: z.string(),
  namespace: z.string(),
  name: z.string(),
  /** ip → port name ("" = unnamed) → port. Empty for headless services. */
  frontends: addressMap,
  backends: addressMap,
  hostnames: z.record(z.string(), z.string()).optional(),
  zones: z
    .record(
      z.string(),
      z.looseObject({ zone: z.string().nullish(), forZones: z.array(z.looseObject({ name: z.string() })).nullish() }),
    )
    .optional(),
  labels: stringMap,
  selector: stringMap,
  includeExternal: z.boolean().default(false),
  shared: z.boolean().default(false),
  clusterID: z.number().int().min(0).default(0),
  [EXTENSION_FIELD]: extensionSchema.optional(),
});

export type GlobalService = z.infer<typeof schema>;
export type ServicePortMap = Record<string, { Protocol: string; Port: number }>;

export function encodeGlobalService(service: GlobalService): string {
  return JSON.stringify(service);
}

export function decodeGlobalService(text: string): Decoded<GlobalService> {
  return decodeJson('global service', text, schema);
}

/** A reader's check: cluster, `ns/name` and cluster id as the key and the peer's config say; addresses are addresses. */
export function validateGlobalService(
  service: GlobalService,
  expected: { readonly cluster: string; readonly clusterId: number; readonly name: string },
): Decoded<GlobalService> {
  const own = `${service.namespace}/${service.name}`;
  if (service.cluster !== expected.cluster)
    return reject(`service ${own} says cluster ${JSON.stringify(service.cluster)}, expected ${expected.cluster}`);
  if (own !== expected.name) return reject(`service ${own} lies under the key of ${expected.name}`);
  if (service.clusterID !== expected.clusterId)
    return reject(`service ${own} says cluster id ${service.clusterID}, expected ${expected.clusterId}`);
  const malformed = [...Object.keys(service.frontends), ...Object.keys(service.backends)].find(
    (ip) => !isIpAddress(ip),
  );
  if (malformed !== undefined) return reject(`service ${own} has the malformed address ${JSON.stringify(malformed)}`);
  return accept(service);
}
