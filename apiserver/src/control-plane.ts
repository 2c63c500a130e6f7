/** What the apiserver does without being asked: bootstrap, sources, export, mirror. Operations and the admin interface use it. */
import { CANARY_FAMILIES } from '@clustermesh/contract';
import { type Etcd, type Leadership, observedEtcd, openEtcd } from '@clustermesh/kvstore';
import { type Clock, type Log, openZstd, systemClock } from '@clustermesh/runtime';
import { type Bootstrap, startBootstrap } from './bootstrap/bootstrap.ts';
import { type Config, stateFiles } from './config.ts';
import { type Exporter, startExporter } from './export/exporter.ts';
import type { KvstoreMetrics } from './kvstore-metrics.ts';
import { type Mirror, startMirror } from './mirror/mirror.ts';
import type { LocalView, PeerDirectory } from './ports.ts';
import { type AgentSource, startAgentSource } from './sources/agents.ts';
import { type ManifestSource, startManifestSource } from './sources/manifests/manifests.ts';
import { type NodeSource, startNodeSource } from './sources/nodes/nodes.ts';
import { startPeerRecords } from './sources/peer-records.ts';
import { replicaId, startTerms } from './term.ts';

export interface ControlPlaneOptions {
  readonly config: Config;
  readonly directory: PeerDirectory;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  readonly metrics?: { readonly own: KvstoreMetrics; readonly mesh: KvstoreMetrics };
}

export interface ControlPlane {
  readonly etcd: Etcd;
  readonly bootstrap: Bootstrap;
  readonly agents: AgentSource;
  readonly manifests: ManifestSource;
  readonly nodes: NodeSource;
  /** Of the term that runs; empty views while another replica leads. */
  readonly exporter: Omit<Exporter, 'ended'>;
  readonly mirror: Omit<Mirror, 'ended'>;
  readonly local: LocalView;
  isLeading(): boolean;
  leader(): string | undefined;
  /** What only one replica may do is this one's to do. */
  runsTerm(): boolean;
  /** The replica that leads, when it is another one. */
  otherLeader(): string | undefined;
  /** What readers would still miss, or undefined. A peer that does not answer is given up on after a while. */
  notReady(): string | undefined;
  /** After the signal: everything has ended, the connection is closed. Mirrored and exported data stays. */
  close(): Promise<void>;
}

/** An unreachable peer must not keep this cluster from being ready (wire-contract §4.4). */
const PEER_READY_CAP_MS = 15_000;

