/** IP addresses as text and as 16 bytes (IPv4 as ::ffff:a.b.c.d). Pure; whether a text is IPv6 is for node:net to say. */
import { isIP } from 'node:net';

export function isIpAddress(text: string): boolean {
  return scanIpv4(text) >= 0 || isIP(text) !== 0;
}

/**
 * The 32-bit number (host order) of an IPv4 text as node:net accepts it (four decimals without leading zeros), or -1. Every
 * address of a mesh passes here several times, so it goes through the text once.
 */
function scanIpv4(text: string): number {
  const { length } = text;
  if (length < 7 || length > 15) return -1;
  let value = 0;
  let part = -1;
  let dots = 0;
  for (let i = 0; i < length; i++) {
    const code = text.charCodeAt(i);
    if (code === 46) {
      if (part < 0) return -1;
      value = value * 256 + part;
      part = -1;
      dots++;
    } else {
      if (code < 48 || code > 57 || part === 0) return -1;
      part = part < 0 ? code - 48 : part * 10 + code - 48;
      if (part > 255) return -1;
    }
  }
  return dots === 3 && part >= 0 ? value * 256 + part : -1;
}

export function isIpv4(text: string): boolean {
  return scanIpv4(text) >= 0;
}

/** IPv4 text to its 32-bit number (host order). */
export function ipv4ToNumber(text: string): number {
  return Math.max(0, scanIpv4(text));
}

export function numberToIpv4(value: number): string {
  return `${value >>> 24}.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}`;
}

/**
 * Writes the 16 bytes of an address at `at`, IPv4 as v4-mapped (RFC 4291, 2.5.5.2). False, and nothing written, for what is no
 * address; one with a zone (`fe80::1%eth0`) is none without its interface.
 */
export function writeIpAddress(text: string, into: Uint8Array, at = 0): boolean {
  const ipv4 = scanIpv4(text);
  if (ipv4 >= 0) {
    for (let i = 0; i < 10; i++) into[at + i] = 0;
    into[at + 10] = 0xff;
    into[at + 11] = 0xff;
    for (let i = 0; i < 4; i++) into[at + 12 + i] = ipv4 >>> (24 - 8 * i);
    return true;
  }
  if (isIP(text) !== 6 || text.includes('%')) return false;
  const [head = '', tail] = text.split('::');
  const front = groupsOf(head);
  const back = groupsOf(tail ?? '');
  into.fill(0, at, at + 16);
  front.forEach((group, i) => void into.set([group >> 8, group & 255], at + 2 * i));
  back.forEach((group, i) => void into.set([group >> 8, group & 255], at + 16 - 2 * (back.length - i)));
  return true;
}

/** The 16-bit groups of one side of the '::'; the last may be dotted IPv4. */
function groupsOf(side: string): number[] {
  if (side === '') return [];
  return side.split(':').flatMap((group) => {
    const ipv4 = scanIpv4(group);
    return ipv4 >= 0 ? [ipv4 >>> 16, ipv4 & 0xffff] : [Number.parseInt(group, 16)];
  });
}

/** Looked at byte by byte: a kernel table of hundreds of thousands of addresses is read whole every minute. */
function isV4Mapped(from: Uint8Array, at: number): boolean {
  if (from[at + 10] !== 0xff || from[at + 11] !== 0xff) return false;
  for (let i = 0; i < 10; i++) if (from[at + i] !== 0) return false;
  return true;
}

/** The text of 16 bytes: dotted for v4-mapped ones, else in the one form of RFC 5952. */
export function readIpAddress(from: Uint8Array, at = 0): string {
  if (isV4Mapped(from, at)) return `${from[at + 12]}.${from[at + 13]}.${from[at + 14]}.${from[at + 15]}`;
  const groups = Array.from({ length: 8 }, (_, i) => ((from[at + 2 * i] ?? 0) << 8) | (from[at + 2 * i + 1] ?? 0));
  // The longest run of at least two zeros gives way to '::', the first of equals.
  let run = { start: 0, length: 1 };
  for (let i = 0; i < 8; i++) {
    let end = i;
    while (end < 8 && groups[end] === 0) end++;
    if (end - i > run.length) run = { start: i, length: end - i };
  }
  const text = (part: number[]) => part.map((group) => group.toString(16)).join(':');
  if (run.length < 2) return text(groups);
  return `${text(groups.slice(0, run.start))}::${text(groups.slice(run.start + run.length))}`;
}

/** The one form in which two texts of the same address are equal; undefined for what is no address. */
export function canonicalIp(text: string): string | undefined {
  if (isIpv4(text)) return text;
  const bytes = new Uint8Array(16);
  return writeIpAddress(text, bytes) ? readIpAddress(bytes) : undefined;
}

