/** Addresses that no peer may claim, whatever its identities are: with them it would draw this cluster's own traffic to itself. Pure. */
import { BlockList } from 'node:net';
import { type Cidr, ipv4Contains, isIpv4, parseCidr } from '@clustermesh/contract';

/** "This network", loopback, link-local (metadata services and pods' gateways among them), multicast, reserved and broadcast. */
const RESERVED_IPV4 = ['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '240.0.0.0/4'];
const RESERVED_IPV6 = ['::/128', '::1/128', 'fe80::/10', 'ff00::/8'];

const reserved = new BlockList();
for (const cidr of [...RESERVED_IPV4, ...RESERVED_IPV6].flatMap((text) => parseCidr(text) ?? []))
  reserved.addSubnet(cidr.ip, cidr.length, isIpv4(cidr.ip) ? 'ipv4' : 'ipv6');

const overlaps = (a: Cidr, b: Cidr) => ipv4Contains(a, b.ip) || ipv4Contains(b, a.ip);

/** Why `<ip>` or `<ip>/<length>` is not a peer's to claim; undefined when it may. Malformed text is somebody else's business. */
export function claimProblem(address: string, ownPodCidr: string): string | undefined {
  const cidr = parseCidr(address) ?? { ip: address, length: isIpv4(address) ? 32 : 128 };
  const isReserved =
    reserved.check(cidr.ip, isIpv4(cidr.ip) ? 'ipv4' : 'ipv6') ||
    cidr.length === 0 ||
    RESERVED_IPV4.some((text) => overlaps(parseCidr(text) as Cidr, cidr));
  if (isReserved) return `claims ${address}, which is reserved for every host's own use`;
  const own = parseCidr(ownPodCidr);
  if (own !== undefined && overlaps(own, cidr))
    return `claims ${address}, which belongs to this cluster's own pods (${ownPodCidr})`;
  return undefined;
}

/** The same of a service's backends, which may be anywhere but at a host's own addresses. */
export function backendProblem(addresses: Iterable<string>): string | undefined {
  for (const address of addresses)
    if (reserved.check(address, isIpv4(address) ? 'ipv4' : 'ipv6'))
      return `has the backend ${address}, which is reserved for every host's own use`;
  return undefined;
}
