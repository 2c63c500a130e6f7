/** The other side of a test of the agent: plays apiserver and mirror in a real etcd, and starts agents on a fake kernel. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  canaryKey,
  clusterConfigKey,
  type EndpointAddRequest,
  encodeClusterConfig,
  encodeGlobalService,
  encodeIpEntry,
  encodeNode,
  FAMILIES,
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
import type { Etcd } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { silentLog, systemClock, type WaitOptions, waitFor } from '@clustermesh/runtime';
import { type Agent, startAgent } from '../agent.ts';
import { type AgentConfig, parseAgentConfig } from '../config.ts';
import { localService, slice } from '../services/testing.ts';
import { createFakeKernel, type FakeKernel, fakeDatapath } from './fake-datapath.ts';

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

export interface TestCluster extends AsyncDisposable {
  readonly server: EtcdServer;
  readonly etcd: Etcd;
  node(name: NodeName, options?: { readonly configDir?: string }): Promise<TestNode>;
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
  readonly without?: readonly (typeof FAMILIES)[number][];
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
  const config = (name: NodeName, configDir: string | undefined): AgentConfig =>
    parseAgentConfig({
      cluster: { name: CLUSTER, id: 1 },
      node: {
        name,
        ip: NODES[name],
        podCIDR: name === 'n1' ? '10.1.1.0/24' : '10.1.2.0/24',
        gatewayIP: name === 'n1' ? '10.1.1.1' : '10.1.2.1',
      },
      etcd: { endpoints: [server.endpoint] },
      ...(configDir === undefined ? {} : { clustermesh: { configDir } }),
      socket: join(directory, `${name}.sock`),
      stateDir: join(directory, name),
      datapath: { bpffs: '/unused', cgroup: '/unused' },
      timers: { endpointAddTimeoutMs: 1_000, statusIntervalMs: 20 },
    });

  async function node(name: NodeName, options: { readonly configDir?: string } = {}): Promise<TestNode> {
    const kernel = createFakeKernel();
    let client = server.client();
    const start = () =>
      startAgent({
        config: config(name, options.configDir),
        etcd: client,
        datapath: fakeDatapath(kernel),
        interfaces: () => kernel.interfaces,
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
        client = server.client();
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
  const { name, id, pods, without } = peer;
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
  };
  const identity = id * 65536 + 300;
  await put(nodeKey(name, 'p1', layout), encodeNode(meshNode));
  await put(identityKey(name, identity, layout), `k8s:app=shop;k8s:io.cilium.k8s.policy.cluster=${name};`);
  for (const ip of pods) {
    const entry: IpEntry = { IP: ip, HostIP: nodeIp, ID: identity, Key: 0, Metadata: '' };
    await put(ipKey(name, ip, layout), encodeIpEntry(entry));
  }
  await put(serviceKey(name, 'default', 'shop', layout), encodeGlobalService(service));
  await put(
    clusterConfigKey(name),
    encodeClusterConfig({
      id,
      capabilities: {
        syncedCanaries: true,
        ...(layout === 'cache' ? { cached: true } : {}),
        maxConnectedClusters: 255,
      },
    }),
  );
  for (const family of FAMILIES) if (!without?.includes(family)) await put(canaryKey(name, family, layout), 'now');
}
