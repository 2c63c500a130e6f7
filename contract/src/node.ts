/** `cilium/state/nodes/v1/<cluster>/<node>` (wire-contract §1.7). Field order is the order of Cilium's struct. */
import { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';
import { EXTENSION_FIELD, extensionSchema } from './extension.ts';
import { decodeJson } from './json.ts';
import { type Cidr, cidrFromGo, formatCidr, isIpAddress, maskToBase64, parseCidr } from './net.ts';

/** Go's net.IPNet as JSON, or from 1.22 on the text form; read both, write the object (wire-contract §12.1). */
const cidrSchema = z
  .union([
    z.string().transform((text, context) => {
      const cidr = parseCidr(text);
      if (cidr === undefined) context.addIssue({ code: 'custom', message: `${JSON.stringify(text)} is no CIDR` });
      return cidr ?? { ip: '', length: 0 };
    }),
    z.looseObject({ IP: z.string(), Mask: z.string() }).transform((object, context) => {
      const cidr = cidrFromGo(object.IP, object.Mask);
      if (cidr === undefined) context.addIssue({ code: 'custom', message: `${JSON.stringify(object)} is no CIDR` });
      return cidr ?? { ip: '', length: 0 };
    }),
  ])
  .nullish()
  .transform((value): Cidr | null => value ?? null);

const text = z
  .string()
  .nullish()
  .transform((value) => value ?? '');
const stringMap = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value) => value ?? null);

const schema = z.looseObject({
  Name: z.string().min(1),
  Cluster: z.string().min(1),
  IPAddresses: z
    .array(z.looseObject({ Type: z.string(), IP: z.string() }))
    .nullish()
    .transform((value) => value ?? []),
  IPv4AllocCIDR: cidrSchema,
  IPv4SecondaryAllocCIDRs: z
    .array(cidrSchema)
    .nullish()
    .transform((value) => value ?? null),
  IPv6AllocCIDR: cidrSchema,
  IPv6SecondaryAllocCIDRs: z
    .array(cidrSchema)
    .nullish()
    .transform((value) => value ?? null),
  IPv4HealthIP: text,
  IPv6HealthIP: text,
  IPv4IngressIP: text,
  IPv6IngressIP: text,
  ClusterID: z.number().int().min(0).default(0),
  Source: text,
  EncryptionKey: z.number().int().min(0).max(255).default(0),
  Labels: stringMap,
  Annotations: stringMap,
  WireguardPubKey: text,
  BootID: text,
  [EXTENSION_FIELD]: extensionSchema.optional(),
});

/** CIDRs are `{ip, length}` here; everything else is as on the wire. Unknown fields are kept. */
export type MeshNode = z.infer<typeof schema>;

function encodeCidr(cidr: Cidr | null): object | null {
  if (cidr === null) return null;
  return { IP: cidr.ip, Mask: maskToBase64(cidr.length, cidr.ip.includes(':') ? 16 : 4) };
}

export function encodeNode(node: MeshNode): string {
  return JSON.stringify({
    ...node,
    IPv4AllocCIDR: encodeCidr(node.IPv4AllocCIDR),
    IPv4SecondaryAllocCIDRs: node.IPv4SecondaryAllocCIDRs?.map(encodeCidr) ?? null,
    IPv6AllocCIDR: encodeCidr(node.IPv6AllocCIDR),
    IPv6SecondaryAllocCIDRs: node.IPv6SecondaryAllocCIDRs?.map(encodeCidr) ?? null,
  });
}

export function decodeNode(value: string): Decoded<MeshNode> {
  return decodeJson('node', value, schema);
}

/** Address types that hold IP addresses; the others hold names. */
const IP_TYPES = new Set(['InternalIP', 'ExternalIP', 'CiliumInternalIP']);

