/**
 * The local etcd as the agent sees it: this cluster's services, slices and namespaces, its nodes, and every peer's mirror.
 *
 *   cilium/cluster-config/ ──► clusters ──► per peer: nodes, services, ip, identities (cache layout, each behind its canary)
 *   clustermesh/local/{services,endpointslices,namespaces}/ (each behind its canary)
 *   clustermesh/nodes/     ──► node records (each node its own canary)
 *                                   │ rows                       │ "spoke", "left"
 *                                   ▼                            ▼
 *                               MeshSink                     MeshView (what is settled)
 *
 * Rows are told to the sink as they come; nothing here waits, and nothing is withdrawn because etcd is away.
 */
import {
  CLUSTER_CONFIG_PREFIX,
  type ClusterConfig,
  decodeLocalNamespace,
  decodeLocalService,
  decodeLocalSlice,
  type EndpointRecord,
  FAMILIES,
  type Layout,
  LOCAL_FAMILIES,
  type LocalFamily,
  type LocalNamespace,
  type LocalService,
  type LocalSlice,
  localCanaryKey,
  localPrefix,
  type MaxConnectedClusters,
  NODES_PREFIX,
  type NodeRecord,
} from '@clustermesh/contract';
import type { Etcd, SinkBatch } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import { createClusters } from './clusters.ts';
import { type Direct, startDirect } from './direct.ts';
import { type Family, startFamily } from './family.ts';
import { startJudgedSource } from './judged-source.ts';
import { limitLists } from './list-gate.ts';
import { createNodeRecords } from './node-records.ts';
import { type Peer, type PeerRef, type PeerSink, startPeer } from './peer.ts';
import { createProgress, type FamilyProgress, type MeshChanges } from './progress.ts';
import type { StoreMemory } from './store-memory.ts';

export interface MeshSink extends PeerSink {
  service(name: string, service: LocalService | undefined): void;
  slice(name: string, slice: LocalSlice | undefined): void;
  /** Another node of this cluster. */
  node(name: string, record: NodeRecord | undefined): void;
  nodeEndpoint(node: string, id: string, endpoint: EndpointRecord | undefined, record: NodeRecord | undefined): void;
  /** A source spoke or left: what `MeshView` answers about this cluster and family (default: about any) may have changed. */
  sourcesChanged(clusterId?: number, family?: string): void;
  /** Rows changed: ask for a pass. */
  changed(): void;
}

/** What has been heard since the start of this process. */
export interface MeshView {
  /** Everything that a cluster has to say in this family has been heard. Own cluster: its services and slices. */
  isSettled(clusterId: number, family: 'services' | 'ip' | 'nodes'): boolean;
  /** The cluster is known not to be in the mesh. */
  isGone(clusterId: number): boolean;
  /** The node of this cluster that has this address has said all, or is known not to be there. */
  isNodeSettled(ip: string): boolean;
}

/** A peer as it is followed. */
export interface RemoteState {
  readonly name: string;
  readonly source: 'mirror' | 'direct';
  /** Its etcd (or the one of its mirror) answers, and it has been heard out in all families. */
  readonly ready: boolean;
  readonly nodes: number;
  readonly services: number;
  readonly endpoints: number;
  /** Connections lost since it is followed from there. */
  readonly failures: number;
  readonly lastFailureWallMs: number | undefined;
  readonly quorumErrors: number;
}

export interface Mesh extends MeshView {
  /** One entry per (cluster, family), the own cluster under its own name. */
  progress(): FamilyProgress[];
  takeChanges(): MeshChanges;
  remotes(): RemoteState[];
  /** Every source known has synced; `missing` names those that have not. */
  isComplete(): boolean;
  missing(): string[];
  problems(): string[];
  /** To be called when no restored row is left: unless something is held here, all there is came from this store. */
  rememberStore(): void;
  close(): Promise<void>;
}

export interface MeshOptions {
  readonly etcd: Etcd;
  readonly own: {
    readonly name: string;
    readonly id: number;
    readonly maxConnectedClusters: MaxConnectedClusters;
    readonly node: string;
  };
  /** Remote clusters to be read from their own etcds (wire-contract §5.1). */
  readonly configDir?: string | undefined;
  readonly memory: StoreMemory;
  readonly sink: MeshSink;
  readonly clock: Clock;
  readonly log: Log;
}

interface Source {
  readonly etcd: Etcd;
  failures: number;
  lastFailureWallMs: number | undefined;
}

