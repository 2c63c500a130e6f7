/**
 * What must not be forwarded, said a second time and in another language: from the table of odd packets in bpf/README.md, not from
 * the programs. It only knows what has to be dropped; that something may be forwarded is not what it says.
 */
import { isIpv4, readIpAddress } from '@clustermesh/contract';
import { A, B, C, GATEWAY, GATEWAY6, NODE, NODE6, W } from '../testing/packet-lab.ts';
import type { FuzzCase } from './packets.ts';

export const PODS = [A, B];
export const podOf = (ip: string) => PODS.find((pod) => pod.ip === ip || pod.ip6 === ip);
const OWN_HOST: ReadonlySet<string> = new Set([NODE, NODE6, GATEWAY, GATEWAY6]);
const CLUSTER_OF_NODE: ReadonlyMap<string, number> = new Map([
  [C.node, 2],
  [W.node, 2],
  ['172.31.1.12', 1],
]);
/** 10.1.1.0/24 and fd00:1:1::/64, in canonical text. */
const isOwnPodCidr = (ip: string): boolean => ip.startsWith('10.1.1.') || /^fd00:1:1:(:|0:)/.test(ip);
const isLinkLocal = (ip: string): boolean => /^fe[89ab]/.test(ip);

/** What an IP packet is, as far as it decides; or why nobody may have it. */
type Parsed =
  | { readonly drop: string }
  | { readonly arp: true }
  | {
      readonly saddr: string;
      readonly daddr: string;
      readonly discovery?: { readonly type: number; readonly hops: number };
    };

export interface Oracle {
  /** Why it must be dropped; undefined if it need not be. Remembers first fragments, so each packet is to be asked about once. */
  mustDrop(fuzz: FuzzCase): string | undefined;
}

const [TCP, UDP, ICMP, ICMPV6, SCTP] = [6, 17, 1, 58, 132];
const HEADER_BYTES: ReadonlyMap<number, number> = new Map([
  [TCP, 20],
  [UDP, 8],
  [SCTP, 12],
  [ICMP, 8],
  [ICMPV6, 8],
]);
const FORWARDED_ICMP: ReadonlySet<number> = new Set([0, 3, 8, 11, 12]);
const FORWARDED_ICMPV6: ReadonlySet<number> = new Set([1, 2, 3, 4, 128, 129]);
const DISCOVERY: ReadonlySet<number> = new Set([130, 131, 132, 133, 134, 135, 136, 137, 143]);
const MAX_EXTENSIONS = 4;

