/**
 * Pod CIDRs by the nodes whose they are. Each row of a peer is asked about (300 000 of them against some hundred nodes), so the IPv4
 * ones, nearly all of few lengths, are looked up by network instead of compared one by one. Pure but for its own state.
 */
import { type Cidr, cidrContains, ipv4ToNumber, isIpv4, parseCidr } from '@clustermesh/contract';

export interface PodNets {
  /** The CIDRs of one node, in place of those before; what is none is left out. True if they are others than before. */
  set(node: string, texts: readonly (string | undefined)[]): boolean;
  /** Whether all of the prefix lies in one of them. */
  contain(prefix: Cidr): boolean;
}

const networkOf = (ip: string, length: number): number =>
  length === 0 ? 0 : (ipv4ToNumber(ip) & (0xffffffff << (32 - length))) >>> 0;

export function createPodNets(): PodNets {
  const byNode = new Map<string, readonly Cidr[]>();
  /** length → network → how many nodes say that it is theirs. */
  const ipv4 = new Map<number, Map<number, number>>();
  const others = new Set<Cidr>();

  function count(cidr: Cidr, by: 1 | -1): void {
    const { ip, length } = cidr;
    if (!isIpv4(ip)) {
      if (by > 0) others.add(cidr);
      else others.delete(cidr);
      return;
    }
    const networks = ipv4.get(length) ?? new Map<number, number>();
    const network = networkOf(ip, length);
    const nodes = (networks.get(network) ?? 0) + by;
    if (nodes > 0) networks.set(network, nodes);
    else networks.delete(network);
    if (networks.size > 0) ipv4.set(length, networks);
    else ipv4.delete(length);
  }

  return {
    set(node, texts) {
      const cidrs = texts.flatMap((text) => parseCidr(text ?? '') ?? []);
      const before = byNode.get(node) ?? [];
      if (
        cidrs.length === before.length &&
        cidrs.every((c, i) => c.ip === before[i]?.ip && c.length === before[i].length)
      )
        return false;
      for (const cidr of before) count(cidr, -1);
      for (const cidr of cidrs) count(cidr, 1);
      if (cidrs.length === 0) byNode.delete(node);
      else byNode.set(node, cidrs);
      return true;
    },
    contain(prefix) {
      if (isIpv4(prefix.ip)) {
        for (const [length, networks] of ipv4)
          if (length <= prefix.length && networks.has(networkOf(prefix.ip, length))) return true;
        return false;
      }
      for (const cidr of others) if (cidr.length <= prefix.length && cidrContains(cidr, prefix.ip)) return true;
      return false;
    },
  };
}
