/** Whether the nodes of a peer can be reached from here. */
import { connect } from 'node:net';
import type { NodeFacts, PreflightCheck } from '@clustermesh/contract';
import { doubtful, passed } from './check.ts';

/** VXLAN's number, as TCP: nobody listens there, and a refusal is as good an answer as any. */
const PORT = 8472;
/** Nodes of one cluster share their networks: a few, spread over the list, stand for all. */
const SAMPLE = 16;

type Answer = 'reached' | 'no answer' | 'no route';

/** A warning at most: a firewall may let tunnels pass and nothing else. */
export async function nodesCheck(
  peer: string,
  nodes: readonly NodeFacts[],
  timeoutMs: number,
): Promise<PreflightCheck> {
  const name = 'nodes';
  const asked = sample(nodes);
  if (asked.length === 0) return passed(name, `${peer} has no nodes yet`);
  const answers = await Promise.all(asked.map(async (node) => ({ node, answer: await ask(node.address, timeoutMs) })));
  const missing = answers.filter(({ answer }) => answer !== 'reached');
  if (missing.length === 0)
    return passed(name, `${asked.length} of ${nodes.length} nodes of ${peer} were asked, and all answer`);
  const listed = missing.slice(0, 5).map(({ node, answer }) => `${node.name} (${node.address}): ${answer}`);
  return doubtful(name, {
    what: `${missing.length} of ${asked.length} nodes of ${peer} do not answer: ${listed.join(', ')}${missing.length > 5 ? ', …' : ''}`,
    why: 'traffic between pods of the two clusters goes from node to node',
    fix: `check routes and firewalls to these addresses; UDP port ${PORT} must pass. A firewall that drops TCP makes this a false alarm`,
  });
}

function sample(nodes: readonly NodeFacts[]): NodeFacts[] {
  const step = Math.max(1, nodes.length / SAMPLE);
  return Array.from({ length: Math.min(SAMPLE, nodes.length) }, (_, index) => nodes[Math.floor(index * step)]!);
}

function ask(address: string, timeoutMs: number): Promise<Answer> {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port: PORT, timeout: timeoutMs });
    const end = (answer: Answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once('connect', () => end('reached'));
    socket.once('timeout', () => end('no answer'));
    socket.once('error', (error: NodeJS.ErrnoException) => {
      const refused = error.code === 'ECONNREFUSED' || error.code === 'ECONNRESET';
      end(refused ? 'reached' : error.code === 'ETIMEDOUT' ? 'no answer' : 'no route');
    });
  });
}