export function createOracle(): Oracle {
  const firstFragments = new Set<string>();

  function layer4(bytes: Buffer, protocol: number, isV6: boolean): string | { discovery: number } | undefined {
    const need = HEADER_BYTES.get(protocol);
    if (need === undefined || protocol === (isV6 ? ICMP : ICMPV6)) return 'unsupported layer 4';
    if (bytes.length < need) return 'layer 4 header cut short';
    if (protocol === ICMP && !FORWARDED_ICMP.has(bytes[0]!)) return 'ICMP type';
    if (protocol !== ICMPV6) return undefined;
    if (DISCOVERY.has(bytes[0]!)) return { discovery: bytes[0]! };
    return FORWARDED_ICMPV6.has(bytes[0]!) ? undefined : 'ICMPv6 type';
  }

  function ipv4(packet: Buffer): Parsed {
    if (packet.length < 20) return { drop: 'IPv4 header cut short' };
    if (packet[0] !== 0x45) return { drop: 'version or options' };
    const length = packet.readUInt16BE(2);
    if (length < 20 || length > packet.length) return { drop: 'total length' };
    const [saddr, daddr] = [packet.subarray(12, 16).join('.'), packet.subarray(16, 20).join('.')];
    const part = packet.readUInt16BE(6);
    const key = `${saddr} ${daddr} ${packet.readUInt16BE(4)} ${packet[9]}`;
    if ((part & 0x1fff) !== 0)
      return firstFragments.has(key) ? { saddr, daddr } : { drop: 'fragment without its first' };
    if ((part & 0x2000) !== 0) firstFragments.add(key);
    const wrong = layer4(packet.subarray(20, length), packet[9]!, false);
    return typeof wrong === 'string' ? { drop: wrong } : { saddr, daddr };
  }

  function ipv6(packet: Buffer): Parsed {
    if (packet.length < 40) return { drop: 'IPv6 header cut short' };
    if (packet[0]! >> 4 !== 6) return { drop: 'version' };
    const length = packet.readUInt16BE(4);
    if (length === 0 || length > packet.length - 40) return { drop: 'payload length' };
    const [saddr, daddr] = [readIpAddress(packet, 8), readIpAddress(packet, 24)];
    if (isIpv4(saddr) || isIpv4(daddr)) return { drop: 'v4-mapped address' };
    const end = 40 + length;
    let next = packet[6]!;
    let at = 40;
    let passed = 0;
    while ([0, 44, 60].includes(next)) {
      if (++passed > MAX_EXTENSIONS) return { drop: 'too many extension headers' };
      if (end < at + 8) return { drop: 'extension header cut short' };
      if (next === 44) {
        const part = packet.readUInt16BE(at + 2);
        const key = `${saddr} ${daddr} ${packet.readUInt32BE(at + 4)}`;
        if ((part & 0xfff8) !== 0)
          return firstFragments.has(key) ? { saddr, daddr } : { drop: 'fragment without its first' };
        if ((part & 1) !== 0) firstFragments.add(key);
      }
      const step = next === 44 ? 8 : (packet[at + 1]! + 1) * 8;
      next = packet[at]!;
      at += step;
    }
    if (next === 43) return { drop: 'routing header' };
    const wrong = layer4(packet.subarray(Math.min(at, end), end), next, true);
    if (typeof wrong === 'string') return { drop: wrong };
    return wrong === undefined
      ? { saddr, daddr }
      : { saddr, daddr, discovery: { type: wrong.discovery, hops: packet[7]! } };
  }

  function parse(frame: Buffer): Parsed {
    switch (frame.readUInt16BE(12)) {
      case 0x8100:
      case 0x88a8:
        return { drop: 'VLAN tag' };
      case 0x0806:
        return { arp: true };
      case 0x0800:
        return ipv4(frame.subarray(14));
      case 0x86dd:
        return ipv6(frame.subarray(14));
      default:
        return { drop: 'neither IP nor ARP' };
    }
  }

  function fromPod(parsed: Parsed, ifindex: number): string | undefined {
    if ('drop' in parsed) return parsed.drop;
    if ('arp' in parsed) return undefined;
    const { saddr, daddr, discovery } = parsed;
    const isOwn = podOf(saddr)?.ifindex === ifindex;
    if (discovery !== undefined) {
      const isNeighbour = discovery.type >= 133 && discovery.type <= 137;
      if (isNeighbour && discovery.hops !== 255) return 'discovery from afar';
      if (discovery.type === 134 || discovery.type === 137) return 'what only a router says';
      return isOwn || saddr === '::' || isLinkLocal(saddr) ? undefined : 'spoofed discovery';
    }
    if (!isOwn) return 'spoofed source';
    return podOf(daddr)?.ifindex === ifindex ? 'to itself' : undefined;
  }

  function overlay(parsed: Parsed, { vni, remote }: FuzzCase['hook']): string | undefined {
    const cluster = CLUSTER_OF_NODE.get(remote);
    if (cluster === undefined) return 'unknown node';
    if (vni >= 256 && vni >> 16 !== cluster) return 'foreign identity';
    if ('drop' in parsed) return parsed.drop;
    if ('arp' in parsed) return 'ARP from afar';
    const { saddr, daddr, discovery } = parsed;
    if (discovery !== undefined) return 'discovery from afar';
    if (isLinkLocal(saddr)) return 'link-local source';
    if (isOwnPodCidr(saddr) || OWN_HOST.has(saddr)) return 'our own address from afar';
    return isOwnPodCidr(daddr) || OWN_HOST.has(daddr) ? undefined : 'not for us';
  }

  return {
    mustDrop({ program, packet, hook }) {
      const parsed = parse(packet);
      if (program === 'cm_test_from_pod') return fromPod(parsed, hook.ifindex);
      return program === 'cm_test_overlay' ? overlay(parsed, hook) : undefined;
    },
  };
}
