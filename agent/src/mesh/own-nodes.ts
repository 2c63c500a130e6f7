/** The other nodes of this cluster and their endpoints, as their agents write them: `clustermesh/nodes/`, each node its own canary. */
import { NODES_PREFIX } from '@clustermesh/contract';
import type { Etcd, SinkBatch } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import type { FamilyState } from './family.ts';
import { startJudgedSource } from './judged-source.ts';
import { createNodeRecords } from './node-records.ts';
import type { StoreMemory } from './store-memory.ts';
import type { MeshSink } from './types.ts';

export interface OwnNodes {
  state(): FamilyState;
  /** Nodes whose agents have not said yet that their rows are complete. */
  unsynced(): string[];
  /** The node with this address has said all, or is known not to be there. */
  isSettled(ip: string): boolean;
  /** Rows kept although a rebuilt etcd does not have them yet. */
  heldCount(): number;
  /** The connection of the last complete list. */
  connection(): number | undefined;
}

export function startOwnNodes(options: {
  readonly etcd: Etcd;
  /** This node: its own truth is on its own disk, not in etcd. */
  readonly self: string;
  readonly memory: StoreMemory;
  readonly sink: Pick<MeshSink, 'node' | 'nodeEndpoint'>;
  /** A node's record or canary changed. */
  readonly onNodes: () => void;
  readonly onBatch: () => void;
  readonly onSynced: () => void;
  readonly log: Log;
  readonly signal: AbortSignal;
}): OwnNodes {
  const { self, sink } = options;
  const nodes = createNodeRecords();

  function tellNode(name: string): void {
    if (name === self) return;
    const state = nodes.get(name);
    sink.node(name, state?.record);
    for (const [id, endpoint] of state?.endpoints ?? []) sink.nodeEndpoint(name, id, endpoint, state?.record);
  }

  function apply(batch: SinkBatch, isSameStore: boolean): void {
    const changes = nodes.apply(batch, isSameStore);
    for (const { node, endpoint } of changes.endpoints) {
      if (node === self) continue;
      const state = nodes.get(node);
      sink.nodeEndpoint(node, endpoint, state?.endpoints.get(endpoint), state?.record);
    }
    for (const node of changes.nodes) tellNode(node);
    if (changes.nodes.size > 0) options.onNodes();
    options.onBatch();
  }

  const source = startJudgedSource({
    etcd: options.etcd,
    prefix: NODES_PREFIX,
    memory: options.memory,
    log: options.log.child({ family: 'nodes' }),
    signal: options.signal,
    apply,
    onSynced: options.onSynced,
  });

  return {
    state: () => ({
      synced: source.isSynced(),
      current: source.isCurrent(),
      revision: source.revision(),
      interruptions: source.interruptions(),
      lastProofMs: source.lastProofMs(),
      held: 0,
      count: nodes.count(),
      quarantined: nodes.quarantined().size,
      lastQuarantineReason: [...nodes.quarantined().values()].at(-1),
    }),
    unsynced: () => [...nodes.all()].flatMap(([name, node]) => (node.synced || name === self ? [] : [name])),
    isSettled(ip) {
      for (const [, node] of nodes.all())
        if (node.record?.internalIp === ip || node.record?.ipv6?.internalIp === ip) return node.synced;
      return source.trustsAbsence();
    },
    heldCount: nodes.heldCount,
    connection: source.connection,
  };
}
