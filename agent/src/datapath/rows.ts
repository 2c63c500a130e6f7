/** Rows of the agent to rows of the kernel and back. Pure. */
import { type CmEndpoint, type CmFamily, type CmPrefix, type CmRemote, cmAddr } from '@clustermesh/bpf';
import {
  type Cidr,
  canonicalCidr,
  canonicalIp,
  formatCidr,
  isIpv4,
  MeshError,
  parseCidr,
  readIpAddress,
} from '@clustermesh/contract';
import type { Backend, Frontend, IpcacheRow, Protocol } from './types.ts';

/** How an address that there is none of stands in a map: 16 zeros. */
export const NO_ADDRESS = '::';

/**
 * An address as maps have it. Only the one form of an address is taken: a row that was listed back in another would look like
 * another row.
 */
export function toAddr(ip: string): string {
  const form = canonicalIp(ip);
  if (form === ip && ip !== NO_ADDRESS) return ip;
  throw new MeshError({
    code: 'invalid-argument',
    message: `programming the address '${ip}': ${form === undefined || form === NO_ADDRESS ? 'not an IP address of a host' : `to be written ${form}`}`,
  });
}

const bitsOf = (ip: string): 32 | 128 => (isIpv4(ip) ? 32 : 128);

export function toCidr(text: string): Cidr {
  const cidr = parseCidr(text);
  if (cidr !== undefined && canonicalIp(cidr.ip) === cidr.ip) return cidr;
  throw new MeshError({
    code: 'invalid-argument',
    message: `programming the prefix '${text}': not an IP prefix, or not in its canonical form`,
  });
}

/** By its length alone: asked of every row several times. What else may be wrong with the text is said where it is encoded. */
export const isHost = (prefix: string): boolean => prefix.endsWith(prefix.includes(':') ? '/128' : '/32');

/** The address of a prefix that is a host. */
export const hostOf = (prefix: string): string => toAddr(prefix.slice(0, prefix.lastIndexOf('/')));

export const hostPrefix = (ip: string): string => `${ip}/${bitsOf(ip)}`;

/** Bits of an LPM key that stand before those of the family's own prefix (CM_IPV4_PREFIX). */
const baseOf = (ip: string): number => 128 - bitsOf(ip);

export function toPrefix(text: string): CmPrefix {
  const { ip, length } = toCidr(text);
  if (canonicalCidr({ ip, length }) !== formatCidr({ ip, length })) {
    throw new MeshError({
      code: 'invalid-argument',
      message: `programming the prefix ${text}: bits are set behind its length`,
    });
  }
  return { prefixLen: baseOf(ip) + length, net: ip };
}

/** A v4-mapped net shorter than 96 bits is an IPv6 prefix that ends before the IPv4 part begins: not of our making. */
export const fromPrefix = ({ prefixLen, net }: CmPrefix): string => `${net}/${prefixLen - baseOf(net)}`;

/** 16 bytes whose first bits are set: `length` of the family of `ip`, and all before them. */
function maskOf(ip: string, length: number): Uint8Array {
  const ones = baseOf(ip) + length;
  return Uint8Array.from({ length: 16 }, (_, i) => 0xff00 >> Math.max(0, Math.min(8, ones - 8 * i)));
}

function maskedBy(ip: string, length: number): string {
  const mask = maskOf(ip, length);
  return readIpAddress(cmAddr.encode(ip).map((byte, i) => byte & mask[i]!));
}

/** What the programs know of this node in one family; absent: nothing. */
export function toFamily(of?: { nodeIp?: string | undefined; gatewayIp: string; podCidr: string }): CmFamily {
  if (of === undefined) return { nodeIp: NO_ADDRESS, gatewayIp: NO_ADDRESS, podNet: NO_ADDRESS, podMask: NO_ADDRESS };
  const { ip, length } = toCidr(of.podCidr);
  return {
    nodeIp: of.nodeIp === undefined ? NO_ADDRESS : toAddr(of.nodeIp),
    gatewayIp: toAddr(of.gatewayIp),
    podNet: maskedBy(ip, length),
    podMask: readIpAddress(maskOf(ip, length)),
  };
}

/** CM_REMOTE_DIRECT of bpf/lib/layout.h. */
const REMOTE_DIRECT = 1;

export const toRemote = (row: IpcacheRow): CmRemote => ({
  identity: row.identity,
  node: row.tunnelEndpoint === null ? NO_ADDRESS : toAddr(row.tunnelEndpoint),
  clusterId: row.clusterId,
  encryptKey: row.encryptKey,
  flags: row.direct ? REMOTE_DIRECT : 0,
});

export const fromRemote = (prefix: string, value: CmRemote): IpcacheRow => ({
  prefix,
  identity: value.identity,
  clusterId: value.clusterId,
  tunnelEndpoint: value.node === NO_ADDRESS ? null : value.node,
  encryptKey: value.encryptKey,
  ...(value.flags & REMOTE_DIRECT ? { direct: true as const } : {}),
});

export function toMac(text: string): Uint8Array {
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(text)) {
    throw new MeshError({
      code: 'invalid-argument',
      message: `programming the MAC address '${text}': not of the form 02:00:…`,
    });
  }
  return Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
}

export const fromMac = (mac: CmEndpoint['podMac']): string =>
  Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');

const PROTOCOL_NUMBER: Record<Protocol, number> = { TCP: 6, UDP: 17, SCTP: 132 };

export const toProtocol = (name: Protocol): number => PROTOCOL_NUMBER[name];
export const fromProtocol = (number: number): string =>
  (({ 1: 'ICMP', 6: 'TCP', 17: 'UDP', 58: 'ICMPv6', 132: 'SCTP' }) as Record<number, string>)[number] ?? String(number);

/** CM_SCOPE_OUTSIDE of bpf/lib/layout.h. */
const SCOPE_OUTSIDE = 1;

export const toScope = (scope: Frontend['scope']): number => (scope === undefined ? 0 : SCOPE_OUTSIDE);
/** Of a scope that is not of our making, as of 0: its row is told apart by its key. */
export const fromScope = (scope: number): Pick<Frontend, 'scope'> =>
  scope === SCOPE_OUTSIDE ? { scope: 'outside' } : {};

/** What makes two backends the same one, of whatever services. */
export const backendKey = (b: Backend, protocol: string): string => `${b.clusterId}/${b.ip}:${b.port}/${protocol}`;

export function checkFrontend(f: Frontend, backends: readonly Backend[]): void {
  toAddr(f.ip);
  if (PROTOCOL_NUMBER[f.protocol] === undefined) {
    throw new MeshError({
      code: 'unsupported',
      message: `programming the service ${f.ip}:${f.port}: protocol ${f.protocol} is none of TCP, UDP and SCTP`,
    });
  }
  const elsewhere = f.protocol === 'SCTP' ? backends.find(({ port }) => port !== f.port) : undefined;
  if (elsewhere !== undefined) {
    throw new MeshError({
      code: 'unsupported',
      message: `programming the service ${f.ip}:${f.port}/SCTP: backend ${elsewhere.ip} has port ${elsewhere.port}, and SCTP ports cannot be translated`,
      hint: 'Let port and targetPort of the service be the same.',
    });
  }
}
