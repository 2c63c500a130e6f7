/**
 * What the agent core and the datapath say to each other: desired rows in, a status per row out.
 * Rows are plain immutable values; each table names its rows by one string key.
 */
import type { MeshError } from '@clustermesh/contract';
import type { PolicyRow, PolicyStateRow } from '../policy/types.ts';
import type { EventSource } from './events.ts';
import type { XdpSetting } from './xdp.ts';

/** SCTP: to the same port only, since its checksum covers ports and cannot be mended in place. */
export type Protocol = 'TCP' | 'UDP' | 'SCTP';

export interface DatapathConfig {
  clusterId: number;
  clusterName: string;
  /** Bits of an identity below the cluster id: 16 for 255 clusters, 15 for 511. */
  identityShift: 16 | 15;
  nodeName: string;
  /** Underlay address of this node: what peers name as tunnel endpoint. */
  nodeIp: string;
  /** This node's own address inside its pod CIDR (CiliumInternalIP); source of generated ICMP errors. */
  gatewayIp: string;
  podCidr: string;
  /** IPv6 beside it; absent: pods have none. `nodeIp`: an underlay address, if there is one. */
  ipv6?: { nodeIp?: string; gatewayIp: string; podCidr: string };
  /** Bytes of an IP packet on the underlay; default: the MTU of the device that has `nodeIp`. 0: not to be watched. */
  underlayMtu?: number;
  /** A mounted bpffs; pins go to `<bpffs>/clustermesh/<cluster>/<node>/`. */
  bpffs: string;
  /** cgroup v2 directory whose processes get socket load balancing. */
  cgroup: string;
  /** Collect-metadata VXLAN device; made if absent. */
  vxlanDevice: string;
  /** Devices on which other hosts are reached: what comes in there for pods without encapsulation, or for services, is looked at. Default: none. */
  uplinks?: readonly string[];
  /** Services at the uplinks' drivers. `auto`: natively, where the driver can, but for veths. Default: off. */
  xdp?: XdpSetting;
  /** How another node's pods are reached by services from outside: `dsr`: they see the client, and their node answers it. Default: `snat`. */
  nodePortMode?: 'snat' | 'dsr';
  /** What the node itself sends reaches remote pods by the tunnel too. Default: false. */
  hostToRemotePods?: boolean;
  /** Rows a map may hold, by map name; a pinned map of another size is resized at the next start, with its rows. */
  mapSizes?: Record<string, number>;
}

/** The outcome of one row: `error` is absent when the kernel holds what was asked for. */
export interface OpResult {
  key: string;
  error?: MeshError;
}

/** One table of the kernel. Every op is idempotent; removing what is absent succeeds. */
export interface MapOps<Row> {
  /** What the kernel holds now, by row key. */
  list(): Promise<Map<string, Row>>;
  /**
   * The same row by row, in slices: `visit` sees what the kernel holds at that moment, and updates may go on in between. Tables
   * whose rows are made of several maps have none.
   */
  scan?(visit: (key: string, row: Row) => void): Promise<void>;
  /** As list(), but for looking only: nothing is mended or remembered by it. Absent where list() is no more than that. */
  read?(): Promise<Map<string, Row>>;
  /** One result per row, in order. A row that does not fit leaves the others unaffected. */
  update(rows: Row[]): Promise<OpResult[]>;
  remove(keys: string[]): Promise<OpResult[]>;
}

/** Key: the prefix, always with its length (`10.1.1.5/32`, `0.0.0.0/0`). */
export interface IpcacheRow {
  prefix: string;
  identity: number;
  clusterId: number;
  /** The node that it lies behind, which it is encapsulated to; null: behind none, or this one. */
  tunnelEndpoint: string | null;
  /** Reached by the host's routes instead of the tunnel. Absent: no. */
  direct?: true;
  encryptKey: number;
  /** Only in what scan() and read() show: the host's route to it, which is not as the row needs it (`missing`: there is none). */
  route?: string;
}

/** Key: `ip`. */
export interface EndpointRow {
  ip: string;
  /** Host end of the pod's veth, in the agent's network namespace. Listed as '' if it, or the programs on it, are gone. */
  interface: string;
  podMac: string;
  hostMac: string;
  identity: number;
  endpointId: number;
}

/** Key: `ip`. Only nodes named here may send us encapsulated traffic. */
export interface NodeRow {
  ip: string;
  clusterId: number;
  nodeId: number;
}

