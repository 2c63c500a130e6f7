/** apiserver.yaml. A field's comment is its help text; every problem of a file is reported at once, with its field. */
import { isIP } from 'node:net';
import { join } from 'node:path';
import { clusterIdProblem, clusterNameProblem, isDnsSubdomain, isIpv4, parseCidr } from '@clustermesh/contract';
import { z } from 'zod';
import { PEER_ACCESS } from './bootstrap/plan.ts';
import { AUTH_MODES } from './gate/config.ts';
import { redisSchema } from './operations/redis-config.ts';
import { podRangeProblem } from './pod-ranges.ts';

const path = z.string().min(1);

const ipv4Cidr = z.string().refine((text) => {
  const cidr = parseCidr(text);
  return cidr !== undefined && isIpv4(cidr.ip) && cidr.length >= 8 && cidr.length <= 30;
}, 'is no IPv4 CIDR with a length of 8 to 30');

const ipv6Cidr = z.string().refine((text) => {
  const cidr = parseCidr(text);
  return cidr !== undefined && !isIpv4(cidr.ip) && cidr.length >= 108 && cidr.length <= 124;
}, 'is no IPv6 CIDR with a length of 108 to 124');

const ipv6PodCidr = z.string().refine((text) => {
  const cidr = parseCidr(text);
  return cidr !== undefined && podRangeProblem(cidr, 6) === undefined && cidr.length <= 120;
}, 'is no IPv6 CIDR with a length of 32 to 120 that can hold pods');

const endpoint = z.string().refine((text) => {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  return url !== undefined && (url.protocol === 'https:' || url.protocol === 'http:') && url.hostname !== '';
}, 'is no http(s)://host:port URL');

const hostAndPort = z
  .string()
  .refine(
    (text) => /^(\[[\da-fA-F:]+\]|[\w.-]+):\d{1,5}$/.test(text),
    'is not of the form host:port or [address]:port',
  );

const hostAlias = z.strictObject({
  /** Name in an endpoint's URL. */
  hostname: z.string().min(1),
  /** Addresses to connect to in its place. */
  ips: z.array(z.string().refine((ip) => isIP(ip) !== 0, 'is no IP address')).min(1),
});

const clusterSchema = z
  .strictObject({
    /** Unique in the mesh, at most 32 characters. */
    name: z.string(),
    /** Unique in the mesh, 1 … maxConnectedClusters; part of every identity number, fixed for life. */
    id: z.number().int(),
    /** 255 or 511; all clusters of a mesh must agree. */
    maxConnectedClusters: z.union([z.literal(255), z.literal(511)]).default(255),
    /** Shown to operators and peers; empty when there is none. */
    region: z.string().default(''),
    /** ClusterIPs of services without an explicit one come from here. */
    serviceCIDR: ipv4Cidr,
    /** The same for services that ask for IPv6 (`ipFamilies`, `ipFamilyPolicy`); without it they get none. */
    serviceCIDRv6: ipv6Cidr.optional(),
    /** All pods of this cluster; told to peers at connect, so that overlaps are found. */
    podCIDR: ipv4Cidr,
    /** The same for their IPv6 addresses. Without it, or without that of a peer, IPv6 of pods does not pass between the two. */
    podCIDRv6: ipv6PodCidr.default(''),
    /** Whether namespaces without the clustermesh.cilium.io/global annotation take part in the mesh. */
    defaultGlobalNamespace: z.boolean().default(true),
    /** Whether selectors of network policies without a cluster label mean this cluster only, as in Cilium since 1.18. */
    policyDefaultLocalCluster: z.boolean().default(true),
  })
  .superRefine((cluster, context) => {
    const nameProblem = clusterNameProblem(cluster.name);
    if (nameProblem !== undefined) context.addIssue({ code: 'custom', path: ['name'], message: nameProblem });
    const idProblem = clusterIdProblem(cluster.id, cluster.maxConnectedClusters);
    if (idProblem !== undefined) context.addIssue({ code: 'custom', path: ['id'], message: idProblem });
  });

const timersSchema = z.strictObject({
  /** Interval of `cilium/.heartbeat`; readers ask for at least one a minute. */
  heartbeatMs: z.number().int().min(100).max(60_000).default(10_000),
  /** `clustermesh/peers/<peer>` is written at least this often (and on change, at most once a second). */
  peerStatusMs: z.number().int().min(100).default(10_000),
  /** How long the last known rows of a node stay exported after its own complete list went missing (a wiped etcd). */
  nodeGraceMs: z.number().int().min(0).default(60_000),
  /** How long services stay published when `export.endpointSlices` leaves them out: peers look for what is published every 10 s. */
  withdrawWaitMs: z.number().int().min(0).default(30_000),
  /** How long a removed peer's data waits for the live agents to let go of it. */
  drainWaitMs: z.number().int().min(0).default(10_000),
  /** The same for readers that cannot say that they have (`mirror.foreignReaders`); less than a disconnect waits, which is 5 min. */
  foreignDrainWaitMs: z.number().int().min(0).max(240_000).default(180_000),
  /** How often each peer is asked for its CAs, and for a new certificate when ours is due there. */
  peerRenewalMs: z.number().int().min(100).default(60_000),
});

