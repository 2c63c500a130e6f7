/** Rows of the agent to rows of the kernel and back. Pure. */
import type { CmAddr, CmEndpoint, CmRemote } from '@clustermesh/bpf';
import { ipv4ToNumber, isIpv4, MeshError, numberToIpv4, parseCidr } from '@clustermesh/contract';
import type { Backend, Frontend, IpcacheRow, Protocol } from './types.ts';

const FAMILY_IPV4 = 4;
/** Bits of an LPM key that stand before the address (CM_LPM_BASE). */
export const LPM_BASE = 32;

export function toIpv4(ip: string): number {
  if (isIpv4(ip)) return ipv4ToNumber(ip);
  throw new MeshError({ code: 'invalid-argument', message: `programming the address '${ip}': not an IPv4 address` });
}

export const toAddr = (ip: string): CmAddr => ({ clusterId: 0, family: FAMILY_IPV4, addr: [toIpv4(ip)] });
export const fromAddr = (key: CmAddr): string => numberToIpv4(key.addr[0] ?? 0);

export interface Ipv4Prefix {
  ip: string;
  length: number;
}

export function toPrefix(text: string): Ipv4Prefix {
  const cidr = parseCidr(text);
  if (cidr !== undefined && isIpv4(cidr.ip)) return cidr;
  throw new MeshError({ code: 'invalid-argument', message: `programming the prefix '${text}': not an IPv4 prefix` });
}

export const maskOf = (length: number): number => (length === 0 ? 0 : (0xffffffff << (32 - length)) >>> 0);

export const toRemote = (row: IpcacheRow): CmRemote => ({
  identity: row.identity,
  tunnel: row.tunnelEndpoint === null ? 0 : toIpv4(row.tunnelEndpoint),
  clusterId: row.clusterId,
  encryptKey: row.encryptKey,
  flags: 0,
});

export const fromRemote = (prefix: string, value: CmRemote): IpcacheRow => ({
  prefix,
  identity: value.identity,
  clusterId: value.clusterId,
  tunnelEndpoint: value.tunnel === 0 ? null : numberToIpv4(value.tunnel),
  encryptKey: value.encryptKey,
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

const PROTOCOL_NUMBER: Record<Protocol, number> = { TCP: 6, UDP: 17 };

export const toProtocol = (name: Protocol): number => PROTOCOL_NUMBER[name];
export const fromProtocol = (number: number): string =>
  (({ 1: 'ICMP', 6: 'TCP', 17: 'UDP' }) as Record<number, string>)[number] ?? String(number);

/** What makes two backends the same one, of whatever services. */
export const backendKey = (b: Backend, protocol: string): string => `${b.clusterId}/${b.ip}:${b.port}/${protocol}`;

export function checkFrontend(f: Frontend): void {
  toIpv4(f.ip);
  if (PROTOCOL_NUMBER[f.protocol] === undefined) {
    throw new MeshError({
      code: 'unsupported',
      message: `programming the service ${f.ip}:${f.port}: protocol ${f.protocol} is neither TCP nor UDP`,
    });
  }
}