export interface Cidr {
  readonly ip: string;
  readonly length: number;
}

export function parseCidr(text: string): Cidr | undefined {
  const slash = text.indexOf('/');
  if (slash < 0) return undefined;
  const ip = text.slice(0, slash);
  const length = scanPrefixLength(text, slash + 1);
  if (length < 0) return undefined;
  if (isIpv4(ip) ? length > 32 : isIP(ip) === 0 || length > 128) return undefined;
  return { ip, length };
}

/** One to three digits up to the end of the text, or -1. */
function scanPrefixLength(text: string, from: number): number {
  const digits = text.length - from;
  if (digits < 1 || digits > 3) return -1;
  let length = 0;
  for (let i = from; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code < 48 || code > 57) return -1;
    length = length * 10 + code - 48;
  }
  return length;
}

export function formatCidr(cidr: Cidr): string {
  return `${cidr.ip}/${cidr.length}`;
}

/** True when an IPv4 `address` lies in the IPv4 `cidr`. */
export function ipv4Contains(cidr: Cidr, address: string): boolean {
  if (!isIpv4(cidr.ip) || !isIpv4(address)) return false;
  const mask = cidr.length === 0 ? 0 : (0xffffffff << (32 - cidr.length)) >>> 0;
  return (ipv4ToNumber(cidr.ip) & mask) >>> 0 === (ipv4ToNumber(address) & mask) >>> 0;
}

/** True when `address` lies in `cidr`, in either family; never across families. */
export function cidrContains(cidr: Cidr, address: string): boolean {
  if (isIpv4(cidr.ip) || isIpv4(address)) return ipv4Contains(cidr, address);
  const net = networkOf({ ip: address, length: cidr.length });
  return net !== undefined && net === networkOf(cidr);
}

/** `10.1.1.7/24` → `10.1.1.0/24`: what a kernel knows of a prefix. Undefined when the address is none. */
export function canonicalCidr(cidr: Cidr): string | undefined {
  const net = networkOf(cidr);
  return net === undefined ? undefined : formatCidr({ ip: net, length: cidr.length });
}

/** The one address of a prefix: with the full length of its family. */
export const hostCidr = (ip: string): string => `${ip}/${isIpv4(ip) ? 32 : 128}`;

function networkOf({ ip, length }: Cidr): string | undefined {
  if (isIpv4(ip)) return numberToIpv4(length === 0 ? 0 : (ipv4ToNumber(ip) & (0xffffffff << (32 - length))) >>> 0);
  const bytes = new Uint8Array(16);
  if (!writeIpAddress(ip, bytes)) return undefined;
  return readIpAddress(bytes.map((byte, i) => byte & (0xff00 >> Math.max(0, Math.min(8, length - 8 * i)))));
}

/** Whether two CIDRs share an address: then one of them contains the other. Never across families. */
export function cidrsOverlap(a: Cidr, b: Cidr): boolean {
  return a.length <= b.length ? cidrContains(a, b.ip) : cidrContains(b, a.ip);
}

/** Whether two IPv4 CIDRs share an address: then one of them contains the other's base. Anything that is no CIDR overlaps nothing. */
export function ipv4RangesOverlap(a: string, b: string): boolean {
  const left = parseCidr(a);
  const right = parseCidr(b);
  return left !== undefined && right !== undefined && (ipv4Contains(left, right.ip) || ipv4Contains(right, left.ip));
}

/** Go's net.IPMask as base64: 4 bytes for IPv4, 16 for IPv6. */
export function maskToBase64(length: number, bytes: 4 | 16): string {
  const mask = Buffer.alloc(bytes);
  for (let bit = 0; bit < length; bit++) mask[bit >> 3] = (mask[bit >> 3] ?? 0) | (0x80 >> (bit & 7));
  return mask.toString('base64');
}

/** Prefix length of a base64 mask, or undefined when it is not a canonical mask of 4 or 16 bytes. */
export function maskFromBase64(text: string): number | undefined {
  const mask = Buffer.from(text, 'base64');
  if (mask.length !== 4 && mask.length !== 16) return undefined;
  let length = 0;
  while (length < mask.length * 8 && ((mask[length >> 3] ?? 0) & (0x80 >> (length & 7))) !== 0) length++;
  return maskToBase64(length, mask.length) === text ? length : undefined;
}

/** A Go net.IPNet (address text, base64 mask) as a CIDR; undefined when malformed or when address and mask differ in family. */
export function cidrFromGo(ip: string, mask: string): Cidr | undefined {
  const length = maskFromBase64(mask);
  if (length === undefined || Buffer.from(mask, 'base64').length !== (isIpv4(ip) ? 4 : 16)) return undefined;
  return isIpAddress(ip) ? { ip, length } : undefined;
}
