/** Addresses and networks in Go's text forms. */
import { isIP } from 'node:net';

/** What Go's net.IP.String() gives for an address; a key that is spelled otherwise does not match its value. */
export function canonicalIp(address: string): string {
  if (isIP(address) !== 6) return address;
  // The URL parser writes IPv6 as RFC 5952 does; an IPv4 address inside it Go writes as IPv4.
  const canonical = new URL(`http://[${address}]/`).hostname.slice(1, -1);
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical);
  if (mapped === null) return canonical;
  const [high, low] = [Number.parseInt(mapped[1] ?? '', 16), Number.parseInt(mapped[2] ?? '', 16)];
  return [high >> 8, high & 255, low >> 8, low & 255].join('.');
}

/** The prefix length of a Go net.IPMask in base64 that fits the address; undefined when it is none. */
export function maskLength(mask: string, address: string): number | undefined {
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(mask) || mask.length % 4 !== 0) return undefined;
  const bytes = Buffer.from(mask, 'base64');
  if (bytes.length !== (isIP(address) === 4 ? 4 : 16)) return undefined;
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  const length = bits.indexOf('0') < 0 ? bits.length : bits.indexOf('0');
  return bits.slice(length).includes('1') ? undefined : length;
}
