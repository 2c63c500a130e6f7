/** Cluster addresses of all services, each family from a range of its own. Pure. */
import { canonicalIp } from '@clustermesh/contract';
import { allocateClusterIps, type ClusterIpRequest } from './cluster-ips.ts';
import { familyOf, type IpFamily, readFamilies } from './families.ts';
import type { LocatedObject } from './parse.ts';

export interface ServiceCidrs {
  readonly IPv4: string;
  readonly IPv6?: string | undefined;
}

/** By family, by `namespace/name`. */
export type ClusterIps = Readonly<Record<IpFamily, ReadonlyMap<string, string>>>;

/**
 * What this replica remembers, corrected by what is published (`namespace/name` → addresses): another replica may have given
 * addresses out meanwhile, and those are in use. Of a published address, no other service remains the owner.
 */
export function adoptPublished(remembered: ClusterIps, published: ReadonlyMap<string, readonly string[]>): ClusterIps {
  const adopt = (family: IpFamily): ReadonlyMap<string, string> => {
    const inUse = new Map<string, string>();
    for (const [service, addresses] of published) {
      const address = addresses.find((ip) => familyOf(ip) === family);
      if (address !== undefined) inUse.set(service, address);
    }
    const owned = new Set(inUse.values());
    return new Map([...[...remembered[family]].filter(([, ip]) => !owned.has(ip)), ...inUse]);
  };
  return { IPv4: adopt('IPv4'), IPv6: adopt('IPv6') };
}

type LocatedService = Extract<LocatedObject, { kind: 'Service' }>;

const nameOf = ({ object: { metadata } }: LocatedService): string => `${metadata.namespace}/${metadata.name}`;

const explicitAddresses = ({ object: { spec } }: LocatedService): string[] =>
  [...new Set([spec.clusterIP, ...(spec.clusterIPs ?? [])])].filter((ip) => ip != null && ip !== '') as string[];

/** Without an address on purpose. */
export const isHeadless = (service: LocatedService): boolean => explicitAddresses(service).includes('None');

export interface ServiceAddresses {
  /** To be given back as `previousIps`. */
  readonly assigned: ClusterIps;
  /** In the order of the service's families. */
  readonly of: (service: LocatedService) => string[];
  /** Each with its place. */
  readonly problems: readonly string[];
}

export function allocateAddresses(
  services: readonly LocatedService[],
  serviceCidrs: ServiceCidrs,
  previousIps: ClusterIps,
): ServiceAddresses {
  const problems: string[] = [];
  const families = new Map<string, readonly IpFamily[]>();
  const requests: Record<IpFamily, ClusterIpRequest[]> = { IPv4: [], IPv6: [] };
  const whereIs = new Map(services.map((service) => [nameOf(service), service.where]));
  for (const service of services.filter((each) => !isHeadless(each))) {
    const name = nameOf(service);
    const clusterIPs = explicitAddresses(service).map((ip) => canonicalIp(ip) ?? ip);
    const wanted = readFamilies({ ...service.object.spec, clusterIPs }, serviceCidrs.IPv6 !== undefined);
    if (wanted.problem !== undefined) problems.push(`${service.where}: Service ${name}: ${wanted.problem}`);
    families.set(name, wanted.families);
    for (const family of wanted.families)
      requests[family].push({
        service: name,
        explicit: clusterIPs.find((ip) => familyOf(ip) === family),
        isOneOfTwo: wanted.families.length > 1,
      });
  }
  const allocate = (family: IpFamily): ReadonlyMap<string, string> => {
    const cidr = serviceCidrs[family];
    // Without the range, what was given out of it is remembered: it may come back.
    if (cidr === undefined) return previousIps[family];
    const result = allocateClusterIps(requests[family], previousIps[family], cidr);
    problems.push(
      ...result.problems.map(({ service, reason }) => `${whereIs.get(service)}: Service ${service}: ${reason}`),
    );
    return result.assigned;
  };
  const assigned = { IPv4: allocate('IPv4'), IPv6: allocate('IPv6') };
  return {
    assigned,
    of: (service) =>
      (families.get(nameOf(service)) ?? []).flatMap((family) => assigned[family].get(nameOf(service)) ?? []),
    problems,
  };
}
