/**
 * Which remote clusters are followed, and from where: the mirror in this cluster's etcd, or, if the config directory has a file for
 * one, that cluster's own etcd. The mirror's word on a cluster does not count while it is read directly.
 *
 *   cilium/cluster-config/ ──► clusters ──► start, drain ┐
 *                                                        ├──► one `Peer` per cluster: its families, each behind its canary
 *   config directory ──────► direct ──► accept, release ─┘
 */
import {
  type AgentFamily,
  agentFamilies,
  CLUSTER_CONFIG_PREFIX,
  type ClusterConfig,
  type Compression,
  type Layout,
  type LocalClusterFacts,
} from '@clustermesh/contract';
import type { Etcd, SinkBatch } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import type { ServiceV2 } from '../services/choice.ts';
import { createClusters } from './clusters.ts';
import { type Direct, startDirect } from './direct.ts';
import type { Room } from './family.ts';
import { startJudgedSource } from './judged-source.ts';
import { type Peer, type PublishedPeer, startPeer } from './peer.ts';
import type { Progress } from './progress.ts';
import type { AcceptedSource } from './remote.ts';
import type { StoreMemory } from './store-memory.ts';
import type { MeshSink, RemoteState } from './types.ts';

export interface PeersOptions {
  /** This cluster's, where the mirror writes. */
  readonly etcd: Etcd;
  readonly own: LocalClusterFacts & { readonly name: string };
  /** Remote clusters to be read from their own etcds (wire-contract §5.1). */
  readonly configDir: string | undefined;
  readonly serviceV2: ServiceV2;
  readonly memory: StoreMemory;
  readonly zstd: Compression;
  readonly sink: MeshSink;
  /** A client as it is to be used here: timed, and with few lists at a time. */
  readonly watched: (etcd: Etcd) => Etcd;
  readonly progress: Progress;
  readonly onBatch: (peer: string, family: string) => void;
  readonly onSynced: (peer: string, clusterId: number, family: string) => void;
  readonly room?: Room | undefined;
  /** Clusters came or went, or what is known of them changed. */
  readonly onClusters: () => void;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

export interface Peers {
  byId(clusterId: number): Peer | undefined;
  /** The cluster is known not to be in the mesh. */
  isGone(clusterId: number): boolean;
  /** All clusters there are have been named, whoever was in the mesh before is there again, and every configured one has been met. */
  isComplete(): boolean;
  /** Peers kept although a rebuilt etcd does not have them yet. */
  held(): ReadonlySet<string>;
  /** What `isComplete` still waits for. */
  missing(): string[];
  problems(): string[];
  remotes(): RemoteState[];
  /** The connection of the last complete list of clusters. */
  connection(): number | undefined;
  close(): Promise<void>;
}

/** Where a cluster's keys are read, and how they lie there. */
interface PeerSource {
  readonly etcd: Etcd;
  readonly layout: Layout;
  readonly hasCanaries: boolean;
  /** Of the cluster itself, where it can be seen: behind a mirror it is the mirror that judges what a silent writer's deletes mean. */
  readonly lastHeartbeatAt?: () => number | undefined;
}

/** A connection, as it is reported. */
interface Source {
  readonly etcd: Etcd;
  failures: number;
  lastFailureWallMs: number | undefined;
}

export function startPeers(options: PeersOptions): Peers {
  const { etcd, own, progress, clock, log } = options;
  const peers = new Map<string, Peer>();
  const peersById = new Map<number, Peer>();
  const mirror: PeerSource = { etcd, layout: 'cache', hasCanaries: true };

  /** Clusters that are read from their own etcd. The mirror's word on them does not count while they are. */
  const directIds = new Map<string, number>();
  const clusters = createClusters(own, (id, name) => {
    for (const [holder, held] of directIds) if (held === id && holder !== name) return holder;
    return undefined;
  });
  const drainedIds = new Set<number>();

  /** Counts the losses of a connection; after each, what was complete is to be looked at again. */
  function watchSource(of: Etcd): Source {
    const source: Source = { etcd: of, failures: 0, lastFailureWallMs: undefined };
    of.onEvent((event) => {
      if (event.type === 'disconnected') {
        source.failures++;
        source.lastFailureWallMs = clock.wallMs();
      } else {
        progress.touchAll();
      }
    });
    return source;
  }
  const localSource = watchSource(etcd);
  const sources = new Map<string, Source>();

  function begin(ref: PublishedPeer, source: PeerSource, predecessor?: Peer): void {
    drainedIds.delete(ref.id);
    const peer = startPeer({
      ...source,
      peer: ref,
      zstd: options.zstd,
      maxConnectedClusters: own.maxConnectedClusters,
      sink: options.sink,
      successorOf: predecessor,
      onArrival: (family, action, changedAt) => progress.arrived(ref.name, family, action, changedAt),
      onBatch: (family) => options.onBatch(ref.name, family),
      onSynced: (family) => options.onSynced(ref.name, ref.id, family),
      room: options.room,
      log,
    });
    peers.set(ref.name, peer);
    peersById.set(ref.id, peer);
    sources.set(ref.name, source.etcd === etcd ? localSource : watchSource(source.etcd));
    for (const [family, { state }] of peer.families) progress.follow(ref.name, family, state);
  }

  /** The same cluster from another source, or with other families: what is known of it stays meanwhile. */
  function succeed(ref: PublishedPeer, source: PeerSource): void {
    const before = peers.get(ref.name);
    before?.stop();
    if (before !== undefined) progress.unfollow(ref.name);
    begin(ref, source, before);
  }

  function drain(name: string): void {
    const peer = peers.get(name);
    if (peer === undefined) return;
    log.info({ peer: name }, 'cluster left the mesh: removing what it published');
    peers.delete(name);
    peersById.delete(peer.id);
    drainedIds.add(peer.id);
    progress.unfollow(name);
    peer.drain();
  }

  function applyClusters(batch: SinkBatch, isSameStore: boolean): void {
    const changes = clusters.apply(batch, isSameStore);
    for (const name of changes.drain) if (!directIds.has(name)) drain(name);
    for (const ref of changes.start) {
      if (directIds.has(ref.name)) continue;
      log.info({ peer: ref.name, clusterId: ref.id }, 'cluster is in the mesh: following what it publishes');
      begin(ref, mirror);
    }
    for (const ref of changes.change) {
      if (directIds.has(ref.name)) continue;
      log.info({ peer: ref.name, families: ref.families }, 'cluster publishes other families than before');
      succeed(ref, mirror);
    }
    options.onClusters();
  }

  const clustersSource = startJudgedSource({
    etcd,
    prefix: CLUSTER_CONFIG_PREFIX,
    memory: options.memory,
    log: log.child({ family: 'cluster-config' }),
    signal: options.signal,
    apply: applyClusters,
    onSynced: options.onClusters,
  });

  // ---- clusters that are read without a mirror

  function acceptDirect(name: string, config: ClusterConfig, source: AcceptedSource): string | undefined {
    const { etcd: etcdOfPeer, lastHeartbeatAt } = source;
    const holder = peersById.get(config.id);
    if (holder !== undefined && holder.name !== name)
      return `cluster ${name} has cluster id ${config.id}, which cluster ${holder.name} has already`;
    const before = peers.get(name);
    if (before !== undefined && before.id !== config.id) drain(name);
    directIds.set(name, config.id);
    const { cached, syncedCanaries } = config.capabilities;
    const layout = cached === true ? 'cache' : 'state';
    log.info({ peer: name, clusterId: config.id, layout }, 'cluster is in the mesh: read from its own etcd');
    succeed(
      { name, id: config.id, families: agentFamilies(config) },
      { etcd: options.watched(etcdOfPeer), layout, hasCanaries: syncedCanaries === true, lastHeartbeatAt },
    );
    options.onClusters();
    return undefined;
  }

  function releaseDirect(name: string): void {
    if (!directIds.delete(name)) return;
    const before = peers.get(name);
    const mirrored = clusters.peers().get(name);
    if (before !== undefined && before.id === mirrored?.id) {
      log.info({ peer: name }, 'cluster is read from the mirror from here on');
      succeed(mirrored, mirror);
    } else {
      drain(name);
      if (mirrored !== undefined) begin(mirrored, mirror);
    }
    // Its id may have been wanted by another.
    applyClusters({ upserts: [], removes: [], revision: 0, kind: 'watch' }, true);
  }

  /** A configured cluster whose id is not known yet: any id may be its. */
  let isDirectPending = options.configDir !== undefined;
  function onDirectChange(): void {
    const isPending = (direct?.pending().size ?? 1) > 0;
    if (isPending === isDirectPending) return;
    isDirectPending = isPending;
    options.onClusters();
  }

  const direct: Direct | undefined =
    options.configDir === undefined
      ? undefined
      : startDirect({
          dir: options.configDir,
          own,
          accept: acceptDirect,
          suspend: (name) => peers.get(name)?.stop(),
          release: releaseDirect,
          onChange: onDirectChange,
          clock,
          log,
        });

  return {
    byId: (clusterId) => peersById.get(clusterId),
    isGone(clusterId) {
      if (clusterId === own.id || peersById.has(clusterId)) return false;
      if (drainedIds.has(clusterId)) return true;
      // A config that was refused, or is yet to be read, may be that of any id: then absence proves nothing.
      return clustersSource.trustsAbsence() && clusters.refused().size === 0 && !isDirectPending;
    },
    isComplete: () => clustersSource.isSynced() && clusters.held().size === 0 && !isDirectPending,
    held: clusters.held,
    missing() {
      const missing = clustersSource.isSynced() ? [] : ['the list of clusters'];
      for (const name of clusters.held()) missing.push(`cluster ${name} in the rebuilt etcd`);
      for (const [name, reason] of direct?.pending() ?? []) missing.push(`cluster ${name}, read directly (${reason})`);
      return missing;
    },
    problems() {
      const refused = [...clusters.refused()].filter(([name]) => !directIds.has(name));
      const problems = refused.map(([, reason]) => `refused: ${reason}`);
      problems.push(...(direct?.problems() ?? []));
      for (const name of clusters.held())
        problems.push(`cluster ${name} is kept as it was before etcd was rebuilt; the new etcd does not have it yet`);
      if (options.serviceV2 === 'only-endpointslice')
        for (const [name, { families }] of peers)
          if (!families.has('endpointslices'))
            problems.push(
              `cluster ${name} publishes no endpoint slices, and nothing else is taken here (clustermesh.serviceV2: only-endpointslice): its backends are missing`,
            );
      return problems;
    },
    remotes() {
      const directly = direct?.statuses();
      return [...peers.values()].map(({ name, families, isSynced }) => {
        const source = sources.get(name) ?? localSource;
        const count = (family: AgentFamily) => families.get(family)?.state().count ?? 0;
        return {
          name,
          source: source === localSource ? 'mirror' : 'direct',
          ready: source.etcd.connected && isSynced(...families.keys()),
          nodes: count('nodes'),
          services: count('services'),
          endpoints: count('ip'),
          failures: source.failures,
          lastFailureWallMs: source.lastFailureWallMs,
          quorumErrors: directly?.get(name)?.quorumErrors ?? 0,
        };
      });
    },
    connection: clustersSource.connection,
    async close() {
      for (const peer of peers.values()) peer.stop();
      await direct?.close();
    },
  };
}