export function startMesh(options: MeshOptions): Mesh {
  const { own, memory, sink, clock, log } = options;
  const etcd = limitLists(options.etcd);
  const stop = new AbortController();
  const peers = new Map<string, Peer>();
  const peersById = new Map<number, Peer>();

  const progress = createProgress(clock);
  const batchOf = (peer: string, family: string) => {
    progress.touch(peer, family);
    sink.changed();
  };
  const syncedOf = (peer: string, clusterId: number, family: string) => {
    progress.synced(peer, family);
    onSynced(clusterId, family);
  };
  const onSynced = (clusterId?: number, family?: string) => {
    sink.sourcesChanged(clusterId, family);
    sink.changed();
  };

  // ---- this cluster: services, slices, namespaces

  const decodeLocal = {
    services: decodeLocalService,
    endpointslices: decodeLocalSlice,
    namespaces: decodeLocalNamespace,
  };
  const onLocal: { [F in LocalFamily]: (name: string, value: never) => void } = {
    services: (name: string, value: LocalService | undefined) => sink.service(name, value),
    endpointslices: (name: string, value: LocalSlice | undefined) => sink.slice(name, value),
    // Counted and reported; no consumer before policy. The apiserver has already judged which services are global.
    namespaces: (_name: string, _value: LocalNamespace | undefined) => {},
  };
  const local = Object.fromEntries(
    LOCAL_FAMILIES.map((family) => [
      family,
      startFamily({
        etcd,
        prefix: localPrefix(family),
        canaryKey: localCanaryKey(family),
        log: log.child({ family }),
        signal: stop.signal,
        decode: (_name, text) => decodeLocal[family](text),
        onRow: onLocal[family] as (name: string, value: unknown) => void,
        onBatch: () => batchOf(own.name, family),
        onSynced: () => syncedOf(own.name, own.id, family),
      }),
    ]),
  ) as Record<LocalFamily, Family>;
  for (const family of LOCAL_FAMILIES) progress.follow(own.name, family, local[family].state);

  // ---- this cluster: nodes and their endpoints

  const nodes = createNodeRecords();

  function tellNode(name: string): void {
    // The own node's truth is on its own disk, not in etcd.
    if (name === own.node) return;
    const state = nodes.get(name);
    sink.node(name, state?.record);
    for (const [id, endpoint] of state?.endpoints ?? []) sink.nodeEndpoint(name, id, endpoint, state?.record);
  }

  function applyNodes(batch: SinkBatch, isSameStore: boolean): void {
    const changes = nodes.apply(batch, isSameStore);
    for (const { node, endpoint } of changes.endpoints) {
      if (node === own.node) continue;
      const state = nodes.get(node);
      sink.nodeEndpoint(node, endpoint, state?.endpoints.get(endpoint), state?.record);
    }
    for (const node of changes.nodes) tellNode(node);
    // A canary may have come with it.
    if (changes.nodes.size > 0) sink.sourcesChanged(own.id);
    batchOf(own.name, 'nodes');
  }

  const nodesSource = startJudgedSource({
    etcd,
    prefix: NODES_PREFIX,
    memory,
    log: log.child({ family: 'nodes' }),
    signal: stop.signal,
    apply: applyNodes,
    onSynced: () => syncedOf(own.name, own.id, 'nodes'),
  });
  progress.follow(own.name, 'nodes', () => ({
    synced: nodesSource.isSynced(),
    current: nodesSource.isCurrent(),
    revision: nodesSource.revision(),
    count: nodes.count(),
    quarantined: nodes.quarantined().size,
    lastQuarantineReason: [...nodes.quarantined().values()].at(-1),
  }));

  // ---- peers

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

  function begin(
    ref: PeerRef,
    source: { readonly etcd: Etcd; readonly layout: Layout; readonly hasCanaries: boolean },
    predecessor?: Peer,
  ): void {
    drainedIds.delete(ref.id);
    const peer = startPeer({
      ...source,
      peer: ref,
      maxConnectedClusters: own.maxConnectedClusters,
      sink,
      successorOf: predecessor,
      onArrival: (family, action, changedAt) => progress.arrived(ref.name, family, action, changedAt),
      onBatch: (family) => batchOf(ref.name, family),
      onSynced: (family) => syncedOf(ref.name, ref.id, family),
      log,
    });
    peers.set(ref.name, peer);
    peersById.set(ref.id, peer);
    sources.set(ref.name, source.etcd === etcd ? localSource : watchSource(source.etcd));
    for (const family of FAMILIES) progress.follow(ref.name, family, peer.families[family].state);
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
      begin(ref, { etcd, layout: 'cache', hasCanaries: true });
    }
    sink.sourcesChanged();
    sink.changed();
  }

  const clustersSource = startJudgedSource({
    etcd,
    prefix: CLUSTER_CONFIG_PREFIX,
    memory,
    log: log.child({ family: 'cluster-config' }),
    signal: stop.signal,
    apply: applyClusters,
    onSynced: () => onSynced(),
  });
  // ---- clusters that are read without a mirror

  function acceptDirect(name: string, config: ClusterConfig, source: Etcd): string | undefined {
    const holder = peersById.get(config.id);
    if (holder !== undefined && holder.name !== name)
      return `cluster ${name} has cluster id ${config.id}, which cluster ${holder.name} has already`;
    const before = peers.get(name);
    if (before !== undefined && before.id !== config.id) drain(name);
    before?.stop();
    if (before !== undefined) progress.unfollow(name);
    directIds.set(name, config.id);
    const { cached, syncedCanaries } = config.capabilities;
    const layout = cached === true ? 'cache' : 'state';
    log.info({ peer: name, clusterId: config.id, layout }, 'cluster is in the mesh: read from its own etcd');
    begin(
      { name, id: config.id },
      { etcd: limitLists(source), layout, hasCanaries: syncedCanaries === true },
      before?.id === config.id ? before : undefined,
    );
    sink.sourcesChanged();
    sink.changed();
    return undefined;
  }

  function releaseDirect(name: string): void {
    if (!directIds.delete(name)) return;
    const before = peers.get(name);
    const mirrored = clusters.peers().get(name);
    if (before !== undefined && before.id === mirrored?.id) {
      log.info({ peer: name }, 'cluster is read from the mirror from here on');
      before.stop();
      progress.unfollow(name);
      begin(mirrored, { etcd, layout: 'cache', hasCanaries: true }, before);
    } else {
      drain(name);
      if (mirrored !== undefined) begin(mirrored, { etcd, layout: 'cache', hasCanaries: true });
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
    onSynced();
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

  const isComplete = () => {
    if (!progress.isSynced() || !clustersSource.isSynced() || clusters.held().size > 0) return false;
    if (isDirectPending) return false;
    for (const [name, node] of nodes.all()) if (!node.synced && name !== own.node) return false;
    return true;
  };

  return {
    isSettled(clusterId, family) {
      if (clusterId === own.id) return local.services.state().synced && local.endpointslices.state().synced;
      return peersById.get(clusterId)?.families[family].state().synced ?? false;
    },
    isGone(clusterId) {
      if (clusterId === own.id || peersById.has(clusterId)) return false;
      if (drainedIds.has(clusterId)) return true;
      // A config that was refused, or is yet to be read, may be that of any id: then absence proves nothing.
      return clustersSource.trustsAbsence() && clusters.refused().size === 0 && !isDirectPending;
    },
    isNodeSettled(ip) {
      for (const [, node] of nodes.all()) if (node.record?.internalIp === ip) return node.synced;
      return nodesSource.trustsAbsence();
    },
    progress: progress.all,
    takeChanges: progress.takeChanges,
    remotes() {
      const directly = direct?.statuses();
      return [...peers.values()].map(({ name, families }) => {
        const source = sources.get(name) ?? localSource;
        return {
          name,
          source: source === localSource ? 'mirror' : 'direct',
          ready: source.etcd.connected && FAMILIES.every((family) => families[family].state().synced),
          nodes: families.nodes.state().count,
          services: families.services.state().count,
          endpoints: families.ip.state().count,
          failures: source.failures,
          lastFailureWallMs: source.lastFailureWallMs,
          quorumErrors: directly?.get(name)?.quorumErrors ?? 0,
        };
      });
    },
    isComplete,
    missing() {
      const missing = progress.unsynced();
      if (!clustersSource.isSynced()) missing.push('the list of clusters');
      for (const [name, node] of nodes.all())
        if (!node.synced && name !== own.node) missing.push(`what node ${name} publishes`);
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
      if (nodes.heldCount() > 0)
        problems.push(
          `${nodes.heldCount()} rows of other nodes are kept as they were before etcd was rebuilt; their agents have not written again yet`,
        );
      for (const family of progress.all()) {
        if (family.quarantined > 0)
          problems.push(
            `${family.quarantined} ${family.family} of ${family.peer} are quarantined; last: ${family.lastQuarantineReason}`,
          );
      }
      return problems;
    },
    rememberStore() {
      const { connection } = etcd;
      if (
        connection === undefined ||
        memory.isRemembered(connection) ||
        nodesSource.connection() !== connection ||
        clustersSource.connection() !== connection
      )
        return;
      if (clusters.held().size > 0 || nodes.heldCount() > 0) return;
      memory.remember(connection).catch((error: unknown) => log.debug({ err: error }, 'store not marked yet'));
    },
    async close() {
      stop.abort();
      for (const peer of peers.values()) peer.stop();
      await direct?.close();
    },
  };
}
