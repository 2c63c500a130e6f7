/**
 * Addresses that no other cluster can have a backend at: this node would talk to itself, to nobody, or to one of its own pods.
 * The mirror looks at them too; this is the last gate before the kernel. Pure.
 */
import { BlockList } from 'node:net';
import { type Cidr, ipv4Contains } from '@clustermesh/contract';
import { type BackendGroup, isIpv6 } from './groups.ts';

/** "This network", loopback, multicast, and all behind it up to the broadcast address. */
const NEVER: readonly Cidr[] = [
  { ip: '0.0.0.0', length: 8 },
  { ip: '127.0.0.0', length: 8 },
  { ip: '224.0.0.0', length: 3 },
];

/** Unspecified, loopback and IPv4 in disguise; link-local; multicast. */
const NEVER_V6 = new BlockList();
for (const [ip, length] of [
  ['::', 96],
  ['::ffff:0:0', 96],
  ['fe80::', 10],
  ['ff00::', 8],
] as const)
  NEVER_V6.addSubnet(ip, length, 'ipv6');

export interface AcceptedGroup {
  readonly group: BackendGroup;
  /** The addresses left out. */
  readonly refused: readonly string[];
}

export function withoutRefused(group: BackendGroup, ownPodCidr: Cidr | undefined): AcceptedGroup {
  const isRefused = (ip: string): boolean =>
    isIpv6(ip)
      ? NEVER_V6.check(ip, 'ipv6')
      : NEVER.some((cidr) => ipv4Contains(cidr, ip)) || (ownPodCidr !== undefined && ipv4Contains(ownPodCidr, ip));
  const refused = [...group.active, ...group.terminating].filter(isRefused);
  if (refused.length === 0) return { group, refused };
  const isAccepted = (ip: string) => !isRefused(ip);
  const { active, terminating } = group;
  return {
    group: { ...group, active: active.filter(isAccepted), terminating: terminating.filter(isAccepted) },
    refused,
  };
}
