/** Ethernet frames as values, both ways and both families. `read` also says whether every checksum holds. */
import { isIpv4, readIpAddress, writeIpAddress } from '@clustermesh/contract';

export interface Frame {
  saddr: string;
  daddr: string;
  dstMac?: string;
  srcMac?: string;
  tcp?: { sport: number; dport: number; flags: string; seq?: number; ack?: number };
  udp?: { sport: number; dport: number; checksum?: 'none' };
  sctp?: { sport: number; dport: number };
  /** ICMP or ICMPv6, by the family. `rest`: the second four bytes of the header (default: id, then 0). */
  icmp?: { type: number; code?: number; id?: number; rest?: number; quote?: Buffer };
  payload?: string;
  /** Any other protocol. */
  protocol?: number;
  fragment?: { offset: number; more: boolean; id?: number };
  dontFragment?: boolean;
  /** Default: 64. */
  hopLimit?: number;
  /** IPv6 extension headers before layer 4, in order; each of eight bytes. */
  extensions?: ('hop-by-hop' | 'destination' | 'routing')[];
  /** IPv4 options, or a destination options header of IPv6 before the others: see `noteOf`. */
  note?: Buffer;
}

export interface ReadFrame {
  srcMac: string;
  dstMac: string;
  saddr: string;
  daddr: string;
  tcp?: { sport: number; dport: number; flags: string; seq: number; ack: number };
  udp?: { sport: number; dport: number; checksum?: 'none' };
  icmp?: { type: number; code: number; id: number; mtu?: number; quote?: Quote };
  payload: string;
  /** IPv4 options, or the destination options header of IPv6 without its first byte (what follows it), as hexadecimal text. */
  note?: string;
  /** Names of checksums that do not hold. */
  wrong: string[];
}

/** What an ICMP error says about the packet that it is about. */
export interface Quote {
  saddr: string;
  daddr: string;
  protocol: number;
  sport: number;
  dport: number;
}

const FLAGS = 'FSRPA';
const MAC = /[0-9a-f]{2}/gi;
const [ICMP, TCP, UDP, ICMPV6, SCTP] = [1, 6, 17, 58, 132];
const EXTENSION = { 'hop-by-hop': 0, destination: 60, routing: 43 } as const;
const FRAGMENT = 44;

const macBytes = (text: string): Buffer => Buffer.from((text.match(MAC) ?? []).join(''), 'hex');
const macText = (bytes: Buffer): string => (bytes.toString('hex').match(MAC) ?? []).join(':');

/** 4 or 16 bytes. */
function ipBytes(ip: string): Buffer {
  const bytes = Buffer.alloc(16);
  if (!writeIpAddress(ip, bytes)) throw new Error(`${ip} is no address`);
  return isIpv4(ip) ? bytes.subarray(12) : bytes;
}

function ipText(bytes: Buffer): string {
  return bytes.length === 4 ? [...bytes].join('.') : readIpAddress(bytes);
}

/** The service that a packet of direct server return is for: bpf/lib/dsr.h. */
export function noteOf(ip: string, port: number): Buffer {
  const address = ipBytes(ip);
  const head = Buffer.from(isIpv4(ip) ? '9e080000' : '00025e1400000000', 'hex');
  head.writeUInt16BE(port, isIpv4(ip) ? 2 : 4);
  return Buffer.concat([head, address]);
}

/** Ones' complement sum: 0xffff over data whose checksum is in place. */
function sum(data: Buffer, seed = 0): number {
  let total = seed;
  for (let i = 0; i < data.length; i += 2)
    total += data.readUInt8(i) * 256 + (i + 1 < data.length ? data.readUInt8(i + 1) : 0);
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return total;
}

/** The pseudo headers of both families sum to the addresses, the protocol and the length. */
const pseudo = (saddr: Buffer, daddr: Buffer, protocol: number, length: number): number =>
  sum(Buffer.concat([saddr, daddr]), protocol + length);

function ipv4Header(frame: Frame, protocol: number, length: number): Buffer {
  const { fragment, note = Buffer.alloc(0) } = frame;
  const ip = Buffer.concat([Buffer.alloc(20), note]);
  ip.writeUInt8(0x40 | (ip.length / 4), 0);
  ip.writeUInt16BE(ip.length + length, 2);
  if (fragment) ip.writeUInt16BE(fragment.id ?? 0, 4);
  const offset = fragment ? (fragment.more ? 0x2000 : 0) | (fragment.offset / 8) : 0;
  ip.writeUInt16BE(offset | (frame.dontFragment ? 0x4000 : 0), 6);
  ip.writeUInt8(frame.hopLimit ?? 64, 8);
  ip.writeUInt8(protocol, 9);
  ipBytes(frame.saddr).copy(ip, 12);
  ipBytes(frame.daddr).copy(ip, 16);
  ip.writeUInt16BE(~sum(ip) & 0xffff, 10);
  return ip;
}

