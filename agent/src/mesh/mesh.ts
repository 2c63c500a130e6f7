/**
 * The local etcd as the agent sees it: this cluster's services, slices and namespaces, its nodes, and every peer's mirror.
 *
 *   clustermesh/local/     ──► own-cluster: services, slices, namespaces
 *   clustermesh/nodes/     ──► own-nodes: nodes and their endpoints
 *   cilium/cluster-config/ ──► peers: per cluster its nodes, services, slices, ip, identities; or from its own etcd
 *                                   │ rows                       │ "spoke", "left"
 *                                   ▼                            ▼
 *                               MeshSink                     MeshView (what is settled)
 *
 * Rows are told to the sink as they come, those of peers as far as there is room; nothing is withdrawn because etcd is away.
 */
import { type Compression, LOCAL_FAMILIES, type MaxConnectedClusters } from '@clustermesh/contract';
import { type Etcd, type Observe, observedEtcd } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import type { ServiceV2 } from '../services/choice.ts';
import type { Room } from './family.ts';
import { limitLists } from './list-gate.ts';
import { startOwnCluster } from './own-cluster.ts';
import { startOwnNodes } from './own-nodes.ts';
import { startPeers } from './peers.ts';
import { createProgress } from './progress.ts';
import type { StoreMemory } from './store-memory.ts';
import type { Mesh, MeshSink } from './types.ts';

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
  /** Which of the two forms in which backends of services are published is taken, where there are both. */
  readonly serviceV2: ServiceV2;
  readonly memory: StoreMemory;
  readonly zstd: Compression;
  readonly sink: MeshSink;
  /** A family whose watch shows no sign of life for longer is named in the problems. */
  readonly staleAfterMs: number;
  /** Rows of peers, of which there may be hundreds of thousands, are taken in as far as there is room for them. */
  readonly room?: Room | undefined;
  /** Times the requests to etcds. */
  readonly observe: Observe;
  readonly clock: Clock;
  readonly log: Log;
}

export function startMesh(options: MeshOptions): Mesh {
  const { own, memory, sink, clock, log } = options;
  const watched = (of: Etcd) => limitLists(observedEtcd(of, options.observe, clock.nowMs));
  const etcd = watched(options.etcd);
  const stop = new AbortController();
  const { signal } = stop;
  const progress = createProgress(clock);

  const onBatch = (cluster: string, family: string) => {
    progress.touch(cluster, family);
    sink.changed();
  };
  const onSynced = (cluster: string, clusterId: number, family: string) => {
    progress.synced(cluster, family);
    sink.sourcesChanged(clusterId, family);
    sink.changed();
  };

  const cluster = startOwnCluster({
    etcd,
    sink,
    onBatch: (family) => onBatch(own.name, family),
    onSynced: (family) => onSynced(own.name, own.id, family),
    log,
    signal,
  });
  for (const family of LOCAL_FAMILIES) progress.follow(own.name, family, cluster[family].state);

  const nodes = startOwnNodes({
    etcd,
    self: own.node,
    memory,
    sink,
    onNodes: () => sink.sourcesChanged(own.id),
    onBatch: () => onBatch(own.name, 'nodes'),
    onSynced: () => onSynced(own.name, own.id, 'nodes'),
    log,
    signal,
  });
  progress.follow(own.name, 'nodes', nodes.state);

  const peers = startPeers({
    etcd,
    own,
    configDir: options.configDir,
    serviceV2: options.serviceV2,
    memory,
    zstd: options.zstd,
    sink,
    watched,
    progress,
    onBatch,
    onSynced,
    room: options.room,
    onClusters() {
      sink.sourcesChanged();
      sink.changed();
    },
    clock,
    log,
    signal,
  });

  /** Families whose watches show nothing, though all may be well with the connection: another's big answers are in their way. */
  function staleProblems(): string[] {
    const stale = new Map<string, string[]>();
    for (const { peer, family, lastProofMs } of progress.all())
      if (lastProofMs !== undefined && clock.nowMs() - lastProofMs > options.staleAfterMs)
        stale.set(peer, [...(stale.get(peer) ?? []), family]);
    return [...stale].map(
      ([peer, families]) =>
        `no sign of life of ${families.join(', ')} of ${peer} for more than ${options.staleAfterMs / 1000} s: what is known of them may be old`,
    );
  }

  return {
    isSettled(clusterId, family) {
      if (clusterId === own.id) {
        if (family === 'identities') return nodes.state().synced && nodes.unsynced().length === 0;
        return cluster.services.state().synced && cluster.endpointslices.state().synced;
      }
      const peer = peers.byId(clusterId);
      if (peer === undefined) return false;
      return family === 'services' ? peer.isSynced('services', 'endpointslices') : peer.isSynced(family);
    },
    arePoliciesHeard: () => cluster.policies.state().synced && cluster.namespaces.state().synced,
    areSlicesHeard: (clusterId) => peers.byId(clusterId)?.areSlicesHeard() ?? false,
    isGone: peers.isGone,
    isNodeSettled: nodes.isSettled,
    progress: progress.all,
    takeChanges: progress.takeChanges,
    waiting: progress.waiting,
    remotes: peers.remotes,
    isComplete: () => progress.isSynced() && peers.isComplete() && nodes.unsynced().length === 0,
    missing: () => [
      ...progress.unsynced(),
      ...nodes.unsynced().map((name) => `what node ${name} publishes`),
      ...peers.missing(),
    ],
    problems() {
      const problems = [...peers.problems(), ...staleProblems()];
      if (nodes.heldCount() > 0)
        problems.push(
          `${nodes.heldCount()} rows of other nodes are kept as they were before etcd was rebuilt; their agents have not written again yet`,
        );
      for (const { quarantined, family, peer, lastQuarantineReason, held } of progress.all()) {
        if (held > 0)
          problems.push(
            `${held} ${family} of ${peer} are kept though its etcd has them no more: its apiserver was not heard for a while, and they may only have gone with it`,
          );
        if (quarantined > 0)
          problems.push(`${quarantined} ${family} of ${peer} are quarantined; last: ${lastQuarantineReason}`);
      }
      return problems;
    },
    rememberStore() {
      const { connection } = etcd;
      if (
        connection === undefined ||
        memory.isRemembered(connection) ||
        nodes.connection() !== connection ||
        peers.connection() !== connection
      )
        return;
      if (peers.held().size > 0 || nodes.heldCount() > 0) return;
      memory.remember(connection).catch((error: unknown) => log.debug({ err: error }, 'store not marked yet'));
    },
    async close() {
      stop.abort();
      await peers.close();
    },
  };
}
