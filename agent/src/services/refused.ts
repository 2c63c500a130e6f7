/**
 * Addresses that no other cluster can have a backend at: this node would talk to itself, to nobody, or to one of its own pods.
 * The mirror looks at them too; this is the last gate before the kernel. Pure.
 */
import { type Cidr, type GlobalService, ipv4Contains } from '@clustermesh/contract';

/** "This network", loopback, multicast, and all behind it up to the broadcast address. */
const NEVER: readonly Cidr[] = [
  { ip: '0.0.0.0', length: 8 },
  { ip: '127.0.0.0', length: 8 },
  { ip: '224.0.0.0', length: 3 },
];

export interface AcceptedService {
  readonly service: GlobalService;
  /** The addresses left out. */
  readonly refused: readonly string[];
}

export function withoutRefusedBackends(service: GlobalService, ownPodCidr: Cidr | undefined): AcceptedService {
  const isRefused = (ip: string): boolean =>
    NEVER.some((cidr) => ipv4Contains(cidr, ip)) || (ownPodCidr !== undefined && ipv4Contains(ownPodCidr, ip));
  const refused = Object.keys(service.backends).filter(isRefused);
  if (refused.length === 0) return { service, refused };
  const backends = Object.fromEntries(Object.entries(service.backends).filter(([ip]) => !isRefused(ip)));
  return { service: { ...service, backends }, refused };
}
