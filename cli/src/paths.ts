/** What really gets from the nodes of one cluster to those of the other: asked of the agents that can be asked from here. */
import { isIP } from 'node:net';
import type { AgentMethods, ClusterFacts, NodeFacts, PathProbe, PreflightCheck } from '@clustermesh/contract';
import { dialRpc } from '@clustermesh/runtime';
import type { Side } from './side.ts';

/** Nodes of one cluster share their networks: a few of each side, spread over the list, stand for all. */
const SAMPLE = 4;
const AGENT_TIMEOUT_MS = 15_000;

/** One node's way to another; `error`: why it could not be tried. */
export interface Path {
  readonly from: string;
  readonly to: string;
  /** What both devices are configured for. */
  readonly expectedMtu: number;
  readonly probe: PathProbe;
}

export async function pathsCheck(side: Side, own: ClusterFacts, peer: ClusterFacts): Promise<PreflightCheck> {
  const agents = sample(own.nodes.filter(({ name }) => side.context.agents[name] !== undefined));
  const targets = sample(peer.nodes.filter(({ address }) => isIP(address) !== 0));
  const paths = await Promise.all(agents.map((node) => askAgent(side.context.agents[node.name]!, node, targets)));
  return judgePaths(own.cluster.name, peer.cluster.name, paths.flat());
}

function sample(nodes: readonly NodeFacts[]): NodeFacts[] {
  const step = Math.max(1, nodes.length / SAMPLE);
  return Array.from({ length: Math.min(SAMPLE, nodes.length) }, (_, index) => nodes[Math.floor(index * step)]!);
}

async function askAgent(address: string, node: NodeFacts, targets: readonly NodeFacts[]): Promise<Path[]> {
  const client = dialRpc<AgentMethods>('agent', address);
  const mtuTo = (target: NodeFacts) => Math.min(node.mtu || 1500, target.mtu || 1500);
  const path = (target: NodeFacts, probe: PathProbe): Path => ({
    ...{ from: node.name, to: target.name, expectedMtu: mtuTo(target), probe },
  });
  try {
    const { paths } = await client.ProbePaths(
      { paths: targets.map((target) => ({ address: target.address, mtu: mtuTo(target) })) },
      { timeoutMs: AGENT_TIMEOUT_MS },
    );
    return targets.map((target, index) => path(target, paths[index]!));
  } catch {
    // An agent that does not answer is doctor's to explain.
    return [];
  } finally {
    client.close();
  }
}

/** A warning at most: a firewall may drop echo requests and let tunnels pass. */
export function judgePaths(own: string, peer: string, paths: readonly Path[]): PreflightCheck {
  const check = (state: PreflightCheck['state'], what: string, why = '', fix = ''): PreflightCheck => ({
    ...{ name: 'paths', state, what, why, fix, code: '' },
  });
  const between = ({ from, to }: Path) => `from ${from} of ${own} to ${to} of ${peer}`;
  const tried = paths.filter(({ probe }) => probe.error === '');
  if (tried.length === 0) {
    const reason = paths[0]?.probe.error ?? `no agent of ${own} can be asked from here, or ${peer} has no nodes`;
    return check('ok', `not measured: ${reason}`);
  }
  const silent = tried.filter(({ probe }) => probe.mtu === 0);
  if (silent.length > 0)
    return check(
      'warning',
      `no echo comes back ${between(silent[0]!)} (${silent[0]!.probe.address})${more(silent.length, tried.length)}`,
      'traffic between pods of the two clusters goes from node to node',
      'check routes and firewalls between these nodes. A firewall that drops ICMP makes this a false alarm',
    );
  const narrow = tried.filter(({ probe, expectedMtu }) => probe.mtu < expectedMtu);
  if (narrow.length > 0) {
    const least = narrow.reduce((a, b) => (b.probe.mtu < a.probe.mtu ? b : a));
    return check(
      'warning',
      `${between(least)} packets of ${least.expectedMtu} bytes are lost, those of ${least.probe.mtu} arrive${more(narrow.length, tried.length)}`,
      'both nodes send packets that what lies between them does not carry: connections open, and then stand still',
      `set the MTU of these nodes' devices to ${least.probe.mtu}, or raise it on the way`,
    );
  }
  const [first] = tried;
  return check(
    'ok',
    `packets of ${first!.expectedMtu} bytes arrive unbroken on all of ${tried.length} ways that were tried`,
  );
}

const more = (count: number, of: number): string => (of > 1 ? ` (${count} of ${of} ways)` : '');
