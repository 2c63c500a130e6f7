/**
 * Which clusters are in the mesh: `cilium/cluster-config/`, as the mirror keeps it. Pure: batches in, peers to start and to drain
 * out. A key deleted while we watch, or absent from a complete list of a known store, means that the cluster left; absent from a
 * rebuilt store it means nothing yet, and the peer is *held*.
 */
import {
  type AgentFamily,
  agentFamilies,
  CLUSTER_CONFIG_PREFIX,
  clusterNameProblem,
  decodeClusterConfig,
  keyName,
  type LocalClusterFacts,
  validatePeerConfig,
} from '@clustermesh/contract';
import type { SinkBatch } from '@clustermesh/kvstore';
import type { PublishedPeer } from './peer.ts';

export interface ClusterChanges {
  /** In order: drains come before starts, so that an id is free when its next owner comes. */
  readonly drain: readonly string[];
  readonly start: readonly PublishedPeer[];
  /** Peers that go on and publish other families than before. */
  readonly change: readonly PublishedPeer[];
}

export interface Clusters {
  apply(batch: SinkBatch, isSameStore: boolean): ClusterChanges;
  peers(): ReadonlyMap<string, PublishedPeer>;
  /** Peers kept although a rebuilt etcd does not have them yet. */
  held(): ReadonlySet<string>;
  /** Configs that were refused: cluster → reason. */
  refused(): ReadonlyMap<string, string>;
}

export function createClusters(
  own: LocalClusterFacts & { readonly name: string },
  /** Another cluster that has this id by way of its own etcd. */
  directHolder: (id: number, name: string) => string | undefined = () => undefined,
): Clusters {
  const peers = new Map<string, PublishedPeer>();
  const held = new Set<string>();
  const refused = new Map<string, string>();
  /** Last text of each key, so that a config refused for another's sake (its id was taken) is looked at again when that one goes. */
  const texts = new Map<string, string>();

  /** What the peer may join as, or why not. */
  function judge(
    name: string,
    text: string,
  ): { readonly id: number; readonly families: readonly AgentFamily[] } | { readonly reason: string } {
    const nameProblem = clusterNameProblem(name);
    if (nameProblem !== undefined) return { reason: nameProblem };
    const decoded = decodeClusterConfig(text);
    if (!decoded.ok) return decoded;
    const valid = validatePeerConfig(name, decoded.value, own);
    if (!valid.ok) return valid;
    if (decoded.value.capabilities.cached !== true)
      return { reason: `cluster ${name}: its config is not that of a mirror (capabilities.cached is missing)` };
    const rival = [...peers.values()].find((peer) => peer.id === decoded.value.id && peer.name !== name);
    if (rival !== undefined)
      return { reason: `cluster ${name} has cluster id ${rival.id}, which cluster ${rival.name} has already` };
    const holder = directHolder(decoded.value.id, name);
    if (holder !== undefined)
      return { reason: `cluster ${name} has cluster id ${decoded.value.id}, which cluster ${holder} has already` };
    return { id: decoded.value.id, families: agentFamilies(decoded.value) };
  }

  return {
    apply(batch, isSameStore) {
      const drain: string[] = [];
      const start: PublishedPeer[] = [];
      const change: PublishedPeer[] = [];

      const leave = (name: string) => {
        held.delete(name);
        if (peers.delete(name)) drain.push(name);
      };
      for (const key of batch.removes) {
        const name = keyName(key, CLUSTER_CONFIG_PREFIX);
        if (name === undefined) continue;
        texts.delete(name);
        refused.delete(name);
        if (batch.kind === 'watch' || isSameStore) leave(name);
        else if (peers.has(name)) held.add(name);
      }
      for (const row of batch.upserts) {
        const name = keyName(row.key, CLUSTER_CONFIG_PREFIX);
        if (name !== undefined && name !== own.name) texts.set(name, row.value.toString('utf8'));
      }
      // In name order, so that of two clusters with one id the same one is refused everywhere.
      for (const [name, text] of [...texts].sort(([a], [b]) => (a < b ? -1 : 1))) {
        const verdict = judge(name, text);
        if ('reason' in verdict) {
          // A peer that is already part of the mesh stays as it was: a config that went bad does not cut it off.
          refused.set(name, verdict.reason);
          continue;
        }
        refused.delete(name);
        held.delete(name);
        const before = peers.get(name);
        const goesOn = before?.id === verdict.id;
        if (goesOn && before.families.join() === verdict.families.join()) continue;
        if (before !== undefined && !goesOn) leave(name);
        const peer = { name, ...verdict };
        peers.set(name, peer);
        (goesOn ? change : start).push(peer);
      }
      return { drain, start, change };
    },
    peers: () => peers,
    held: () => held,
    refused: () => refused,
  };
}
