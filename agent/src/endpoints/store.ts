/**
 * `endpoints.json`: what this node knows of its pods. Maps hold numbers, not labels, so this file is what makes identities survive
 * an agent restart and the loss of etcd. Written whole and atomically before an answer is given.
 */
import { readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { messageOf, namedPortSchema } from '@clustermesh/contract';
import { atomicWrite, type Log } from '@clustermesh/runtime';
import { z } from 'zod';

const endpointSchema = z.object({
  id: z.string().min(1),
  namespace: z.string(),
  pod: z.string(),
  serviceAccount: z.string(),
  /** The identity's label string. */
  labels: z.string(),
  interface: z.string(),
  hostMac: z.string(),
  podMac: z.string(),
  ipv4: z.string(),
  ipv6: z.string().optional(),
  namedPorts: z.array(namedPortSchema).optional(),
  /** This node's number for the endpoint in the kernel. */
  endpointId: z.number().int().min(1).max(0xffff),
  /** Null while none could be allocated. */
  identity: z.number().int().min(1).nullable(),
});
export type StoredEndpoint = z.infer<typeof endpointSchema>;

const fileSchema = z.object({ version: z.literal(1), endpoints: z.array(endpointSchema) });

export interface EndpointStore {
  /** `complete` is false when there was no readable file: endpoints may exist that it does not name. */
  load(): { readonly endpoints: readonly StoredEndpoint[]; readonly complete: boolean };
  save(endpoints: Iterable<StoredEndpoint>): void;
}

export function createEndpointStore(stateDir: string, log: Log): EndpointStore {
  const path = join(stateDir, 'endpoints.json');
  return {
    load() {
      let text: string;
      try {
        text = readFileSync(path, 'utf8');
      } catch {
        return { endpoints: [], complete: false };
      }
      try {
        return { endpoints: fileSchema.parse(JSON.parse(text)).endpoints, complete: true };
      } catch (error) {
        const aside = `${path}.unreadable`;
        renameSync(path, aside);
        log.error({ path: aside, reason: messageOf(error) }, 'endpoints file is unreadable: set aside');
        return { endpoints: [], complete: false };
      }
    },
    save(endpoints) {
      atomicWrite(path, `${JSON.stringify({ version: 1, endpoints: [...endpoints] }, null, 1)}\n`, 0o600);
    },
  };
}