export function startControlPlane(options: ControlPlaneOptions): ControlPlane {
  const { config, log, signal } = options;
  const clock = options.clock ?? systemClock;
  const { cluster, timers } = config;
  const files = stateFiles(config.stateDir);
  const startedAt = clock.nowMs();

  const zstd = openZstd();
  const client = openEtcd({ ...config.etcd, log: log.child({ subsystem: 'etcd' }), clock });
  const { metrics } = options;
  const etcd = metrics === undefined ? client : observedEtcd(client, metrics.own.observe, clock.nowMs);
  const meshEtcd = metrics === undefined ? client : observedEtcd(client, metrics.mesh.observe, clock.nowMs);
  client.onEvent((event) => event.type === 'disconnected' && metrics?.own.lost('disconnected'));
  const common = { etcd, log, signal, clock };
  const bootstrap = startBootstrap({
    ...common,
    cluster: cluster.name,
    nodes: config.nodes,
    usersFile: config.usersFile,
    authMode: config.authMode,
    peerAccess: config.peerAccess,
    metrics: metrics?.own,
  });
  const agents = startAgentSource(common);
  const onChange = () => terms.current()?.exporter.trigger();
  const manifests = startManifestSource({
    dir: config.manifestsDir,
    lastGoodDir: files.lastGoodDir,
    clusterIpsFile: files.clusterIps,
    serviceCidrs: { IPv4: cluster.serviceCIDR, IPv6: cluster.serviceCIDRv6 },
    defaultGlobalNamespace: cluster.defaultGlobalNamespace,
    policies: { cluster: cluster.name, defaultLocalCluster: cluster.policyDefaultLocalCluster },
    log,
    signal,
    clock,
    onChange,
  });
  const nodes = startNodeSource({
    ...common,
    knownNodesFile: files.knownNodes,
    graceMs: timers.nodeGraceMs,
    onChange,
  });
  const records = startPeerRecords({ ...common, log: log.child({ subsystem: 'peer-records' }) });

  const begin = (leadership: Leadership, termSignal: AbortSignal) => {
    const right = { fence: bootstrap.fence, leadership };
    const shared = { right, rate: config.rates, zstd, log, signal: termSignal, clock };
    const exporter = startExporter({
      ...shared,
      etcd,
      metrics: metrics?.own,
      cluster,
      sliceExport: config.export.endpointSlices,
      leaseTtlSeconds: config.export.leaseTtlSeconds,
      manifests,
      nodes,
      heartbeatMs: timers.heartbeatMs,
      withdrawWaitMs: timers.withdrawWaitMs,
    });
    const mirror = startMirror({
      ...shared,
      own: cluster,
      local: meshEtcd,
      metrics: metrics?.mesh,
      directory: options.directory,
      peersDir: config.peersDir,
      agents,
      timers,
      limits: config.peers,
      foreignReaders: config.mirror.foreignReaders,
    });
    return { exporter, mirror, ended: Promise.all([exporter.ended, mirror.ended]).then(() => {}) };
  };
  const replica = replicaId(files.replica);
  const terms = startTerms({
    ...common,
    log: log.child({ subsystem: 'election' }),
    replica,
    ttlSeconds: config.election.ttlSeconds,
    isBootstrapped: bootstrap.ready,
    fence: bootstrap.fence,
    begin,
  });

  const exporter: ControlPlane['exporter'] = {
    trigger: onChange,
    problems: () => terms.current()?.exporter.problems() ?? [],
    counts: () => terms.current()?.exporter.counts() ?? { services: 0, globalServices: 0, endpoints: 0 },
    outgrown: () => terms.current()?.exporter.outgrown() ?? 0,
    synced: () => terms.current()?.exporter.synced() ?? new Set(),
    configRepairs: () => terms.current()?.exporter.configRepairs() ?? 0,
    writers: () => terms.current()?.exporter.writers() ?? [],
  };
  const mirror: ControlPlane['mirror'] = {
    peers: () => terms.current()?.mirror.peers() ?? records.peers(),
    refresh: () => terms.current()?.mirror.refresh(),
    problems: () => terms.current()?.mirror.problems() ?? [],
    tookMs: () => terms.current()?.mirror.tookMs(),
    counters: () => terms.current()?.mirror.counters() ?? new Map(),
  };

  const local: LocalView = {
    problems: () => [...manifests.problems(), ...exporter.problems(), ...bootstrap.problems(), ...mirror.problems()],
    counts: exporter.counts,
  };

  return {
    isLeading: terms.isLeading,
    leader: terms.leader,
    runsTerm: () => terms.current() !== undefined,
    otherLeader: () => {
      const leader = terms.current() === undefined ? terms.leader() : undefined;
      return leader === replica ? undefined : leader;
    },
    ...{ etcd, bootstrap, agents, manifests, nodes, exporter, mirror, local },
    notReady() {
      if (!bootstrap.ready()) return `etcd: ${bootstrap.lastError() || 'users and roles are not in place yet'}`;
      // Another replica writes: this one is as ready as it can be.
      if (terms.current() === undefined && terms.leader() !== undefined) return undefined;
      const waitingFor = nodes.waitingFor();
      const unwritten = CANARY_FAMILIES.filter((family) => !exporter.synced().has(family));
      if (unwritten.length > 0)
        return `export: ${unwritten.join(', ')} not written yet${waitingFor.length > 0 ? `, waiting for nodes ${waitingFor.join(', ')}` : ''}`;
      if (clock.nowMs() - startedAt > PEER_READY_CAP_MS) return undefined;
      const missing = mirror.peers().filter((peer) => !peer.ready);
      return missing.length === 0
        ? undefined
        : `mirror: ${missing.map((peer) => `${peer.cluster}: ${peer.error ?? 'syncing'}`).join('; ')}`;
    },
    async close() {
      await Promise.all([bootstrap.ended, agents.ended, manifests.ended, nodes.ended, records.ended, terms.ended]);
      await etcd.close();
    },
  };
}
