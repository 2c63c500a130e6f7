/** The other side of a test of the agent: plays apiserver and mirror in a real etcd, and starts agents on a fake kernel. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type AgentFamily,
  agentFamilies,
  canaryKey,
  clusterConfigKey,
  type EndpointAddRequest,
  type EndpointSlicesExportMode,
  EXTENSION_FIELD,
  encodeClusterConfig,
  encodeEndpointSlice,
  encodeGlobalService,
  encodeIpEntry,
  encodeNode,
  endpointSliceKey,
  type GlobalService,
  type IpEntry,
  identityKey,
  ipKey,
  type Layout,
  LOCAL_FAMILIES,
  type LocalService,
  type LocalSlice,
  localCanaryKey,
  localKey,
  type MeshNode,
  makeNode,
  nodeKey,
  serviceKey,
} from '@clustermesh/contract';
import type { Etcd, EtcdOptions } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { openZstd, silentLog, systemClock, type WaitOptions, waitFor } from '@clustermesh/runtime';
import { type Agent, startAgent } from '../agent.ts';
import { type AgentConfig, parseAgentConfig } from '../config.ts';
import type { MapOps, ServiceRow } from '../datapath/types.ts';
import type { ServiceV2 } from '../services/choice.ts';
import { localService, remoteSlice, slice } from '../services/testing.ts';
import { createFakeKernel, type FakeKernel, fakeDatapath } from './fake-datapath.ts';

const zstd = openZstd();

export const CLUSTER = 'eu';
export const NODES = { n1: '172.31.1.11', n2: '172.31.1.12' } as const;
export type NodeName = keyof typeof NODES;

export interface TestNode {
  readonly kernel: FakeKernel;
  readonly stateDir: string;
  agent: Agent;
  readonly etcd: Etcd;
  /** kill -9: nothing is said to anyone, the kernel stays. */
  kill(): Promise<void>;
  /** A new process on the same disk and kernel. */
  start(): Promise<void>;
  /** Backends of the frontend 10.96.0.10:80 in the kernel, by address. */
  backends(): string[] | undefined;
}

export interface NodeOptions {
  readonly configDir?: string;
  readonly serviceV2?: ServiceV2;
  /** How it reaches its etcd. */
  readonly etcd?: Partial<EtcdOptions>;
  readonly staleAfterMs?: number;
  /** What stands between the agent and its etcd. */
  readonly through?: (etcd: Etcd) => Etcd;
  /** When the kernel's verifier is done with the programs; absent: at once. */
  readonly attached?: Promise<void>;
  /** In place of the fake kernel's table. */
  readonly services?: MapOps<ServiceRow>;
}

export interface TestCluster extends AsyncDisposable {
  readonly server: EtcdServer;
  readonly etcd: Etcd;
  node(name: NodeName, options?: NodeOptions): Promise<TestNode>;
  /** Everything the apiserver and the mirror of a settled cluster have written. */
  writeLocal(): Promise<void>;
  writePeer(peer: PeerFixture): Promise<void>;
  removePeerConfig(name: string): Promise<void>;
  /** Another, empty etcd answers at the same place; it has counted past the revisions of the old one. */
  wipe(): Promise<void>;
}

export interface PeerFixture {
  readonly name: string;
  readonly id: number;
  /** Addresses of the pods behind default/shop. */
  readonly pods: readonly string[];
  /** Canaries that are not written: the mirror has not heard the peer out there. */
  readonly without?: readonly AgentFamily[];
  /** What it says it publishes; '' (services alone) by default. */
  readonly mode?: EndpointSlicesExportMode;
  /** Endpoint slices, by name: ready addresses of default/shop. */
  readonly slices?: Readonly<Record<string, readonly string[]>>;
  /** Of the legacy service. */
  readonly outgrownAt?: string;
}

export const LOCAL_BACKEND = '10.1.9.9';
export const FRONTEND = '10.96.0.10:80/TCP';

export async function eventually<T>(
  what: string,
  condition: () => T | Promise<T>,
  options: Partial<WaitOptions> = {},
): Promise<NonNullable<T>> {
  return waitFor(condition, { what, timeoutMs: 60_000, intervalMs: 5, ...options });
}

export function endpointRequest(overrides: Partial<EndpointAddRequest> = {}): EndpointAddRequest {
  return {
    id: 'default.client-0.abc',
    namespace: 'default',
    pod: 'client-0',
    labels: { app: 'client' },
    serviceAccount: '',
    interface: 'cmp1',
    hostMac: '02:00:00:00:00:01',
    podMac: '02:00:00:00:00:02',
    ipv4: '10.1.1.5',
    ...overrides,
  };
}

