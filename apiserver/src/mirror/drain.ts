/**
 * Removes a peer from this cluster's etcd, in the one order in which no reader ever takes a half-deleted list for the truth:
 * config → wait until every live agent has let go, and readers that cannot say so have had the time to → canaries → data → the
 * status record (last: as long as it is there, a restarted apiserver knows that there is something left to drain).
 */
import {
  type AgentStatus,
  CLUSTER_CONFIG_PREFIX,
  clusterConfigKey,
  dataPrefix,
  keyName,
  MeshError,
  PEERS_PREFIX,
  peerKey,
  rfc3339,
  SYNCED_PREFIX,
  syncedPrefix,
  WIRE_FAMILIES,
} from '@clustermesh/contract';
import type { Etcd, TxnOp } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import { fencedWrite, type WriteRight } from '../write-right.ts';

export interface DrainOptions {
  readonly cluster: string;
  readonly local: Etcd;
  readonly right: WriteRight;
  readonly agents: () => readonly AgentStatus[];
  /** Bound of the wait for the agents. */
  readonly waitMs: number;
  /** How long others than our agents are given, who see the config go but cannot acknowledge it (wire-contract §4.4). 0: there are none. */
  readonly foreignWaitMs: number;
  /** The record that agents and operators find while the drain goes on. */
  readonly status: () => string;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
  /** For the status: what is being waited for. */
  readonly onStep: (step: string) => void;
}

/** Live agents that still have something of the peer applied. */
export function agentsHolding(agents: readonly AgentStatus[], cluster: string): readonly string[] {
  return agents.filter((agent) => Object.hasOwn(agent.applied, cluster)).map((agent) => agent.node);
}

const POLL_MS = 100;

/** Idempotent: begun again after any failure, it goes through the same steps. */
export async function drainPeer(options: DrainOptions): Promise<void> {
  const { cluster, local, clock, log, signal } = options;
  const write = (...operations: readonly TxnOp[]) =>
    fencedWrite(local, options.right, operations, { attempted: `draining cluster ${cluster}`, signal });

  options.onStep('removing its config');
  // First: whatever happens from here on, the record says that there is something to drain.
  await write({ put: peerKey(cluster), value: options.status() }, { delete: clusterConfigKey(cluster) });

  const removedAt = clock.nowMs();
  const foreignUntil = rfc3339(clock.wallMs() + options.foreignWaitMs);
  for (;;) {
    const holding = agentsHolding(options.agents(), cluster);
    const elapsedMs = clock.nowMs() - removedAt;
    const waitsForAgents = holding.length > 0 && elapsedMs < options.waitMs;
    if (!waitsForAgents && elapsedMs >= options.foreignWaitMs) {
      if (holding.length > 0)
        log.warn(
          { cluster, nodes: holding },
          'agents have not let go of a removed peer in time; its data goes all the same',
        );
      break;
    }
    options.onStep(
      waitsForAgents
        ? `waiting for ${holding.join(', ')} to let go of it`
        : `waiting until ${foreignUntil} for readers that cannot say that they have let go of it (mirror.foreignReaders)`,
    );
    await clock.sleep(POLL_MS, signal);
    if (signal.aborted) throw new MeshError({ code: 'cancelled', message: `draining cluster ${cluster}: stopped` });
  }

  options.onStep('removing its data');
  await write({ deletePrefix: syncedPrefix(cluster) });
  for (const family of WIRE_FAMILIES) await write({ deletePrefix: dataPrefix(cluster, family, 'cache') });
  await write({ delete: peerKey(cluster) });
  log.info({ cluster }, 'peer drained');
}

/** Clusters of which anything is mirrored here, found by the few keys that every mirror has. */
export async function findMirrored(local: Etcd, own: string, signal: AbortSignal): Promise<Set<string>> {
  const clusters = new Set<string>();
  for (const prefix of [PEERS_PREFIX, CLUSTER_CONFIG_PREFIX, SYNCED_PREFIX]) {
    for (const kv of (await local.range(prefix, { signal })).kvs) {
      const cluster = keyName(kv.key, prefix)?.split('/')[0];
      if (cluster !== undefined && cluster !== own) clusters.add(cluster);
    }
  }
  return clusters;
}
