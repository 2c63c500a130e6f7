/** Everything between etcd and the datapath, put together. main.ts adds the outside: config file, sockets, signals. */
import {
  type AgentStatusReply,
  type Compression,
  type EndpointAddRequest,
  type EndpointInfo,
  messageOf,
  type NodeRecord,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { trustView } from '@clustermesh/pki';
import { type Clock, type Log, version } from '@clustermesh/runtime';
import { Registry } from 'prom-client';
import type { AgentConfig } from './config.ts';
import type { Datapath, DumpName } from './datapath/types.ts';
import { createDesired, type Desired } from './desired.ts';
import { startEndpointManager } from './endpoints/manager.ts';
import { startPublisher } from './endpoints/publisher.ts';
import { createEndpointStore } from './endpoints/store.ts';
import { createLookups } from './flow/lookups.ts';
import { type FlowMonitor, startFlowMonitor } from './flow/monitor.ts';
import { startGarbageCollection } from './garbage.ts';
import { createAllocator } from './identity/allocator.ts';
import { startMesh } from './mesh/mesh.ts';
import { createStoreMemory } from './mesh/store-memory.ts';
import type { Mesh, MeshView } from './mesh/types.ts';
import { type PolicyView, viewPolicies } from './policy/view.ts';
import { startMapPressure } from './status/map-pressure.ts';
import { createMeshMetrics } from './status/mesh-metrics.ts';
import { createMetrics } from './status/metrics.ts';
import { startStatusPublisher } from './status/publisher.ts';
import { createTables, type Sync, startSync, takeOver } from './sync.ts';
import { underlayMtu } from './underlay.ts';
import { type TableVerdict, verify } from './verify.ts';

export interface AgentPorts {
  readonly config: AgentConfig;
  readonly etcd: Etcd;
  readonly datapath: Datapath;
  /** Network interfaces of this node; undefined when that cannot be told. */
  readonly interfaces: () => ReadonlySet<string> | undefined;
  /** For endpoint slices of peers. */
  readonly zstd: Compression;
  readonly clock: Clock;
  readonly log: Log;
}

export interface Agent {
  addEndpoint(request: EndpointAddRequest): Promise<EndpointInfo>;
  removeEndpoint(id: string): Promise<void>;
  endpoints(): EndpointInfo[];
  status(): AgentStatusReply;
  dump(map: DumpName): Promise<object[]>;
  /** Rows of a kernel map by its own name. */
  dumpRaw(map: string): Promise<object[]>;
  /** The pinned maps, with their rows where they are counted. */
  maps(): Promise<object[]>;
  /** What the kernel enforces at an endpoint, named as `viewPolicies` takes it; all if empty. */
  policies(endpoint: string): Promise<PolicyView[]>;
  verify(): Promise<TableVerdict[]>;
  readonly flows: FlowMonitor;
  /** Undefined when everything known has been applied since the start, else what is missing. */
  notReady(): string | undefined;
  readonly metrics: Registry;
  /** Ends all loops. The kernel keeps what it has. */
  close(): Promise<void>;
}

/** Rows between etcd and the kernel. One object of a peer is a few of them at most, a pass writes this many in some milliseconds. */
const MOST_WAITING = 950;

export async function startAgent(ports: AgentPorts): Promise<Agent> {
  const { config, etcd, datapath, clock, log } = ports;
  const { cluster, node, timers } = config;
  const stop = new AbortController();
  const { signal } = stop;
  const startedMs = clock.nowMs();

  // ---- the kernel as it is

  const tables = createTables();
  let mesh: Mesh | undefined;
  let sync: Sync | undefined;
  // Until the mesh is being read, nobody has been heard.
  const view: MeshView = {
    isSettled: (clusterId, family) => mesh?.isSettled(clusterId, family) ?? false,
    arePoliciesHeard: () => mesh?.arePoliciesHeard() ?? false,
    areSlicesHeard: (clusterId) => mesh?.areSlicesHeard(clusterId) ?? false,
    isGone: (clusterId) => mesh?.isGone(clusterId) ?? false,
    isNodeSettled: (ip) => mesh?.isNodeSettled(ip) ?? false,
  };
  const ownIpv6 = node.ipv6 && {
    internalIp: node.ipv6.ip,
    gatewayIp: node.ipv6.gatewayIP,
    podCidr: node.ipv6.podCIDR,
  };
  const desired: Desired = createDesired({
    own: {
      cluster: cluster.name,
      clusterId: cluster.id,
      maxConnectedClusters: cluster.maxConnectedClusters,
      nodeIp: node.ip,
      gatewayIp: node.gatewayIP,
      podCidr: node.podCIDR,
      ipv6: ownIpv6,
    },
    view,
    allowHost: config.policy.allowHost,
    serviceV2: config.clustermesh.serviceV2,
    isDirect: (name) => (config.datapath.routing.clusters[name] ?? config.datapath.routing.mode) === 'direct',
    onChanged: () => sync?.trigger(),
  });
  await takeOver({ tables, datapath, desired });

  // ---- the node's own endpoints, from disk

  const nodeRecord: NodeRecord = {
    name: node.name,
    internalIp: node.ip,
    gatewayIp: node.gatewayIP,
    podCidr: node.podCIDR,
    ...(ownIpv6 === undefined ? {} : { ipv6: ownIpv6 }),
    ...(node.zone === undefined ? {} : { zone: node.zone }),
    ...(node.region === undefined ? {} : { region: node.region }),
    ...(await underlayMtu(node.ip)),
  };
  const publisher = startPublisher({ etcd, node: nodeRecord, clock, log: log.child({ subsystem: 'publish' }), signal });
  const endpoints = startEndpointManager({
    own: { cluster: cluster.name, podCidr: node.podCIDR, gatewayIp: node.gatewayIP, ipv6: ownIpv6 },
    store: createEndpointStore(config.stateDir, log),
    allocator: createAllocator({
      etcd,
      clusterId: cluster.id,
      maxConnectedClusters: cluster.maxConnectedClusters,
      log,
    }),
    publisher,
    rows: tables.endpoints,
    ipcache: desired.ownEndpoint,
    policyOf: desired.policyOf,
    kernelEndpoints: [...(await datapath.endpoints.list()).values()],
    unknown: desired.unknownEndpoint,
    requestPass: () => sync?.trigger(),
    programmed: (ip) => sync?.programmed(ip) ?? 'pending',
    isRemoved: (ip) => sync?.isRemoved(ip) ?? false,
    interfaces: ports.interfaces,
    addTimeoutMs: timers.endpointAddTimeoutMs,
    clock,
    log: log.child({ subsystem: 'endpoints' }),
    signal,
  });

  // ---- the mesh, from etcd, and the loop to the kernel

  const registry = new Registry();
  const meshMetrics = createMeshMetrics({
    registry,
    cluster: cluster.name,
    remotes: () => mesh?.remotes() ?? [],
    progress: () => mesh?.progress() ?? [],
    waiting: () => [...(mesh?.waiting() ?? []), ...(sync?.waiting() ?? [])],
    published: publisher.status,
    runs: () => sync?.stats() ?? { passes: 0, failedPasses: 0 },
    clock,
  });
  mesh = startMesh({
    etcd,
    own: { name: cluster.name, id: cluster.id, maxConnectedClusters: cluster.maxConnectedClusters, node: node.name },
    memory: createStoreMemory({ etcd, node: node.name, stateDir: config.stateDir }),
    configDir: config.clustermesh.configDir,
    serviceV2: config.clustermesh.serviceV2,
    zstd: ports.zstd,
    sink: desired,
    room: () => (desired.waiting() < MOST_WAITING || signal.aborted ? undefined : sync?.passed()),
    staleAfterMs: timers.staleAfterMs,
    observe: meshMetrics.observe,
    clock,
    log: log.child({ subsystem: 'mesh' }),
  });
  const followed = mesh;
  let areProgramsAttached = false;
  /** Set once, by the first pass that began when every source had spoken. */
  let isApplied = false;
  let wasComplete = false;

  function onPass({ checked }: { readonly checked: boolean }): void {
    endpoints.onPass();
    if (checked) endpoints.sweep();
    const isClean = Object.values(tables).every((table) => table.counts().pending + table.counts().error === 0);
    const hasRestored = desired.restoredCount() > 0;
    if (!hasRestored) followed.rememberStore();
    if (!isApplied) {
      if (wasComplete && isClean && !hasRestored && areProgramsAttached) {
        isApplied = true;
        meshMetrics.bootstrapped((clock.nowMs() - startedMs) / 1000);
        log.info('everything known has been applied');
      }
      const isCompleteNow = followed.isComplete();
      // One more pass, now that all sources have spoken: it is the one that counts.
      if (isCompleteNow && !wasComplete) sync?.trigger();
      wasComplete = isCompleteNow;
    }
    statusPublisher.trigger();
  }

  const { caFile, certFile } = config.etcd;
  const held = caFile === undefined || certFile === undefined ? undefined : trustView({ caFile, certFile });
  const statusPublisher = startStatusPublisher({
    etcd,
    node: node.name,
    status() {
      // From the sync, not from the mesh: a cluster that left is named until its rows are out of the kernel.
      const applied: Record<string, Record<string, number>> = {};
      for (const [key, revision] of running.applied()) {
        const [peer = '', family = ''] = key.split('/');
        applied[peer] ??= {};
        applied[peer][family] = revision;
      }
      const trust = held?.();
      return { node: node.name, version: version(), applied, problems: problems(), ...(trust && { trust }) };
    },
    minIntervalMs: timers.statusIntervalMs,
    leaseSeconds: timers.leaseSeconds,
    size: () => running.applied().size,
    clock,
    log: log.child({ subsystem: 'status' }),
  });

  const running = startSync({
    tables,
    datapath,
    desired,
    takeChanges: followed.takeChanges,
    onTaken: meshMetrics.taken,
    onApplied: meshMetrics.applied,
    onPass,
    minPassIntervalMs: timers.minPassIntervalMs,
    checkIntervalMs: timers.checkIntervalMs,
    clock,
    log: log.child({ subsystem: 'sync' }),
    signal,
  });
  sync = running;
  running.trigger();
  // If they cannot be, whoever opened the datapath ends this agent.
  void datapath.attached.then(
    () => {
      areProgramsAttached = true;
      running.trigger();
    },
    (error: unknown) => log.error({ err: error }, 'the programs could not be attached'),
  );

  const pressure = startMapPressure({
    registry,
    usage: datapath.usage,
    clock,
    log: log.child({ subsystem: 'maps' }),
    signal,
  });
  const garbage = startGarbageCollection({
    registry,
    collect: datapath.collectGarbage,
    clock,
    log: log.child({ subsystem: 'gc' }),
    signal,
  });
  const flows = await startFlowMonitor({
    source: datapath.events,
    lookups: createLookups(datapath, clock),
    rates: config.datapath.flowEvents,
    clock,
    log: log.child({ subsystem: 'flow' }),
    signal,
  });

  let etcdError = 'not connected yet';
  const stopListening = etcd.onEvent((event) => {
    if (event.type === 'disconnected') {
      etcdError = event.reason;
      return;
    }
    endpoints.onEtcdConnected();
    statusPublisher.onEtcdConnected();
  });

  function problems(): string[] {
    const kept = desired.restoredCount();
    const isStuck = kept > 0 && followed.isComplete();
    return [
      ...followed.problems(),
      ...desired.problems(),
      ...endpoints.problems(),
      ...running.problems(),
      ...datapath.problems(),
      ...(isStuck
        ? [
            `${kept} kernel rows are kept from before the start: etcd is another one than before, and it does not have their clusters or nodes yet`,
          ]
        : []),
    ];
  }

  return {
    addEndpoint: endpoints.add,
    removeEndpoint: endpoints.remove,
    endpoints: endpoints.list,
    status() {
      return {
        node: node.name,
        cluster: cluster.name,
        version: version(),
        etcdConnected: etcd.connected,
        etcdError: etcd.connected ? '' : etcdError,
        families: followed.progress().map(({ peer, family, synced, current, count }) => ({
          peer,
          family,
          synced: synced && current,
          revision: running.applied().get(`${peer}/${family}`) ?? 0,
          count,
        })),
        problems: problems(),
        applied: isApplied,
      };
    },
    dump: (map) => datapath.dump(map),
    dumpRaw: datapath.dumpRaw,
    async maps() {
      const rows = new Map((await datapath.usage()).map((usage) => [usage.name, usage.rows]));
      return datapath.maps().map((map) => ({ ...map, rows: rows.get(map.name) ?? null }));
    },
    async policies(endpoint) {
      const [rows, states] = await Promise.all([datapath.policies.list(), datapath.policyStates.list()]);
      const held = { rows: rows.values(), states: states.values() };
      return viewPolicies({ ...held, endpoints: endpoints.list(), describe: desired.describeIdentity }, endpoint);
    },
    verify: () => verify(tables, datapath, clock),
    flows,
    notReady() {
      if (isApplied) return undefined;
      if (!etcd.connected) return `etcd is not connected: ${etcdError}`;
      if (!areProgramsAttached) return 'programs are being loaded';
      const missing = followed.missing();
      return missing.length > 0 ? `not heard yet: ${missing.join(', ')}` : 'rows are being programmed';
    },
    metrics: createMetrics({
      registry,
      sync: running,
      progress: followed.progress,
      nowMs: clock.nowMs,
      restoredCount: desired.restoredCount,
      outgrownServices: desired.outgrownServices,
      endpoints: endpoints.list,
      isEtcdConnected: () => etcd.connected,
      flows: flows.stats,
      destroyedSockets: datapath.destroyedSockets,
    }),
    async close() {
      stopListening();
      stop.abort();
      await followed.close();
      await running.ended;
      await flows.ended;
      await pressure.ended;
      await garbage.ended;
      await statusPublisher
        .close()
        .catch((error: unknown) => log.debug({ reason: messageOf(error) }, 'status lease not given back'));
    },
  };
}
