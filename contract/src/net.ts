/** IP text forms. Pure; IPv6 parsing is node:net's job at the edges, here only what the codecs need. */
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

export interface Cidr {
  readonly ip: string;
  readonly length: number;
}

export function parseCidr(text: string): Cidr | undefined {
  const slash = text.indexOf('/');
  if (slash < 0) return undefined;
  const ip = text.slice(0, slash);
  const lengthText = text.slice(slash + 1);
  if (!/^\d{1,3}$/.test(lengthText)) return undefined;
  const length = Number(lengthText);
  if (isIpv4(ip) ? length > 32 : isIP(ip) === 0 || length > 128) return undefined;
  return { ip, length };
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