export async function startCluster(): Promise<TestCluster> {
  // Rebuilt with equal flags, an etcd has the same cluster id as before: the harder case.
  const server = await startEtcd({ extraArgs: ['--initial-cluster-token', 'same'] });
  const etcd = server.client();
  const nodes: TestNode[] = [];
  const directory = mkdtempSync(join(tmpdir(), 'cm-agent-'));

  const put = (key: string, value: string) => etcd.put(key, value);
  // Without them every new pod would be locked: whether there are policies would not be known.
  for (const family of ['namespaces', 'policies'] as const) await put(localCanaryKey(family), 'now');
  const config = (name: NodeName, { configDir, serviceV2, staleAfterMs }: NodeOptions): AgentConfig =>
    parseAgentConfig({
      cluster: { name: CLUSTER, id: 1 },
      node: {
        name,
        ip: NODES[name],
        podCIDR: name === 'n1' ? '10.1.1.0/24' : '10.1.2.0/24',
        gatewayIP: name === 'n1' ? '10.1.1.1' : '10.1.2.1',
        // One node of either kind.
        ...(name === 'n1' ? { ipv6: { podCIDR: 'fd00:1:1::/64', gatewayIP: 'fd00:1:1::1' } } : {}),
      },
      etcd: { endpoints: [server.endpoint] },
      clustermesh: { configDir, serviceV2 },
      socket: join(directory, `${name}.sock`),
      stateDir: join(directory, name),
      datapath: { bpffs: '/unused', cgroup: '/unused' },
      timers: { endpointAddTimeoutMs: 1_000, statusIntervalMs: 20, staleAfterMs },
    });

  async function node(name: NodeName, options: NodeOptions = {}): Promise<TestNode> {
    const kernel = createFakeKernel();
    kernel.attachedGate = options.attached;
    let client = server.client(options.etcd);
    const start = () =>
      startAgent({
        config: config(name, options),
        etcd: options.through?.(client) ?? client,
        datapath: { ...fakeDatapath(kernel), ...(options.services && { services: options.services }) },
        interfaces: () => kernel.interfaces,
        zstd,
        clock: systemClock,
        log: silentLog(),
      });
    const created: TestNode = {
      kernel,
      stateDir: join(directory, name),
      agent: await start(),
      get etcd() {
        return client;
      },
      async kill() {
        await Promise.all([client.close(), created.agent.close()]);
      },
      async start() {
        client = server.client(options.etcd);
        created.agent = await start();
      },
      backends: () => kernel.services.rows.get(FRONTEND)?.backends.map((backend) => backend.ip),
    };
    nodes.push(created);
    return created;
  }

  return {
    server,
    etcd,
    node,
    async writeLocal() {
      const service: LocalService = localService();
      const local: LocalSlice = slice({ [LOCAL_BACKEND]: 'ready' });
      await put(clusterConfigKey(CLUSTER), encodeClusterConfig({ id: 1, capabilities: { syncedCanaries: true } }));
      await put(localKey('services', 'default/shop'), JSON.stringify(service));
      await put(localKey('endpointslices', 'default/shop-1'), JSON.stringify(local));
      for (const family of LOCAL_FAMILIES) await put(localCanaryKey(family), 'now');
    },
    writePeer: (peer) => writePeer(etcd, peer, 'cache'),
    async removePeerConfig(name) {
      await etcd.delete(clusterConfigKey(name));
    },
    async wipe() {
      const { header } = await etcd.range('nothing/');
      await server.wipe();
      const client = server.client();
      while ((await client.put('test/counter', '')).revision <= header.revision);
      await client.close();
    },
    async [Symbol.asyncDispose]() {
      for (const each of nodes) await each.kill();
      await server.close();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** What a peer publishes, as its mirror holds it or as its own etcd does. */
export async function writePeer(etcd: Etcd, peer: PeerFixture, layout: Layout): Promise<void> {
  const { name, id, pods, without, mode = '', slices = {}, outgrownAt } = peer;
  const put = (key: string, value: string) => etcd.put(key, value);
  const nodeIp = `172.31.${id}.11`;
  const meshNode: MeshNode = makeNode({
    name: 'p1',
    cluster: name,
    clusterId: id,
    internalIp: nodeIp,
    gatewayIp: `10.${id}.1.1`,
    podCidr: `10.${id}.1.0/24`,
    labels: {},
  });
  const service: GlobalService = {
    cluster: name,
    namespace: 'default',
    name: 'shop',
    frontends: {},
    backends: Object.fromEntries(pods.map((ip) => [ip, { http: { Protocol: 'TCP', Port: 8080 } }])),
    labels: {},
    selector: {},
    includeExternal: true,
    shared: true,
    clusterID: id,
    ...(outgrownAt === undefined ? {} : { [EXTENSION_FIELD]: { outgrownAt } }),
  };
  const identity = id * 65536 + 300;
  await put(nodeKey(name, 'p1', layout), encodeNode(meshNode));
  await put(identityKey(name, identity, layout), `k8s:app=shop;k8s:io.cilium.k8s.policy.cluster=${name};`);
  for (const ip of pods) {
    const entry: IpEntry = { IP: ip, HostIP: nodeIp, ID: identity, Key: 0, Metadata: '' };
    await put(ipKey(name, ip, layout), encodeIpEntry(entry));
  }
  for (const [slice, ips] of Object.entries(slices)) await putSlice(etcd, peer, slice, ips, layout);
  if (mode !== 'endpointslices-only')
    await put(serviceKey(name, 'default', 'shop', layout), encodeGlobalService(service));
  await put(
    clusterConfigKey(name),
    encodeClusterConfig({
      id,
      capabilities: {
        syncedCanaries: true,
        ...(layout === 'cache' ? { cached: true } : {}),
        maxConnectedClusters: 255,
        ...(mode === '' ? {} : { endpointSlicesExportMode: mode }),
      },
    }),
  );
  for (const family of agentFamilies({ id, capabilities: { endpointSlicesExportMode: mode } }))
    if (!without?.includes(family)) await put(canaryKey(name, family, layout), 'now');
}

/** One slice of default/shop of the peer: ready endpoints. */
export async function putSlice(
  etcd: Etcd,
  peer: Pick<PeerFixture, 'name' | 'id'>,
  slice: string,
  ips: readonly string[],
  layout: Layout,
): Promise<void> {
  const endpoints = Object.fromEntries(ips.map((ip) => [ip, 'ready' as const]));
  const value = remoteSlice(peer.name, peer.id, endpoints, { name: slice });
  await etcd.put(endpointSliceKey(peer.name, 'default', slice, layout), encodeEndpointSlice(value, zstd));
}
