/** Which address families a Service wants, as Kubernetes defaults and checks them; the cluster's first family is IPv4. Pure. */
import { isIPv6 } from 'node:net';

export type IpFamily = 'IPv4' | 'IPv6';

export interface FamilyRequest {
  readonly ipFamilies?: readonly IpFamily[] | null | undefined;
  readonly ipFamilyPolicy?: 'SingleStack' | 'PreferDualStack' | 'RequireDualStack' | null | undefined;
  /** Explicit addresses, in order. */
  readonly clusterIPs: readonly string[];
}

export interface Families {
  /** The first is that of the service's `clusterIP`. Empty: none of them is to be had. */
  readonly families: readonly IpFamily[];
  readonly problem?: string;
}

export const familyOf = (ip: string): IpFamily => (isIPv6(ip) ? 'IPv6' : 'IPv4');

/** Of two families that are asked for and not had, the one that is had is served: a service by one is better than none. */
export function readFamilies(request: FamilyRequest, hasIpv6: boolean): Families {
  const { ipFamilies, ipFamilyPolicy, clusterIPs } = request;
  const named = [...new Set([...(ipFamilies ?? []), ...clusterIPs.map(familyOf)])];
  const first = named[0] ?? 'IPv4';
  const policy = ipFamilyPolicy ?? (named.length > 1 ? 'RequireDualStack' : 'SingleStack');
  const wanted: readonly IpFamily[] =
    policy === 'SingleStack' ? [first] : first === 'IPv4' ? ['IPv4', 'IPv6'] : ['IPv6', 'IPv4'];
  if (hasIpv6) return { families: wanted };
  const families = wanted.filter((family) => family === 'IPv4');
  if (families.length === wanted.length || policy === 'PreferDualStack') return { families };
  const outcome = families.length === 0 ? 'the service is left out' : 'the service has IPv4 only';
  return { families, problem: `IPv6 is asked for, and cluster.serviceCIDRv6 is not set; ${outcome}` };
}
