/** `cilium/state/ip/v1/default/<ip>[/<len>]`: IP → identity (wire-contract §1.6). */
import { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';
import { EXTENSION_FIELD, extensionSchema } from './extension.ts';
import { isIdentityOf, isReservedIdentity, RESERVED_IDENTITY } from './identity.ts';
import { decodeJson } from './json.ts';
import { type NamedPort, namedPortSchema } from './named-ports.ts';
import type { MaxConnectedClusters } from './names.ts';
import { cidrFromGo, formatCidr, isIpAddress } from './net.ts';

const schema = z.looseObject({
  IP: z.string().min(1),
  /** base64 of Go's net.IPMask; null or absent for a host. */
  Mask: z.string().nullish(),
  HostIP: z.string().default(''),
  ID: z.number().int().min(0).max(0xffffffff).default(0),
  /** Encryption key index; 0 none, 255 WireGuard. */
  Key: z.number().int().min(0).max(255).default(0),
  Metadata: z.string().default(''),
  K8sNamespace: z.string().optional(),
  K8sPodName: z.string().optional(),
  K8sServiceAccount: z.string().optional(),
  NamedPorts: z.array(z.looseObject({ Name: z.string(), Port: z.number(), Protocol: z.string() })).nullish(),
  [EXTENSION_FIELD]: extensionSchema.optional(),
});

export type IpEntry = z.infer<typeof schema>;

export function encodeIpEntry(entry: IpEntry): string {
  return JSON.stringify(entry);
}

export function decodeIpEntry(text: string): Decoded<IpEntry> {
  return decodeJson('ip entry', text, schema);
}

/** What is no named port is not one: the entry's address counts all the same. */
export function namedPortsOfEntry({ NamedPorts }: Pick<IpEntry, 'NamedPorts'>): NamedPort[] {
  return (NamedPorts ?? []).flatMap(({ Name: name, Port: port, Protocol: protocol }) => {
    const parsed = namedPortSchema.safeParse({ name, port, protocol: protocol.toUpperCase() });
    return parsed.success ? [parsed.data] : [];
  });
}

/** The text under which the entry lies: `<ip>`, or `<ip>/<len>` with a mask; undefined when either is malformed. */
export function ipEntryName(entry: Pick<IpEntry, 'IP' | 'Mask'>): string | undefined {
  if (!isIpAddress(entry.IP)) return undefined;
  if (entry.Mask === undefined || entry.Mask === null) return entry.IP;
  const cidr = cidrFromGo(entry.IP, entry.Mask);
  return cidr === undefined ? undefined : formatCidr(cidr);
}

export interface IpExpectation {
  readonly cluster: string;
  readonly clusterId: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
  /** The key's name behind its prefix. */
  readonly name: string;
}

/**
 * A reader's check: the key names the entry's own address, and its identity is reserved or in the peer's range.
 * A peer's host (1) is a remote-node (6) here.
 */
export function validateIpEntry(entry: IpEntry, expected: IpExpectation): Decoded<IpEntry> {
  const name = ipEntryName(entry);
  if (name === undefined)
    return reject(
      `ip entry has the malformed address ${JSON.stringify(entry.IP)} or mask ${JSON.stringify(entry.Mask)}`,
    );
  if (name !== expected.name) return reject(`ip entry ${name} lies under the key of ${expected.name}`);
  if (entry.HostIP !== '' && !isIpAddress(entry.HostIP))
    return reject(`ip entry ${name} has the malformed HostIP ${JSON.stringify(entry.HostIP)}`);
  if (isReservedIdentity(entry.ID))
    return accept(entry.ID === RESERVED_IDENTITY.host ? { ...entry, ID: RESERVED_IDENTITY.remoteNode } : entry);
  if (!isIdentityOf(entry.ID, expected.clusterId, expected.maxConnectedClusters)) {
    return reject(
      `ip entry ${name} has identity ${entry.ID}, which is not in the range of cluster ${expected.cluster} (id ${expected.clusterId})`,
    );
  }
  return accept(entry);
}
