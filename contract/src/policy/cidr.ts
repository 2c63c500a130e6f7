/** IP prefixes of both families as numbers: equality and containment for policies. Pure. */
import { isIPv6 } from 'node:net';
import { formatCidr, ipv4ToNumber, isIpAddress, isIpv4, numberToIpv4, parseCidr } from '../net.ts';

export interface Prefix {
  readonly family: 4 | 6;
  /** The network's bits; those behind `length` are zero. */
  readonly bits: bigint;
  readonly length: number;
}

const WIDTH = { 4: 32, 6: 128 } as const;

/** Eight groups of an IPv6 text that node:net has accepted. */
function ipv6Bits(text: string): bigint {
  const zone = text.indexOf('%');
  const plain = zone < 0 ? text : text.slice(0, zone);
  const tail = plain.slice(plain.lastIndexOf(':') + 1);
  const number = isIpv4(tail) ? ipv4ToNumber(tail) : undefined;
  const hex =
    number === undefined
      ? plain
      : `${plain.slice(0, -tail.length)}${(number >>> 16).toString(16)}:${(number & 0xffff).toString(16)}`;
  const [head = '', rest] = hex.split('::');
  const groups = (part: string) => (part === '' ? [] : part.split(':'));
  const left = groups(head);
  const right = groups(rest ?? '');
  const zeros = new Array<string>(8 - left.length - right.length).fill('0');
  return [...left, ...zeros, ...right].reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n);
}

function masked(family: 4 | 6, bits: bigint, length: number): Prefix {
  const behind = BigInt(WIDTH[family] - length);
  return { family, bits: (bits >> behind) << behind, length };
}

/** An address or a CIDR; bits behind the length are dropped. Undefined: neither. */
export function parsePrefix(text: string): Prefix | undefined {
  const cidr = isIpAddress(text) ? { ip: text, length: isIpv4(text) ? 32 : 128 } : parseCidr(text);
  if (cidr === undefined) return undefined;
  if (isIpv4(cidr.ip)) return masked(4, BigInt(ipv4ToNumber(cidr.ip)), cidr.length);
  return isIPv6(cidr.ip) ? masked(6, ipv6Bits(cidr.ip), cidr.length) : undefined;
}

/** IPv6 without `::`: one text per prefix, which is all that is asked of it. */
export function formatPrefix({ family, bits, length }: Prefix): string {
  if (family === 4) return formatCidr({ ip: numberToIpv4(Number(bits)), length });
  const groups = Array.from({ length: 8 }, (_, index) => ((bits >> BigInt(112 - 16 * index)) & 0xffffn).toString(16));
  return formatCidr({ ip: groups.join(':'), length });
}

export function prefixContains(outer: Prefix, inner: Prefix): boolean {
  if (outer.family !== inner.family || outer.length > inner.length) return false;
  const behind = BigInt(WIDTH[outer.family] - outer.length);
  return outer.bits >> behind === inner.bits >> behind;
}