function ipv6Header(frame: Frame, protocol: number, length: number): Buffer {
  const { fragment, extensions = [], note } = frame;
  const chain: [number, Buffer][] = extensions.map((name) => [EXTENSION[name], Buffer.alloc(8)]);
  if (note) chain.unshift([EXTENSION.destination, Buffer.from(note)]);
  if (fragment) {
    const header = Buffer.alloc(8);
    header.writeUInt16BE(fragment.offset | (fragment.more ? 1 : 0), 2);
    header.writeUInt32BE(fragment.id ?? 0, 4);
    chain.push([FRAGMENT, header]);
  }
  chain.forEach(([, header], i) => void header.writeUInt8(chain[i + 1]?.[0] ?? protocol, 0));
  const ip = Buffer.alloc(40);
  ip.writeUInt8(0x60, 0);
  ip.writeUInt16BE(
    chain.reduce((bytes, [, header]) => bytes + header.length, length),
    4,
  );
  ip.writeUInt8(chain[0]?.[0] ?? protocol, 6);
  ip.writeUInt8(frame.hopLimit ?? 64, 7);
  ipBytes(frame.saddr).copy(ip, 8);
  ipBytes(frame.daddr).copy(ip, 24);
  return Buffer.concat([ip, ...chain.map(([, header]) => header)]);
}

function layer4(frame: Frame): { protocol: number; header: Buffer; checksumAt: number } {
  if (frame.tcp) {
    const header = Buffer.alloc(20);
    header.writeUInt16BE(frame.tcp.sport, 0);
    header.writeUInt16BE(frame.tcp.dport, 2);
    header.writeUInt32BE(frame.tcp.seq ?? 0, 4);
    header.writeUInt32BE(frame.tcp.ack ?? 0, 8);
    header.writeUInt8(5 << 4, 12);
    header.writeUInt8(
      [...frame.tcp.flags].reduce((bits, flag) => bits | (1 << FLAGS.indexOf(flag)), 0),
      13,
    );
    return { protocol: TCP, header, checksumAt: 16 };
  }
  if (frame.udp) {
    const header = Buffer.alloc(8);
    header.writeUInt16BE(frame.udp.sport, 0);
    header.writeUInt16BE(frame.udp.dport, 2);
    header.writeUInt16BE(8 + (frame.payload?.length ?? 0), 4);
    return { protocol: UDP, header, checksumAt: frame.udp.checksum === 'none' ? -1 : 6 };
  }
  if (frame.sctp) {
    const header = Buffer.alloc(12);
    header.writeUInt16BE(frame.sctp.sport, 0);
    header.writeUInt16BE(frame.sctp.dport, 2);
    return { protocol: SCTP, header, checksumAt: -1 };
  }
  if (frame.icmp) {
    const { type, code = 0, id = 0, rest, quote = Buffer.alloc(0) } = frame.icmp;
    const header = Buffer.alloc(8);
    header.writeUInt8(type, 0);
    header.writeUInt8(code, 1);
    if (rest === undefined) header.writeUInt16BE(id, 4);
    else header.writeUInt32BE(rest, 4);
    const protocol = isIpv4(frame.saddr) ? ICMP : ICMPV6;
    return { protocol, header: Buffer.concat([header, quote]), checksumAt: 2 };
  }
  return { protocol: frame.protocol ?? 253, header: Buffer.alloc(0), checksumAt: -1 };
}

export function build(frame: Frame): Buffer {
  const { protocol, header, checksumAt } = layer4(frame);
  const body = Buffer.concat([header, Buffer.from(frame.payload ?? '', 'latin1')]);
  if (checksumAt >= 0) {
    const seed = protocol === ICMP ? 0 : pseudo(ipBytes(frame.saddr), ipBytes(frame.daddr), protocol, body.length);
    const checksum = ~sum(body, seed) & 0xffff;
    body.writeUInt16BE(checksum === 0 && protocol === UDP ? 0xffff : checksum, checksumAt);
  }
  const isV4 = isIpv4(frame.saddr);
  const ip = (isV4 ? ipv4Header : ipv6Header)(frame, protocol, body.length);
  const eth = Buffer.concat([
    macBytes(frame.dstMac ?? '02:00:00:00:00:02'),
    macBytes(frame.srcMac ?? '02:00:00:00:00:01'),
  ]);
  return Buffer.concat([eth, Buffer.from(isV4 ? '0800' : '86dd', 'hex'), ip, body]);
}

