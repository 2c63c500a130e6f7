/** agent.yaml. Each field's comment is its help text. */
import { type MapName, maps } from '@clustermesh/bpf';
import {
  canonicalCidr,
  canonicalIp,
  clusterIdProblem,
  clusterNameProblem,
  isDnsSubdomain,
  isIpv4,
  type MaxConnectedClusters,
  parseCidr,
} from '@clustermesh/contract';
import { loadConfig } from '@clustermesh/runtime';
import { z } from 'zod';
import { SERVICE_V2 } from './services/choice.ts';

const ipv4 = z.string().refine(isIpv4, { error: 'must be an IPv4 address' });
const ipv6 = z.string().refine((text) => canonicalIp(text) === text && !isIpv4(text), {
  error: 'must be an IPv6 address in its short form, such as fd00:1:1::1',
});
const ipv6Cidr = z
  .string()
  .refine(
    (text) => canonicalCidr(parseCidr(text) ?? { ip: '', length: 0 }) === text && !isIpv4(parseCidr(text)?.ip ?? ''),
    {
      error: 'must be an IPv6 CIDR in its short form, without host bits, such as fd00:1:1::/64',
    },
  );
const ipv4Cidr = z
  .string()
  .refine((text) => isIpv4(parseCidr(text)?.ip ?? ''), { error: 'must be an IPv4 CIDR such as 10.1.1.0/24' });
/** Kinds of maps whose rows come and go: hash, LRU hash, longest prefix. The others have the size that the programs give them. */
const SIZED_TYPES: ReadonlySet<number> = new Set([1, 9, 11]);
const SIZED_MAPS = (Object.keys(maps) as MapName[]).filter((name) => SIZED_TYPES.has(maps[name].type));

const nodeName = z
  .string()
  .refine(isDnsSubdomain, { error: 'must be a node name: lower case letters, digits, "-" and "."' });
const milliseconds = z.number().int().positive();

