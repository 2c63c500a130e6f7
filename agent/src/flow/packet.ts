/**
 * Who talks to whom, from the first bytes of a frame. Takes whatever comes: what cannot be read is left out, nothing throws.
 * Pure.
 */
import { numberToIpv4, readIpAddress } from '@clustermesh/contract';

export interface Tuple {
  readonly source: string;
  readonly destination: string;
  /** TCP, UDP, ICMP, ICMPv6, SCTP, or the number. */
  readonly protocol: string;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  /** As tcpdump writes them: S, S., F., R, P. … */
  readonly tcpFlags?: string;
  readonly icmp?: { readonly type: number; readonly code: number };
  readonly isFragment?: boolean;
}

export interface Head {
  readonly vlan?: number;
  readonly ethertype: number;
  readonly tuple?: Tuple;
  /** The packet that an ICMP error is about. */
  readonly quoted?: Tuple;
}

const ETH_IPV4 = 0x0800;
const ETH_IPV6 = 0x86dd;
const VLAN_TYPES: ReadonlySet<number> = new Set([0x8100, 0x88a8]);
const PROTOCOLS: Readonly<Record<number, string>> = { 1: 'ICMP', 6: 'TCP', 17: 'UDP', 58: 'ICMPv6', 132: 'SCTP' };
const [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, MOBILITY] = [0, 43, 44, 60, 135];
const FLAGS = ['F', 'S', 'R', 'P', '.', 'U'];

/** RFC 792, RFC 4443: these carry the beginning of the packet that they are about. */
const quotesPacket = (protocol: string, type: number): boolean =>
  protocol === 'ICMP' ? [3, 4, 5, 11, 12].includes(type) : type < 128;

export const protocolName = (number: number): string => PROTOCOLS[number] ?? String(number);

export function readHead(frame: Buffer): Head | undefined {
  if (frame.length < 14) return undefined;
  let at = 12;
  let ethertype = frame.readUInt16BE(at);
  let vlan: number | undefined;
  while (VLAN_TYPES.has(ethertype) && frame.length >= at + 6) {
    vlan ??= frame.readUInt16BE(at + 2) & 0xfff;
    at += 4;
    ethertype = frame.readUInt16BE(at);
  }
  const packet = frame.subarray(at + 2);
  const read = ethertype === ETH_IPV4 || ethertype === ETH_IPV6 ? readIp(packet) : undefined;
  const quoted = read?.quote === undefined ? undefined : readIp(read.quote)?.tuple;
  return {
    ethertype,
    ...(vlan === undefined ? {} : { vlan }),
    ...(read === undefined ? {} : { tuple: read.tuple }),
    ...(quoted === undefined ? {} : { quoted }),
  };
}

interface Read {
  readonly tuple: Tuple;
  readonly quote?: Buffer;
}

function readIp(packet: Buffer): Read | undefined {
  const version = (packet[0] ?? 0) >> 4;
  if (version === 4) return readIpv4(packet);
  return version === 6 ? readIpv6(packet) : undefined;
}

function readIpv4(packet: Buffer): Read | undefined {
  if (packet.length < 20) return undefined;
  const offset = packet.readUInt16BE(6);
  const ends = { source: numberToIpv4(packet.readUInt32BE(12)), destination: numberToIpv4(packet.readUInt32BE(16)) };
  const headerLength = Math.max(5, packet.readUInt8(0) & 15) * 4;
  return readLayer4(ends, packet.readUInt8(9), packet.subarray(headerLength), {
    isFirst: (offset & 0x1fff) === 0,
    isFragment: (offset & 0x3fff) !== 0,
  });
}

function readIpv6(packet: Buffer): Read | undefined {
  if (packet.length < 40) return undefined;
  const ends = { source: readIpAddress(packet, 8), destination: readIpAddress(packet, 24) };
  let next = packet.readUInt8(6);
  let at = 40;
  let part = { isFirst: true, isFragment: false };
  while ([HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, MOBILITY].includes(next) && packet.length >= at + 8) {
    if (next === FRAGMENT) part = { isFirst: (packet.readUInt16BE(at + 2) & 0xfff8) === 0, isFragment: true };
    const length = next === FRAGMENT ? 8 : (packet.readUInt8(at + 1) + 1) * 8;
    next = packet.readUInt8(at);
    at += length;
  }
  return readLayer4(ends, next, packet.subarray(at), part);
}

function readLayer4(
  ends: { readonly source: string; readonly destination: string },
  number: number,
  bytes: Buffer,
  { isFirst, isFragment }: { readonly isFirst: boolean; readonly isFragment: boolean },
): Read {
  const protocol = protocolName(number);
  const tuple = { ...ends, protocol, ...(isFragment ? { isFragment } : {}) };
  if (!isFirst) return { tuple };
  if (['TCP', 'UDP', 'SCTP'].includes(protocol) && bytes.length >= 4) {
    const ports = { sourcePort: bytes.readUInt16BE(0), destinationPort: bytes.readUInt16BE(2) };
    const bits = protocol === 'TCP' ? bytes[13] : undefined;
    const tcpFlags = bits === undefined ? undefined : FLAGS.filter((_, i) => bits & (1 << i)).join('');
    return { tuple: { ...tuple, ...ports, ...(tcpFlags === undefined ? {} : { tcpFlags }) } };
  }
  if ((protocol === 'ICMP' || protocol === 'ICMPv6') && bytes.length >= 2) {
    const icmp = { type: bytes.readUInt8(0), code: bytes.readUInt8(1) };
    const quote = quotesPacket(protocol, icmp.type) ? { quote: bytes.subarray(8) } : {};
    return { tuple: { ...tuple, icmp }, ...quote };
  }
  return { tuple };
}