/** A reader's check: name and cluster equal the key, cluster id equals the peer's config, addresses are addresses. */
export function validateNode(
  node: MeshNode,
  expected: { readonly cluster: string; readonly clusterId: number; readonly name: string },
): Decoded<MeshNode> {
  if (node.Cluster !== expected.cluster)
    return reject(`node ${node.Name} says cluster ${JSON.stringify(node.Cluster)}, expected ${expected.cluster}`);
  if (node.Name !== expected.name)
    return reject(`node ${JSON.stringify(node.Name)} lies under the key of node ${expected.name}`);
  if (node.ClusterID !== expected.clusterId)
    return reject(`node ${node.Name} says cluster id ${node.ClusterID}, expected ${expected.clusterId}`);
  const malformed = node.IPAddresses.find((address) => IP_TYPES.has(address.Type) && !isIpAddress(address.IP));
  if (malformed !== undefined)
    return reject(`node ${node.Name} has the malformed ${malformed.Type} ${JSON.stringify(malformed.IP)}`);
  return accept(node);
}

/** The address that tunnels end at: the first InternalIP of the family, as Cilium chooses it. */
export function nodeInternalIp(node: MeshNode, family: 4 | 6 = 4): string | undefined {
  const isFamily = (ip: string) => ip.includes(':') === (family === 6);
  return node.IPAddresses.find((address) => address.Type === 'InternalIP' && isFamily(address.IP))?.IP;
}

/** Every IP address of the node itself, of either family. */
export function nodeAddresses(node: MeshNode): string[] {
  const listed = node.IPAddresses.filter((address) => IP_TYPES.has(address.Type)).map((address) => address.IP);
  const { IPv4HealthIP, IPv6HealthIP, IPv4IngressIP, IPv6IngressIP } = node;
  return [...listed, IPv4HealthIP, IPv6HealthIP, IPv4IngressIP, IPv6IngressIP].filter(isIpAddress);
}

export function nodePodCidrs(node: MeshNode): string[] {
  return [
    node.IPv4AllocCIDR,
    ...(node.IPv4SecondaryAllocCIDRs ?? []),
    node.IPv6AllocCIDR,
    ...(node.IPv6SecondaryAllocCIDRs ?? []),
  ]
    .filter((cidr) => cidr !== null)
    .map(formatCidr);
}

export interface NodeInput {
  readonly name: string;
  readonly cluster: string;
  readonly clusterId: number;
  readonly internalIp: string;
  readonly gatewayIp: string;
  readonly podCidr: string;
  readonly ipv6?:
    | { readonly internalIp?: string | undefined; readonly gatewayIp: string; readonly podCidr: string }
    | undefined;
  readonly labels: Readonly<Record<string, string>>;
}

/** A node as our apiserver exports it. Throws RangeError when a pod CIDR is none (the config schema has checked it). */
export function makeNode(input: NodeInput): MeshNode {
  const { ipv6 } = input;
  const cidrOf = (text: string): Cidr => {
    const cidr = parseCidr(text);
    if (cidr !== undefined) return cidr;
    throw new RangeError(`pod CIDR ${JSON.stringify(text)} of node ${input.name} is no CIDR`);
  };
  return {
    Name: input.name,
    Cluster: input.cluster,
    IPAddresses: [
      { Type: 'InternalIP', IP: input.internalIp },
      { Type: 'CiliumInternalIP', IP: input.gatewayIp },
      ...(ipv6?.internalIp === undefined ? [] : [{ Type: 'InternalIP', IP: ipv6.internalIp }]),
      ...(ipv6 === undefined ? [] : [{ Type: 'CiliumInternalIP', IP: ipv6.gatewayIp }]),
    ],
    IPv4AllocCIDR: cidrOf(input.podCidr),
    IPv4SecondaryAllocCIDRs: null,
    IPv6AllocCIDR: ipv6 === undefined ? null : cidrOf(ipv6.podCidr),
    IPv6SecondaryAllocCIDRs: null,
    IPv4HealthIP: '',
    IPv6HealthIP: '',
    IPv4IngressIP: '',
    IPv6IngressIP: '',
    ClusterID: input.clusterId,
    Source: 'custom-resource',
    EncryptionKey: 0,
    Labels: { ...input.labels },
    Annotations: null,
    WireguardPubKey: '',
    BootID: '',
  };
}
