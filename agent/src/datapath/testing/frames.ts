/** Ethernet frames as values, both ways. `read` also says whether every checksum holds. */
import { ipv4ToNumber, numberToIpv4 } from '@clustermesh/contract';

export interface Frame {
  saddr: string;
  daddr: string;
  dstMac?: string;
  srcMac?: string;
  tcp?: { sport: number; dport: number; flags: string; seq?: number; ack?: number };
  udp?: { sport: number; dport: number; checksum?: 'none' };
  icmp?: { type: number; code?: number; id?: number; quote?: Buffer };
  payload?: string;
  /** Any other IP protocol. */
  protocol?: number;
  fragment?: { offset: number; more: boolean };
}

export interface ReadFrame {
  srcMac: string;
  dstMac: string;
  saddr: string;
  daddr: string;
  tcp?: { sport: number; dport: number; flags: string; seq: number; ack: number };
  udp?: { sport: number; dport: number; checksum?: 'none' };
  icmp?: { type: number; code: number; id: number; quote?: Quote };
  payload: string;
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

const macBytes = (text: string): Buffer => Buffer.from((text.match(MAC) ?? []).join(''), 'hex');
const macText = (bytes: Buffer): string => (bytes.toString('hex').match(MAC) ?? []).join(':');

/** Ones' complement sum: 0xffff over data whose checksum is in place. */
function sum(data: Buffer, seed = 0): number {
  let total = seed;
  for (let i = 0; i < data.length; i += 2)
    total += data.readUInt8(i) * 256 + (i + 1 < data.length ? data.readUInt8(i + 1) : 0);
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return total;
}

function pseudo(ip: Buffer, protocol: number, length: number): number {
  const header = Buffer.alloc(12);
  ip.copy(header, 0, 12, 20);
  header.writeUInt8(protocol, 9);
  header.writeUInt16BE(length, 10);
  return sum(header);
}

function ipHeader(frame: Frame, protocol: number, length: number): Buffer {
  const ip = Buffer.alloc(20);
  ip.writeUInt8(0x45, 0);
  ip.writeUInt16BE(20 + length, 2);
  if (frame.fragment) ip.writeUInt16BE((frame.fragment.more ? 0x2000 : 0) | (frame.fragment.offset / 8), 6);
  ip.writeUInt8(64, 8);
  ip.writeUInt8(protocol, 9);
  ip.writeUInt32BE(ipv4ToNumber(frame.saddr), 12);
  ip.writeUInt32BE(ipv4ToNumber(frame.daddr), 16);
  ip.writeUInt16BE(~sum(ip) & 0xffff, 10);
  return ip;
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
    return { protocol: 6, header, checksumAt: 16 };
  }
  if (frame.udp) {
    const header = Buffer.alloc(8);
    header.writeUInt16BE(frame.udp.sport, 0);
    header.writeUInt16BE(frame.udp.dport, 2);
    header.writeUInt16BE(8 + (frame.payload?.length ?? 0), 4);
    return { protocol: 17, header, checksumAt: frame.udp.checksum === 'none' ? -1 : 6 };
  }
  if (frame.icmp) {
    const header = Buffer.alloc(8);
    header.writeUInt8(frame.icmp.type, 0);
    header.writeUInt8(frame.icmp.code ?? 0, 1);
    header.writeUInt16BE(frame.icmp.id ?? 0, 4);
    return { protocol: 1, header: Buffer.concat([header, frame.icmp.quote ?? Buffer.alloc(0)]), checksumAt: 2 };
  }
  return { protocol: frame.protocol ?? 132, header: Buffer.alloc(0), checksumAt: -1 };
}

export function build(frame: Frame): Buffer {
  const { protocol, header, checksumAt } = layer4(frame);
  const body = Buffer.concat([header, Buffer.from(frame.payload ?? '', 'latin1')]);
  const ip = ipHeader(frame, protocol, body.length);
  if (checksumAt >= 0) {
    const checksum = ~sum(body, protocol === 1 ? 0 : pseudo(ip, protocol, body.length)) & 0xffff;
    body.writeUInt16BE(checksum === 0 && protocol === 17 ? 0xffff : checksum, checksumAt);
  }
  const eth = Buffer.concat([
    macBytes(frame.dstMac ?? '02:00:00:00:00:02'),
    macBytes(frame.srcMac ?? '02:00:00:00:00:01'),
  ]);
  return Buffer.concat([eth, Buffer.from('0800', 'hex'), ip, body]);
}

/** The IP packet of a frame, cut as an ICMP error quotes it. */
export const quoteOf = (frame: Frame): Buffer => build(frame).subarray(14, 14 + 28);

function readQuote(bytes: Buffer): Quote {
  return {
    saddr: numberToIpv4(bytes.readUInt32BE(12)),
    daddr: numberToIpv4(bytes.readUInt32BE(16)),
    protocol: bytes.readUInt8(9),
    sport: bytes.readUInt16BE(20),
    dport: bytes.readUInt16BE(22),
  };
}

export function read(bytes: Buffer): ReadFrame {
  const ip = bytes.subarray(14, 34);
  const body = bytes.subarray(34, 14 + ip.readUInt16BE(2));
  const protocol = ip.readUInt8(9);
  const wrong: string[] = [];
  if (sum(ip) !== 0xffff) wrong.push('ip');
  const frame: ReadFrame = {
    dstMac: macText(bytes.subarray(0, 6)),
    srcMac: macText(bytes.subarray(6, 12)),
    saddr: numberToIpv4(ip.readUInt32BE(12)),
    daddr: numberToIpv4(ip.readUInt32BE(16)),
    payload: '',
    wrong,
  };
  if (ip.readUInt16BE(6) & 0x3fff) return frame; // a fragment: no layer 4 to look at
  if (protocol === 6) {
    const bits = body.readUInt8(13);
    frame.tcp = {
      sport: body.readUInt16BE(0),
      dport: body.readUInt16BE(2),
      flags: [...FLAGS].filter((_, i) => bits & (1 << i)).join(''),
      seq: body.readUInt32BE(4),
      ack: body.readUInt32BE(8),
    };
    frame.payload = body.toString('latin1', 20);
    if (sum(body, pseudo(ip, 6, body.length)) !== 0xffff) wrong.push('tcp');
  } else if (protocol === 17) {
    frame.udp = { sport: body.readUInt16BE(0), dport: body.readUInt16BE(2) };
    frame.payload = body.toString('latin1', 8);
    if (body.readUInt16BE(6) === 0) frame.udp.checksum = 'none';
    else if (sum(body, pseudo(ip, 17, body.length)) !== 0xffff) wrong.push('udp');
  } else if (protocol === 1) {
    frame.icmp = { type: body.readUInt8(0), code: body.readUInt8(1), id: body.readUInt16BE(4) };
    if (sum(body) !== 0xffff) wrong.push('icmp');
    if ([3, 11, 12].includes(frame.icmp.type)) {
      frame.icmp.quote = readQuote(body.subarray(8));
      if (sum(body.subarray(8, 28)) !== 0xffff) wrong.push('quoted ip');
    } else {
      frame.payload = body.toString('latin1', 8);
    }
  }
  return frame;
}
