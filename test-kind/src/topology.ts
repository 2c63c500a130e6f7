/**
 * What a lab consists of, as its author writes it, and the addresses that follow from it. Pure.
 * Every address is derived (cluster id, node index), so that the same topology gives the same network each time.
 */
import {
  clusterIdProblem,
  clusterNameProblem,
  ipv4RangesOverlap,
  ipv4ToNumber,
  MeshError,
  numberToIpv4,
  parseCidr,
} from '@clustermesh/contract';
import { parse } from 'yaml';
import { z } from 'zod';

const NODE_NAME = /^[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?$/;

const ipv4Cidr = (lengths: readonly [number, number]) =>
  z.string().superRefine((text, context) => {
    const cidr = parseCidr(text);
    if (cidr === undefined || cidr.ip.includes(':')) {
      context.addIssue(`${JSON.stringify(text)} is no IPv4 CIDR such as 10.1.0.0/16`);
    } else if (cidr.length < lengths[0] || cidr.length > lengths[1]) {
      context.addIssue(`${text} has prefix length ${cidr.length}, expected ${lengths[0]} to ${lengths[1]}`);
    } else if (networkOf(text) !== ipv4ToNumber(cidr.ip)) {
      context.addIssue(`${text} has host bits set; the network is ${numberToIpv4(networkOf(text))}/${cidr.length}`);
    }
  });

const nodeSchema = z.strictObject({
  name: z.string().regex(NODE_NAME, 'must be a short lower case name of letters, digits and "-"'),
  zone: z.string().min(1).optional(),
});

const clusterSchema = z.strictObject({
  name: z.string().superRefine((name, context) => {
    const problem = clusterNameProblem(name);
    if (problem !== undefined) context.addIssue(problem);
  }),
  // 172.31.<id>.0/24 is the cluster's underlay, which bounds the ids that the lab can build.
  id: z.number().superRefine((id, context) => {
    const problem =
      clusterIdProblem(id, 255) ?? (id > 254 ? `cluster id ${id} is beyond 254, the lab's largest` : undefined);
    if (problem !== undefined) context.addIssue(problem);
  }),
  region: z.string().min(1).optional(),
  zones: z.array(z.string().min(1)).min(1).optional(),
  /** Number of nodes (n1, n2, …) or their names and zones. */
  nodes: z
    .union([
      z.number().int().min(1).max(50),
      z
        .array(z.union([z.string().transform((name) => ({ name })), nodeSchema]))
        .min(1)
        .max(50),
    ])
    .default(2),
  podCIDR: ipv4Cidr([8, 23]).optional(),
  serviceCIDR: ipv4Cidr([8, 28]).optional(),
  defaultGlobalNamespace: z.boolean().default(true),
  /** What peers get of its backends, `export.endpointSlices` of its apiserver; left out: as in any cluster. */
  endpointSlices: z.enum(['services', 'services-and-endpointslices', 'endpointslices-only']).optional(),
  /** How long what it publishes outlives its apiserver, `export.leaseTtlSeconds` there; left out: for ever. */
  exportLeaseSeconds: z.number().int().optional(),
});

const timersSchema = z.strictObject({
  /** How long an agent's status outlives it in etcd. */
  agentLeaseSeconds: z.number().int().min(1).optional(),
  /** How long the apiserver keeps publishing what a node said that is missing from etcd. */
  nodeGraceMs: z.number().int().min(0).optional(),
});

const topologySchema = z.strictObject({
  clusters: z.array(clusterSchema).min(1, 'a topology needs at least one cluster'),
  /** Pods and nodes have an IPv6 address beside the one of IPv4, and services may. */
  ipv6: z.boolean().default(false),
  /** Shortened by tests; what is left out is as in any cluster. */
  timers: timersSchema.optional(),
});

/** The second address family, derived from cluster id and node index as the first is. */
export interface LabNodeIpv6 {
  readonly ip: string;
  readonly podCIDR: string;
  readonly gatewayIP: string;
}

export interface LabNode {
  readonly name: string;
  readonly zone: string;
  readonly ip: string;
  readonly podCIDR: string;
  readonly gatewayIP: string;
  readonly ipv6?: LabNodeIpv6;
}

export interface LabCluster {
  readonly name: string;
  readonly id: number;
  readonly region: string;
  readonly podCIDR: string;
  readonly serviceCIDR: string;
  readonly defaultGlobalNamespace: boolean;
  readonly endpointSlices: z.infer<typeof clusterSchema>['endpointSlices'];
  readonly exportLeaseSeconds: number | undefined;
  /** Address of the control plane's host: etcd listens there. */
  readonly controlPlaneIP: string;
  readonly routerIP: string;
  readonly ipv6?: { readonly routerIP: string; readonly serviceCIDR: string; readonly podCIDR: string };
  readonly nodes: readonly LabNode[];
  readonly timers: LabTimers;
}

export type LabTimers = z.infer<typeof timersSchema>;

export interface Topology {
  readonly clusters: readonly LabCluster[];
}

function networkOf(cidr: string): number {
  const { ip, length } = parseCidr(cidr)!;
  const size = 2 ** (32 - length);
  return Math.floor(ipv4ToNumber(ip) / size) * size;
}

/** The addresses and names that follow from what was written. */
function planCluster(raw: z.infer<typeof clusterSchema>, timers: LabTimers, hasIpv6: boolean): LabCluster {
  const region = raw.region ?? raw.name;
  const zones = raw.zones ?? [`${region}-a`, `${region}-b`];
  const podCIDR = raw.podCIDR ?? `10.${raw.id}.0.0/16`;
  const nodes: readonly { name: string; zone?: string | undefined }[] =
    typeof raw.nodes === 'number'
      ? Array.from({ length: raw.nodes }, (_, index) => ({ name: `n${index + 1}` }))
      : raw.nodes;
  return {
    name: raw.name,
    id: raw.id,
    region,
    podCIDR,
    serviceCIDR: raw.serviceCIDR ?? `10.${(raw.id + 95) % 256}.0.0/16`,
    defaultGlobalNamespace: raw.defaultGlobalNamespace,
    endpointSlices: raw.endpointSlices,
    exportLeaseSeconds: raw.exportLeaseSeconds,
    controlPlaneIP: `172.31.${raw.id}.2`,
    routerIP: `172.31.${raw.id}.1`,
    ...(hasIpv6 ? { ipv6: planIpv6(raw.id) } : {}),
    timers,
    nodes: nodes.map((node, index) => {
      const network = networkOf(podCIDR) + (index + 1) * 256;
      return {
        name: node.name,
        zone: node.zone ?? zones[index % zones.length]!,
        ip: `172.31.${raw.id}.${11 + index}`,
        podCIDR: `${numberToIpv4(network)}/24`,
        gatewayIP: numberToIpv4(network + 1),
        ...(hasIpv6 ? { ipv6: planNodeIpv6(raw.id, index + 1) } : {}),
      };
    }),
  };
}

const planIpv6 = (clusterId: number) => ({
  routerIP: `fd31:${clusterId}::1`,
  serviceCIDR: `fd96:${clusterId}::/112`,
  podCIDR: `fd00:${clusterId}::/32`,
});

/** The same decimal digits as in IPv4, read as hexadecimal ones: easy on the eye, and no two are equal. */
const planNodeIpv6 = (clusterId: number, node: number): LabNodeIpv6 => ({
  ip: `fd31:${clusterId}::${10 + node}`,
  podCIDR: `fd00:${clusterId}:${node}::/64`,
  gatewayIP: `fd00:${clusterId}:${node}::1`,
});

/** A pod's second address ends in the number that its first one ends in. */
export function podIpv6(node: LabNode, ipv4: string): string | undefined {
  return node.ipv6?.gatewayIP.replace(/1$/, String(ipv4ToNumber(ipv4) % 256));
}

/** What no single field can show: names used twice, ranges that overlap, ranges too small. */
function crossProblems(clusters: readonly LabCluster[]): string[] {
  const problems: string[] = [];
  const claims = new Map<string, string>();
  const claim = (what: string, by: string) => {
    const other = claims.get(what);
    if (other === undefined) claims.set(what, by);
    else problems.push(`${what} is used by ${other} and by ${by}`);
  };
  const ranges: { readonly cidr: string; readonly owner: string }[] = [
    { cidr: '172.31.0.0/16', owner: "the lab's underlay" },
  ];
  clusters.forEach((cluster, index) => {
    claim(`cluster name ${cluster.name}`, `clusters.${index}`);
    claim(`cluster id ${cluster.id}`, `clusters.${index} (${cluster.name})`);
    for (const node of cluster.nodes) {
      claim(`node name ${cluster.name}/${node.name}`, `a node of cluster ${cluster.name}`);
      if (node.name === 'cp')
        problems.push(`clusters.${index}.nodes: "cp" names the control plane's host, choose another node name`);
      // Kernel objects join the two with "-": eu-west/n1 and eu/west-n1 would meet.
      claim(`kernel name ${cluster.name}-${node.name}`, `node ${cluster.name}/${node.name}`);
    }
    claim(`kernel name ${cluster.name}-cp`, `the control plane of ${cluster.name}`);
    const capacity = 2 ** (32 - parseCidr(cluster.podCIDR)!.length) / 256 - 1;
    if (cluster.nodes.length > capacity) {
      problems.push(
        `clusters.${index}.podCIDR: ${cluster.podCIDR} has room for ${capacity} nodes of one /24 each, the cluster has ${cluster.nodes.length}`,
      );
    }
    ranges.push(
      { cidr: cluster.podCIDR, owner: `podCIDR of ${cluster.name}` },
      { cidr: cluster.serviceCIDR, owner: `serviceCIDR of ${cluster.name}` },
    );
  });
  ranges.forEach((range, index) => {
    for (const other of ranges.slice(0, index)) {
      // Service addresses are translated at the client and never leave its cluster, so two clusters may share them.
      const bothServices = range.owner.startsWith('serviceCIDR') && other.owner.startsWith('serviceCIDR');
      if (!bothServices && ipv4RangesOverlap(range.cidr, other.cidr))
        problems.push(`${range.owner} (${range.cidr}) overlaps ${other.owner} (${other.cidr})`);
    }
  });
  return problems;
}

/** Parses a topology; throws one MeshError that lists every problem. */
export function parseTopology(text: string, source: string): Topology {
  const fail = (problems: readonly string[]) =>
    new MeshError({
      code: 'invalid-config',
      message: `reading topology ${source}: it is invalid:\n${problems.map((problem) => `  ${problem}`).join('\n')}`,
      hint: 'test-kind/topologies/two-regions.yaml is a complete example',
    });
  let raw: unknown;
  try {
    raw = parse(text);
  } catch (error) {
    throw fail([`(file): ${(error as Error).message}`]);
  }
  const parsed = topologySchema.safeParse(raw);
  if (!parsed.success)
    throw fail(parsed.error.issues.map((issue) => `${issue.path.join('.') || '(file)'}: ${issue.message}`));
  const clusters = parsed.data.clusters.map((cluster) =>
    planCluster(cluster, parsed.data.timers ?? {}, parsed.data.ipv6),
  );
  const problems = crossProblems(clusters);
  if (problems.length > 0) throw fail(problems);
  return { clusters };
}

export function findCluster(topology: Topology, name: string): LabCluster {
  const cluster = topology.clusters.find((candidate) => candidate.name === name);
  if (cluster !== undefined) return cluster;
  const known = topology.clusters.map((candidate) => candidate.name).join(', ');
  throw new MeshError({
    code: 'not-found',
    message: `looking up cluster ${name}: the lab has none of that name`,
    hint: `clusters of this lab: ${known}`,
  });
}

export function findNode(cluster: LabCluster, name: string): LabNode {
  const node = cluster.nodes.find((candidate) => candidate.name === name);
  if (node !== undefined) return node;
  const known = cluster.nodes.map((candidate) => candidate.name).join(', ');
  throw new MeshError({
    code: 'not-found',
    message: `looking up node ${cluster.name}/${name}: the cluster has none of that name`,
    hint: `its nodes: ${known}`,
  });
}