const schema = z
  .strictObject({
    cluster: z.strictObject({
      /** This cluster's name in the mesh, at most 32 characters. */
      name: z.string(),
      /** This cluster's id, unique in the mesh. */
      id: z.number().int(),
      /** 255 or 511; the same in all clusters, because it decides the ranges of identities. */
      maxConnectedClusters: z.union([z.literal(255), z.literal(511)]).default(255),
    }),
    node: z.strictObject({
      /** This node's name; etcd knows the agent as user `node-<name>`. */
      name: nodeName,
      /** Underlay address: tunnels of other nodes end here. */
      ip: ipv4,
      /** Addresses of the pods of this node. */
      podCIDR: ipv4Cidr,
      /** This node's own address inside its pod CIDR. */
      gatewayIP: ipv4,
      /** IPv6 of pods, beside IPv4. */
      ipv6: z
        .strictObject({
          /** Underlay address, where the underlay has IPv6: packets from it are known to be of this node. */
          ip: ipv6.optional(),
          podCIDR: ipv6Cidr,
          gatewayIP: ipv6,
        })
        .optional(),
      /** Failure domain, for topology-aware decisions of peers. */
      zone: z.string().optional(),
      region: z.string().optional(),
    }),
    policy: z
      .strictObject({
        /** Whether the node itself (probes of its pods) may reach a pod whose policies do not say so; a deny rule still denies. */
        allowHost: z.boolean().default(true),
      })
      .prefault({}),
    etcd: z.strictObject({
      /** This cluster's etcd. */
      endpoints: z.array(z.url({ protocol: /^https?$/, error: 'must be an http(s) URL' })).min(1),
      caFile: z.string().optional(),
      certFile: z.string().optional(),
      keyFile: z.string().optional(),
      /** Which name the server certificate of an address must carry: `[{hostname, ips}]`. */
      hostAliases: z.array(z.strictObject({ hostname: z.string(), ips: z.array(z.string()) })).default([]),
    }),
    /** What is read of remote clusters, and from where. */
    clustermesh: z
      .strictObject({
        /**
         * Directory in the format of Cilium's agents: a file per remote cluster, named as the cluster, with its endpoints and
         * certificate files. Those are read from their own etcds, without the mirror of this cluster's apiserver; a cluster that
         * the mirror has too is read from here.
         */
        configDir: z.string().min(1).optional(),
        /**
         * Backends of services are published as one value per service, as endpoint slices, or both: which is taken where there are
         * both. `prefer-legacy` takes the slices of a service whose one value is behind (it cannot hold more than about 10 000).
         */
        serviceV2: z.enum(SERVICE_V2).default('prefer-legacy'),
      })
      .prefault({}),
    /** Unix socket of the agent's own interface (EndpointAdd …, GetStatus, DumpMap). */
    socket: z.string().min(1),
    /** Directory for what must survive a restart and the loss of etcd: endpoints with their labels and identities. */
    stateDir: z.string().min(1),
    datapath: z.strictObject({
      /** A mounted bpffs; pins go to `<bpffs>/clustermesh/<cluster>/<node>/`. */
      bpffs: z.string().min(1),
      /** cgroup v2 directory of this node's pods: sockets made in it get service load balancing. */
      cgroup: z.string().min(1),
      /** VXLAN device, made if absent. */
      vxlanDevice: z.string().min(1).max(15).default('cm_vxlan'),
      /** How many packets are shown as flow events (`clustermesh-agent monitor`), per CPU. */
      flowEvents: z
        .strictObject({
          /** Events a second; what is over it is counted, not shown. */
          perSecond: z.number().int().min(1).max(100_000).default(500),
          /** What was not used of them, up to so many, may be shown later. */
          burst: z.number().int().min(1).max(100_000).default(1_000),
        })
        .prefault({}),
      /**
       * Devices on which other hosts are reached. What arrives there for pods without encapsulation is refused, unless its source
       * belongs to a cluster that is reached directly, or to none. Needed for `direct`, and for services to be reached from outside of
       * the cluster: NodePorts, external and load balancers' addresses.
       */
      uplinks: z.array(z.string().min(1).max(15)).default([]),
      /**
       * Lets the uplinks' drivers send on what other hosts send to services whose backends are other nodes' (XDP), before the packet
       * costs anything else. `native`: in the driver. `generic`: after it, for trying it out; no faster than without. `auto`: natively
       * where the driver can, but not on veths, whose other ends must run XDP too. Whatever cannot be had is done later, by tc.
       */
      xdp: z.enum(['off', 'generic', 'native', 'auto']).default('off'),
      /** How services are served to other hosts, at the uplinks. */
      nodePort: z
        .strictObject({
          /**
           * `snat`: a backend on another node sees this node, and answers it. `dsr`: it sees the client, and its node answers the client
           * from the service's address; that node needs `uplinks` too, and a network that lets it.
           */
          mode: z.enum(['snat', 'dsr']).default('snat'),
        })
        .prefault({}),
      /** How pods of other nodes are reached; both sides must be set alike. */
      routing: z
        .strictObject({
          /** `tunnel`: VXLAN. `direct`: by the host's routes; those to nodes on its links are made, others are left to the network. */
          mode: z.enum(['tunnel', 'direct']).default('tunnel'),
          /** Clusters for which another mode holds, by name; this one included. */
          clusters: z.record(z.string(), z.enum(['tunnel', 'direct'])).default({}),
        })
        .prefault({}),
      /**
       * Lets what the node itself sends (probes, pods of the host's network) reach remote pods by the tunnel: a route for each of
       * their CIDRs. The kernel takes some milliseconds for each once there are thousands, so meshes of that size leave it out.
       */
      hostToRemotePods: z.boolean().default(false),
      /** Rows per map, by its name (`cm_ipcache`); maps that are there are resized at the next start. Default: see bpf/README.md. */
      mapSizes: z.partialRecord(z.enum(SIZED_MAPS), z.number().int().positive()).optional(),
    }),
    /** Where /healthz, /readyz and /metrics are served. */
    http: z
      .strictObject({
        host: z.string().default('127.0.0.1'),
        port: z.number().int().min(0).max(65535).default(9879),
        /** On another host than loopback: the bearer token without which only /healthz is answered. */
        tokenFile: z.string().min(1).optional(),
      })
      .prefault({}),
    timers: z
      .strictObject({
        /** Least time between two passes over the kernel's tables: a burst of changes becomes one pass. */
        minPassIntervalMs: milliseconds.default(5),
        /** How often the kernel's tables are read whole and compared. */
        checkIntervalMs: milliseconds.default(60_000),
        /** How long EndpointAdd waits before it answers "waiting". */
        endpointAddTimeoutMs: milliseconds.default(20_000),
        /** Least time between two publications of the agent's status. */
        statusIntervalMs: milliseconds.default(500),
        /** A watch of a cluster's family that shows no sign of life for longer is named in the status. */
        staleAfterMs: milliseconds.default(60_000),
        /** How long the agent's status stays in etcd when the agent is gone. */
        leaseSeconds: z.number().int().min(1).default(30),
      })
      .prefault({}),
  })
  .superRefine((config, context) => {
    const { routing, uplinks } = config.datapath;
    const isAnyDirect = [routing.mode, ...Object.values(routing.clusters)].includes('direct');
    if (isAnyDirect && uplinks.length === 0)
      context.addIssue({ code: 'custom', path: ['datapath', 'uplinks'], message: 'is needed for direct routing' });
    const max: MaxConnectedClusters = config.cluster.maxConnectedClusters;
    const nameProblem = clusterNameProblem(config.cluster.name);
    if (nameProblem !== undefined)
      context.addIssue({ code: 'custom', path: ['cluster', 'name'], message: nameProblem });
    const idProblem = clusterIdProblem(config.cluster.id, max);
    if (idProblem !== undefined) context.addIssue({ code: 'custom', path: ['cluster', 'id'], message: idProblem });
    if (config.etcd.endpoints.some((endpoint) => endpoint.startsWith('https:'))) {
      for (const field of ['caFile', 'certFile', 'keyFile'] as const) {
        if (config.etcd[field] === undefined)
          context.addIssue({ code: 'custom', path: ['etcd', field], message: 'is needed for https endpoints' });
      }
    }
  });

export type AgentConfig = z.infer<typeof schema>;

export function loadAgentConfig(path: string): Readonly<AgentConfig> {
  return loadConfig(path, schema);
}

/** For tests: the same checks on a value. */
export function parseAgentConfig(raw: unknown): AgentConfig {
  return schema.parse(raw);
}
