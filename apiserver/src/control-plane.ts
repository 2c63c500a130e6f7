/** What the apiserver does without being asked: bootstrap, sources, export, mirror. Operations and the admin interface use it. */
import { CANARY_FAMILIES } from '@clustermesh/contract';
import { type Etcd, openEtcd } from '@clustermesh/kvstore';
import { type Clock, type Log, systemClock } from '@clustermesh/runtime';
import { type Bootstrap, startBootstrap } from './bootstrap/bootstrap.ts';
import { type Config, stateFiles } from './config.ts';
import { type Exporter, startExporter } from './export/exporter.ts';
import { type Mirror, startMirror } from './mirror/mirror.ts';
import type { LocalView, PeerDirectory } from './ports.ts';
import { type AgentSource, startAgentSource } from './sources/agents.ts';
import { type ManifestSource, startManifestSource } from './sources/manifests/manifests.ts';
import { type NodeSource, startNodeSource } from './sources/nodes/nodes.ts';

export interface ControlPlaneOptions {
  readonly config: Config;
  readonly directory: PeerDirectory;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

export interface ControlPlane {
  readonly etcd: Etcd;
  readonly bootstrap: Bootstrap;
  readonly agents: AgentSource;
  readonly manifests: ManifestSource;
  readonly nodes: NodeSource;
  readonly exporter: Exporter;
  readonly mirror: Mirror;
  readonly local: LocalView;
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

  const etcd = openEtcd({ ...config.etcd, log: log.child({ subsystem: 'etcd' }), clock });
  const common = { etcd, log, signal, clock };
  const bootstrap = startBootstrap({
    ...common,
    cluster: cluster.name,
    nodes: config.nodes,
    usersFile: config.usersFile,
  });
  const { fence } = bootstrap;
  const agents = startAgentSource(common);
  const manifests = startManifestSource({
    dir: config.manifestsDir,
    lastGoodDir: files.lastGoodDir,
    clusterIpsFile: files.clusterIps,
    serviceCidr: cluster.serviceCIDR,
    defaultGlobalNamespace: cluster.defaultGlobalNamespace,
    log,
    signal,
    clock,
    onChange: () => exporter.trigger(),
  });
  const nodes = startNodeSource({
    ...common,
    knownNodesFile: files.knownNodes,
    graceMs: timers.nodeGraceMs,
    onChange: () => exporter.trigger(),
  });
  const exporter = startExporter({
    ...common,
    cluster,
    manifests: manifests.snapshot,
    nodes: nodes.snapshot,
    fence,
    heartbeatMs: timers.heartbeatMs,
  });
  const mirror = startMirror({
    own: cluster,
    local: etcd,
    directory: options.directory,
    peersDir: config.peersDir,
    agents,
    fence,
    timers,
    log,
    signal,
    clock,
  });

  const local: LocalView = {
    problems: () => [...manifests.problems(), ...exporter.problems(), ...bootstrap.problems(), ...mirror.problems()],
    counts: exporter.counts,
  };

  return {
    ...{ etcd, bootstrap, agents, manifests, nodes, exporter, mirror, local },
    notReady() {
      if (!bootstrap.ready()) return `etcd: ${bootstrap.lastError() || 'users and roles are not in place yet'}`;
      const waitingFor = nodes.snapshot().waitingFor;
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
      await Promise.all([bootstrap.ended, agents.ended, manifests.ended, nodes.ended, exporter.ended, mirror.ended]);
      await etcd.close();
    },
  };
}