export interface Frontend {
  ip: string;
  port: number;
  protocol: Protocol;
  /** Who is served by it: what arrives at the uplinks from other hosts. Absent: the node's own sockets and pods. */
  scope?: 'outside';
}

export interface Backend {
  ip: string;
  port: number;
  clusterId: number;
  /** Share of new connections, relative to the others: an integer, 0 … 2^31-1. Default 1; 0: none. */
  weight?: number;
}

/** Key: `serviceKey(frontend)`. No backends: known, and refused at once. */
export interface ServiceRow {
  frontend: Frontend;
  /** Order is that of the slots; pass them sorted (cluster id, address, port) so that nodes agree. */
  backends: Backend[];
  /** Backends that get no new connections but keep those that they have. Default: none. */
  draining?: Backend[];
  /** Of `SERVICE_FLAG`. */
  flags: number;
  /** A client keeps its backend for so many seconds after its last use. Default: no affinity. */
  affinitySeconds?: number;
}

export const SERVICE_FLAG = {
  /** The flow's hash decides on the backend, on all nodes alike, and few flows move when backends change. */
  maglev: 1,
} as const;

/** Views that join several maps, or say what numbers mean; the maps themselves go by their own names (cm_…). */
export type DumpName = 'ipcache' | 'services' | 'backends' | 'endpoints' | 'nodes' | 'drops' | 'ct' | 'nat';

/** A map as the kernel sees it; `id` stays the same for as long as its pin lives. */
export interface MapInfo {
  name: string;
  id: number;
  maxEntries: number;
  pin: string;
}

export interface MapUsage {
  name: string;
  rows: number;
  maxEntries: number;
}

/** Of one pass of garbage collection. */
export interface Collected {
  flows: { alive: number; removed: number };
  affinity: { alive: number; removed: number };
}

/** Since the start: sockets that were ended because their service had let their backend go. */
export interface DestroyedSockets {
  tcp: number;
  udp: number;
  passes: number;
  failedPasses: number;
  /** Network namespaces that the last pass looked into, and how long it took. */
  namespaces: number;
  lastPassMs: number;
  /** Withdrawals that were not carried out because too many waited. */
  lost: number;
  /** The kernel has a way to do it. */
  isPossible: boolean;
}

export interface Datapath {
  ipcache: MapOps<IpcacheRow>;
  services: MapOps<ServiceRow>;
  endpoints: MapOps<EndpointRow>;
  nodes: MapOps<NodeRow>;
  policies: MapOps<PolicyRow>;
  policyStates: MapOps<PolicyStateRow>;
  /** This version's programs are in place wherever they belong. Rejects if they cannot be: then this datapath is of no use. */
  readonly attached: Promise<void>;
  /** Write the endpoint's row, then put the programs on its veth (replacing older ones atomically). */
  attachEndpoint(row: EndpointRow): Promise<void>;
  /** Take programs and rows of this veth away; a veth that is already gone is no error. */
  detachEndpoint(interfaceName: string): Promise<void>;
  dump(map: DumpName): Promise<object[]>;
  /** Rows of one map as they are: {key, value}. Throws if there is none of that name. */
  dumpRaw(map: string): Promise<object[]>;
  maps(): MapInfo[];
  /** How full the maps with rows of their own are. Reads them whole, in slices. */
  usage(): Promise<MapUsage[]>;
  /** Takes away flows and choices of affinity whose time is over. */
  collectGarbage(): Promise<Collected>;
  destroyedSockets(): DestroyedSockets;
  /** Flow events of all programs of this node. */
  readonly events: EventSource;
  /** Whom the kernel takes an address for; undefined: unknown to it. */
  identityOf(ip: string): number | undefined;
  interfaceName(ifindex: number): string | undefined;
  /** What was asked for and is not in force, in a sentence each; traffic goes on another way. */
  problems(): readonly string[];
  /** Close file descriptors. Pins, programs and so traffic stay. */
  close(): Promise<void>;
}

/** `10.96.0.10:80/TCP`, `[fd00:96::a]:80/TCP`, `172.31.0.1:30080/TCP/outside`. */
export const serviceKey = ({ ip, port, protocol, scope }: Frontend): string =>
  `${ip.includes(':') ? `[${ip}]` : ip}:${port}/${protocol}${scope === undefined ? '' : `/${scope}`}`;
