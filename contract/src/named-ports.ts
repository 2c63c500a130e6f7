/** Ports of a pod's containers that have a name, which policies may give instead of a number. */
import { z } from 'zod';

/** Kubernetes' rule for the name of a container's port (IANA_SVC_NAME). */
const NAME = /^(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$/;

export const namedPortSchema = z.object({
  name: z.string().regex(NAME, 'is no name of a port: at most 15 of a-z, 0-9 and -, one a letter'),
  port: z.number().int().min(1).max(65535),
  protocol: z.enum(['TCP', 'UDP', 'SCTP']),
});
export type NamedPort = z.infer<typeof namedPortSchema>;

/** As rules of policies ask for it. */
export const namedPortKey = (protocol: string, name: string): string => `${protocol}/${name}`;

/** By `namedPortKey`; undefined: none. The first of equal names counts. */
export function namedPortTable(ports: readonly NamedPort[] | undefined): ReadonlyMap<string, number> | undefined {
  if (ports === undefined || ports.length === 0) return undefined;
  const table = new Map<string, number>();
  for (const { protocol, name, port } of ports) {
    const key = namedPortKey(protocol, name);
    if (!table.has(key)) table.set(key, port);
  }
  return table;
}