const exportSchema = z.strictObject({
  /**
   * What peers get of this cluster's backends: one value per service, one per slice, or both. Both is what readers of every version
   * take; a service of about 10 000 backends fits into slices only.
   */
  endpointSlices: z
    .enum(['services', 'services-and-endpointslices', 'endpointslices-only'])
    .default('services-and-endpointslices'),
  /**
   * Absent: what is published outlives its apiserver. Otherwise it goes this long after it (as Cilium's --kvstore-lease-ttl, 900 there),
   * for an etcd that is rebuilt with every start of its apiserver. Never before the heartbeat, by whose end readers know what to keep.
   */
  leaseTtlSeconds: z.number().int().min(360).max(86_400).optional(),
});

const peersSchema = z.strictObject({
  /** Objects that are taken of one peer; with more it is followed no further, and what is there stays. */
  maxKeys: z.number().int().min(1).default(500_000),
  /** The same in bytes of keys and values. */
  maxBytes: z
    .number()
    .int()
    .min(1)
    .default(512 * 1024 * 1024),
  /** How often a peer beyond its limits is tried again. */
  retryMs: z.number().int().min(100).default(30_000),
});

const mirrorSchema = z.strictObject({
  /**
   * Whether Cilium's own agents, or anything else but clustermesh-agent, read this cluster's etcd (user `local-<cluster>`). etcd does
   * not tell who is connected, and they do not tell when they have let go of a removed peer: its data then goes 3 minutes later.
   */
  foreignReaders: z.boolean().default(false),
});

const ratesSchema = z.strictObject({
  /**
   * Keys a second that are written of one peer, and of this cluster itself: one in turmoil must leave this etcd to the others.
   * (Cilium's etcd.qps is 20 by default: at that, the restart of 10 000 pods is eight minutes of writing.)
   */
  keysPerSecond: z.number().int().min(1).default(5_000),
  /** The same until all that is there at the beginning has been written once (as Cilium's etcd.bootstrapQps). */
  bootstrapKeysPerSecond: z.number().int().min(1).default(50_000),
});

const electionSchema = z.strictObject({
  /** How long a replica that died without a word is waited for before another one writes in its place. */
  ttlSeconds: z.number().int().min(1).max(60).default(10),
});

export const configSchema = z.strictObject({
  cluster: clusterSchema,
  /** This cluster's own etcd, as user admin-<cluster>. */
  etcd: z.strictObject({
    endpoints: z.array(endpoint).min(1),
    hostAliases: z.array(hostAlias).default([]),
    caFile: path.optional(),
    certFile: path.optional(),
    keyFile: path.optional(),
  }),
  /** How peers reach this cluster's etcd. */
  advertise: z.strictObject({
    endpoints: z.array(endpoint).min(1),
    hostAliases: z.array(hostAlias).default([]),
    /** How they reach the operator interface (`admin.listen`): written into invitations. */
    admin: z.array(hostAndPort).default([]),
  }),
  /** The cluster's CA (ca.crt, ca.key): signs peers' client certificates. */
  pki: z.strictObject({ dir: path }),
  /** Watched: Kubernetes YAML of this cluster (Namespace, Service, EndpointSlice). */
  manifestsDir: path,
  /** Watched: one file per peer, wire-contract §5.1. */
  peersDir: path,
  /** Watched: the etcd users of peers (users.yaml). */
  usersFile: path,
  /** Which common names peers log in with: wire-contract §7. The gate has the same setting. */
  authMode: z.enum(AUTH_MODES).default('migration'),
  /**
   * `gate`: peers come through clustermesh-gate, and a revoked one is cut off at once. `etcd`: they connect to etcd itself; a revoked
   * one gets in no more, but what it watches already it sees until etcd is restarted.
   */
  peerAccess: z.enum(PEER_ACCESS).default('etcd'),
  /** What must outlive a restart: allocated ClusterIPs, known nodes, last good manifests. */
  stateDir: path,
  /** Operations only. */
  redis: redisSchema,
  admin: z.strictObject({
    /** Unix socket of the operator interface; whoever may open it may do everything. */
    socket: path,
    /** The same over TLS, by client certificate and role (docs/security.md). Absent: not at all. */
    listen: z.strictObject({ host: z.string().default('::'), port: z.number().int().min(0).max(65535) }).optional(),
    /** Who asked for what, one JSON object per line. Default: audit.log in stateDir. */
    auditFile: path.optional(),
  }),
  /** Health and metrics. */
  http: z.strictObject({
    host: z.string().default('127.0.0.1'),
    port: z.number().int().min(0).max(65535),
    /** On another host than loopback: the bearer token without which only /healthz is answered. */
    tokenFile: path.optional(),
  }),
  /** Nodes whose agents get an etcd user `node-<node>`. */
  nodes: z.array(z.string().refine((name) => isDnsSubdomain(name), 'is no node name (DNS subdomain)')).default([]),
  timers: timersSchema.prefault({}),
  export: exportSchema.prefault({}),
  peers: peersSchema.prefault({}),
  mirror: mirrorSchema.prefault({}),
  rates: ratesSchema.prefault({}),
  /** Of the replicas that share one etcd, one writes. */
  election: electionSchema.prefault({}),
});

export type Config = Readonly<z.infer<typeof configSchema>>;

/** Names below stateDir, in one place so that they cannot collide. */
export function stateFiles(stateDir: string) {
  return {
    clusterIps: join(stateDir, 'cluster-ips.json'),
    knownNodes: join(stateDir, 'known-nodes.json'),
    replica: join(stateDir, 'replica-id'),
    lock: join(stateDir, 'lock'),
    audit: join(stateDir, 'audit.log'),
    lastGoodDir: join(stateDir, 'last-good-manifests'),
  };
}
