/** `clustermesh doctor`: what the apiserver finds, and what can be seen from here when it or an agent does not answer. */
import type { AgentMethods, Diagnosis, PreflightCheck } from '@clustermesh/contract';
import { dialRpc } from '@clustermesh/runtime';
import type { Context } from './contexts.ts';
import { isLost, type Side } from './side.ts';

/** The apiserver tries every peer itself; it needs more than the usual time. */
const AGENT_TIMEOUT_MS = 5000;

export async function doctor(side: Side, peer: string): Promise<Diagnosis[]> {
  const { context } = side;
  const agents = Object.entries(context.agents).map(async ([node, address]) => ({
    subject: `${context.cluster}/${node}`,
    checks: [await askAgent(node, address)],
  }));
  const found = await side.call('Diagnose', { peer }).catch((error: unknown) => {
    if (!isLost(error)) throw error;
    return { diagnoses: [{ subject: context.cluster, checks: [apiserverGone(context)] }] };
  });
  return merge([...found.diagnoses, ...(await Promise.all(agents))]);
}

/** What was found of one subject from two sides stands together. */
function merge(diagnoses: readonly Diagnosis[]): Diagnosis[] {
  const bySubject = new Map<string, PreflightCheck[]>();
  for (const { subject, checks } of diagnoses) bySubject.set(subject, [...(bySubject.get(subject) ?? []), ...checks]);
  return [...bySubject].map(([subject, checks]) => ({ subject, checks }));
}

function apiserverGone({ apiserver, file }: Context): PreflightCheck {
  return {
    name: 'apiserver',
    state: 'failed',
    code: 'unreachable',
    what: `it does not answer at ${apiserver}`,
    why: 'traffic goes on; nothing new is published, mirrored, connected or renewed',
    fix: `start clustermesh-apiserver, and look at its log; the address comes from ${file}`,
  };
}

async function askAgent(node: string, address: string): Promise<PreflightCheck> {
  const client = dialRpc<AgentMethods>('agent', address);
  const name = 'agent-socket';
  const bad = (what: string, why: string, fix: string): PreflightCheck => ({
    ...{ name, state: 'failed', code: 'unreachable', what, why, fix },
  });
  try {
    const status = await client.GetStatus({}, { timeoutMs: AGENT_TIMEOUT_MS });
    if (!status.etcdConnected) {
      return bad(
        `the agent is not connected to etcd: ${status.etcdError || 'no answer yet'}`,
        'traffic goes on with what the maps hold; changes do not reach this node',
        'look at etcd, and at the certificate of the node',
      );
    }
    return { name, state: 'ok', code: '', what: 'answers, connected to etcd', why: '', fix: '' };
  } catch {
    return bad(
      `the agent does not answer at ${address}`,
      'traffic goes on with what the maps hold; changes and new pods do not reach this node',
      `start clustermesh-agent on ${node}, and look at its log`,
    );
  } finally {
    client.close();
  }
}