/** The IP packet of a frame, cut as an ICMP error quotes it: up to eight bytes of layer 4. */
export const quoteOf = (frame: Frame): Buffer =>
  build(frame).subarray(14, 14 + (isIpv4(frame.saddr) ? 20 : 40 + 8 * (frame.extensions?.length ?? 0)) + 8);

/** Addresses, and where layer 4 begins and ends; undefined protocol: a fragment. */
function readIp(ip: Buffer): { saddr: Buffer; daddr: Buffer; protocol: number | undefined; at: number; end: number } {
  if (ip.readUInt8(0) >> 4 === 4) {
    const protocol = ip.readUInt16BE(6) & 0x3fff ? undefined : ip.readUInt8(9);
    const at = (ip.readUInt8(0) & 15) * 4;
    return { saddr: ip.subarray(12, 16), daddr: ip.subarray(16, 20), protocol, at, end: ip.readUInt16BE(2) };
  }
  let next = ip.readUInt8(6);
  let at = 40;
  while (next === 0 || next === 60 || next === 43) {
    next = ip.readUInt8(at);
    at += (ip.readUInt8(at + 1) + 1) * 8;
  }
  const protocol = next === FRAGMENT ? undefined : next;
  return { saddr: ip.subarray(8, 24), daddr: ip.subarray(24, 40), protocol, at, end: 40 + ip.readUInt16BE(4) };
}

function readQuote(bytes: Buffer): Quote {
  const { saddr, daddr, protocol, at } = readIp(bytes);
  return {
    saddr: ipText(saddr),
    daddr: ipText(daddr),
    protocol: protocol ?? -1,
    sport: bytes.readUInt16BE(at),
    dport: bytes.readUInt16BE(at + 2),
  };
}

export function read(bytes: Buffer): ReadFrame {
  const ip = bytes.subarray(14);
  const { saddr, daddr, protocol, at, end } = readIp(ip);
  const body = ip.subarray(at, end);
  const isV4 = saddr.length === 4;
  const wrong: string[] = [];
  const check = (what: string, seed: number): void => {
    if (sum(body, seed) !== 0xffff) wrong.push(what);
  };
  if (isV4 && sum(ip.subarray(0, at)) !== 0xffff) wrong.push('ip');
  const note = isV4 ? ip.subarray(20, at) : ip.readUInt8(6) === EXTENSION.destination ? ip.subarray(41, at) : undefined;
  const frame: ReadFrame = {
    dstMac: macText(bytes.subarray(0, 6)),
    srcMac: macText(bytes.subarray(6, 12)),
    saddr: ipText(saddr),
    daddr: ipText(daddr),
    payload: '',
    ...(note?.length ? { note: note.toString('hex') } : {}),
    wrong,
  };
  if (protocol === undefined) return frame; // a fragment: no layer 4 to look at
  const seed = pseudo(saddr, daddr, protocol, body.length);
  if (protocol === TCP) {
    const bits = body.readUInt8(13);
    frame.tcp = {
      sport: body.readUInt16BE(0),
      dport: body.readUInt16BE(2),
      flags: [...FLAGS].filter((_, i) => bits & (1 << i)).join(''),
      seq: body.readUInt32BE(4),
      ack: body.readUInt32BE(8),
    };
    frame.payload = body.toString('latin1', 20);
    check('tcp', seed);
  } else if (protocol === UDP) {
    frame.udp = { sport: body.readUInt16BE(0), dport: body.readUInt16BE(2) };
    frame.payload = body.toString('latin1', 8);
    if (body.readUInt16BE(6) === 0) frame.udp.checksum = 'none';
    else check('udp', seed);
  } else if (protocol === ICMP || protocol === ICMPV6) {
    frame.icmp = { type: body.readUInt8(0), code: body.readUInt8(1), id: body.readUInt16BE(4) };
    check('icmp', isV4 ? 0 : seed);
    const { type, code } = frame.icmp;
    if (isV4 ? [3, 11, 12].includes(type) : type < 128) {
      frame.icmp.quote = readQuote(body.subarray(8));
      if (isV4 && sum(body.subarray(8, 28)) !== 0xffff) wrong.push('quoted ip');
      if (isV4 ? type === 3 && code === 4 : type === 2) {
        frame.icmp.mtu = isV4 ? body.readUInt16BE(6) : body.readUInt32BE(4);
        frame.icmp.id = 0;
      }
    } else {
      frame.payload = body.toString('latin1', 8);
    }
  }
  return frame;
}
