/** Which ranges can hold pods at all, in either family: of what is a cluster's own and of what a peer may be granted. Pure. */
import { type Cidr, cidrsOverlap, formatCidr, isIpv4 } from '@clustermesh/contract';

export type Family = 4 | 6;

/** At most one range a family. */
export type PodRanges = Readonly<Partial<Record<Family, Cidr>>>;

export const familyOf = (ip: string): Family => (isIpv4(ip) ? 4 : 6);

/** A wider one cannot be a cluster's: it would swallow the networks of others. An IPv6 /32 is what a whole provider has. */
const SHORTEST_POD_RANGE = { 4: 8, 6: 32 } as const;

/** None of them can be a pod or a node that is reached through the mesh. */
const SPECIAL: Readonly<Record<Family, readonly (readonly [cidr: Cidr, what: string])[]>> = {
  4: [
    [{ ip: '0.0.0.0', length: 8 }, 'unspecified'],
    [{ ip: '127.0.0.0', length: 8 }, 'loopback'],
    [{ ip: '169.254.0.0', length: 16 }, 'link-local'],
    [{ ip: '224.0.0.0', length: 4 }, 'multicast'],
    [{ ip: '240.0.0.0', length: 4 }, 'reserved'],
  ],
  6: [
    [{ ip: '::', length: 16 }, 'unspecified, loopback or IPv4 in disguise'],
    [{ ip: 'fe80::', length: 10 }, 'link-local'],
    [{ ip: 'ff00::', length: 8 }, 'multicast'],
  ],
};

/** Why nothing in this range is reached through a mesh; undefined when it may be. `shortest`: the widest length that is taken. */
export function rangeProblem(cidr: Cidr, shortest: number): string | undefined {
  const text = formatCidr(cidr);
  if (cidr.ip.includes('%')) return `${text} has a zone`;
  if (cidr.length < shortest) return `${text} is wider than a /${shortest}`;
  const special = SPECIAL[familyOf(cidr.ip)].find(([range]) => cidrsOverlap(range, cidr));
  return special === undefined ? undefined : `${text} is ${special[1]}`;
}

/** Why this range cannot be all pods of one cluster in that family. */
export function podRangeProblem(cidr: Cidr, family: Family): string | undefined {
  if (familyOf(cidr.ip) !== family) return `${formatCidr(cidr)} is no IPv${family} range`;
  return rangeProblem(cidr, SHORTEST_POD_RANGE[family]);
}
