/** The status of a cluster, composed from what its parts know. Pure. */
import {
  AGENT_FAMILIES,
  type AgentStatus,
  type ClusterInfo,
  type ClusterStatus,
  type FamilyStatus,
  hasApplied,
  type NodeInfo,
  type PeerInfo,
  type PeerStatus,
} from '@clustermesh/contract';

export interface StatusFacts {
  readonly cluster: ClusterInfo;
  readonly peers: readonly PeerStatus[];
  /** Live agents. */
  readonly agents: readonly AgentStatus[];
  /** Nodes that should have one. */
  readonly nodes: readonly string[];
  readonly problems: readonly string[];
  readonly counts: { readonly services: number; readonly globalServices: number; readonly endpoints: number };
  readonly etcdConnected: boolean;
  readonly etcdError: string;
  readonly redisConnected: boolean;
  readonly meshDisabled: boolean;
}

/** gRPC knows no absent number: -1 stands for "there was none yet". */
const NO_AGE = -1;

export function composeStatus(facts: StatusFacts): ClusterStatus {
  return {
    cluster: facts.cluster,
    etcdConnected: facts.etcdConnected,
    etcdError: facts.etcdError,
    redisConnected: facts.redisConnected,
    peers: [...facts.peers].sort((a, b) => compare(a.cluster, b.cluster)).map((peer) => peerInfo(peer, facts.agents)),
    nodes: nodeInfos(facts.nodes, facts.agents),
    problems: facts.problems,
    localServices: facts.counts.services,
    globalServices: facts.counts.globalServices,
    localEndpoints: facts.counts.endpoints,
    meshDisabled: facts.meshDisabled,
  };
}

function peerInfo(peer: PeerStatus, agents: readonly AgentStatus[]): PeerInfo {
  const families = Object.entries(peer.families).map(
    ([family, state]): FamilyStatus => ({
      family,
      synced: state.synced,
      count: state.count,
      revision: state.revision,
      quarantined: state.quarantined,
      lastQuarantineReason: state.lastQuarantineReason ?? '',
      nodesApplied: agents.filter(
        (agent) => !isApplied(family) || hasApplied(agent, peer.cluster, family, state.revision),
      ).length,
    }),
  );
  return {
    name: peer.cluster,
    id: peer.clusterId,
    connected: peer.connected,
    ready: peer.ready,
    lastProofAgeMs: peer.lastProofAgeMs ?? NO_AGE,
    error: peer.error ?? '',
    families,
    nodesApplied:
      families.length === 0
        ? 0
        : agents.filter((agent) =>
            Object.entries(peer.families).every(
              ([family, state]) => !isApplied(family) || hasApplied(agent, peer.cluster, family, state.revision),
            ),
          ).length,
  };
}

/** Agents take nothing from the other families, which are mirrored for other readers. */
const isApplied = (family: string) => (AGENT_FAMILIES as readonly string[]).includes(family);

function nodeInfos(expected: readonly string[], agents: readonly AgentStatus[]): NodeInfo[] {
  const alive = new Map(agents.map((agent) => [agent.node, agent]));
  return [...new Set([...expected, ...alive.keys()])].sort(compare).map((name) => {
    const agent = alive.get(name);
    return agent === undefined
      ? { name, alive: false, version: '', problems: [] }
      : { name, alive: true, version: agent.version, problems: agent.problems };
  });
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
