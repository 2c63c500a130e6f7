/** What is wrong with this cluster and with the way to its peers. Changes nothing. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Diagnosis, MeshError, messageOf, type PreflightCheck } from '@clustermesh/contract';
import { certificateFacts } from '@clustermesh/pki';
import type { Log } from '@clustermesh/runtime';
import type { AgentView, EtcdView, LocalView, MirrorView, PeerDirectory } from '../ports.ts';
import { doubtful, passed, refused } from '../preflight/check.ts';
import { accessCheck } from './access.ts';
import { validityCheck } from './certificates.ts';
import { diagnosePeer } from './peer.ts';

export interface DoctorPorts {
  readonly own: { readonly name: string };
  readonly pkiDir: string;
  readonly directory: PeerDirectory;
  readonly mirror: MirrorView;
  readonly agents: AgentView;
  readonly local: LocalView;
  readonly etcd: EtcdView;
  readonly redisReachable: () => Promise<boolean>;
  /** Clusters that users.yaml lets in. */
  readonly admitted: () => readonly string[];
  /** Nodes that should have an agent. */
  readonly nodes: readonly string[];
  readonly log: Log;
  readonly wallMs: () => number;
  /** Per connection. Default 3 s. */
  readonly timeoutMs?: number;
}

const DEFAULT_TIMEOUT_MS = 3000;

/** This cluster, its nodes, and each peer (or the one that is named), in that order. */
export async function diagnose(ports: DoctorPorts, onlyPeer = ''): Promise<Diagnosis[]> {
  const { own } = ports;
  const peers = (await ports.directory.list()).filter((peer) => onlyPeer === '' || peer.name === onlyPeer);
  if (onlyPeer !== '' && peers.length === 0) {
    throw new MeshError({
      code: 'not-found',
      message: `diagnosing the way from ${own.name} to ${onlyPeer}: ${onlyPeer} is no peer of ${own.name}`,
      hint: `connect it: clustermesh connect --context ${own.name} --destination-context ${onlyPeer}`,
    });
  }
  const statuses = new Map(ports.mirror.peers().map((status) => [status.cluster, status]));
  const [cluster, ways] = await Promise.all([
    clusterChecks(ports),
    Promise.all(
      peers.map(async (peer) => ({
        subject: peer.name,
        checks: await diagnosePeer({
          ...{ own: own.name, peer, status: statuses.get(peer.name), nowMs: ports.wallMs() },
          ...{ timeoutMs: ports.timeoutMs ?? DEFAULT_TIMEOUT_MS, log: ports.log },
        }),
      })),
    ),
  ]);
  return [{ subject: own.name, checks: cluster }, ...nodeDiagnoses(ports), ...ways];
}

async function clusterChecks(ports: DoctorPorts): Promise<PreflightCheck[]> {
  const { own, etcd } = ports;
  const problems = ports.local.problems();
  return [
    etcd.connected()
      ? passed('etcd', 'connected')
      : refused('etcd', {
          code: 'etcd-unreachable',
          what: `not connected: ${etcd.lastError() || 'no answer yet'}`,
          why: 'nothing is published, and nothing of the peers reaches the nodes; what they have stays',
          fix: 'start etcd, or correct etcd in apiserver.yaml',
        }),
    (await ports.redisReachable())
      ? passed('redis', 'connected')
      : doubtful('redis', {
          what: 'unreachable',
          why: 'connect and disconnect wait for it; traffic does not need it',
          fix: 'start Redis, or correct redis in apiserver.yaml',
        }),
    ...certificateChecks(ports),
    accessCheck({ cluster: own.name, pkiDir: ports.pkiDir, admitted: ports.admitted(), nowMs: ports.wallMs() }),
    problems.length === 0
      ? passed('objects', 'no problem with manifests, annotations and nodes')
      : doubtful('objects', {
          what: `${problems.length === 1 ? '' : `${problems.length} problems, the first: `}${problems[0]}`,
          why: `what is wrong is left out, or its default is taken`,
          fix: `correct it; clustermesh status --context ${own.name} lists all`,
        }),
  ];
}

function certificateChecks({ own, pkiDir, wallMs }: DoctorPorts): PreflightCheck[] {
  return ['ca', 'server', 'admin'].map((name) => {
    const file = join(pkiDir, `${name}.crt`);
    const why =
      name === 'ca' ? 'every certificate of this cluster stands on it' : 'etcd and its clients refuse it then';
    const fix = `renew it: clustermesh pki init --cluster ${own.name} --dir ${pkiDir}`;
    try {
      const facts = certificateFacts(readFileSync(file, 'utf8'), file);
      return validityCheck(`certificate-${name}`, { ...facts, what: `${name}.crt of ${own.name}`, why, fix }, wallMs());
    } catch (error) {
      return refused(`certificate-${name}`, { code: 'tls', what: `${file}: ${messageOf(error)}`, why, fix });
    }
  });
}

function nodeDiagnoses({ own, agents, nodes }: DoctorPorts): Diagnosis[] {
  const alive = new Map(agents.agents().map((agent) => [agent.node, agent]));
  return [...new Set([...nodes, ...alive.keys()])].sort().map((node) => {
    const agent = alive.get(node);
    if (agent === undefined) {
      const finding = {
        code: 'unreachable' as const,
        what: `no sign of the agent of ${node}`,
        why: 'traffic there goes on with what its maps hold; changes do not reach it',
        fix: `start clustermesh-agent on ${node}, and look at its log`,
      };
      return { subject: `${own.name}/${node}`, checks: [refused('agent', finding)] };
    }
    const problems = agent.problems.map((problem) => {
      const isFull = /full|no space|capacity/i.test(problem);
      return doubtful(isFull ? 'map-pressure' : 'agent', {
        what: problem,
        why: isFull ? 'what does not fit is not reachable from this node' : 'this node lags behind what it should have',
        fix: isFull
          ? `raise datapath.mapSizes in agent.yaml of ${node}, and start the agent anew`
          : `look at the log of the agent of ${node}`,
      });
    });
    return {
      subject: `${own.name}/${node}`,
      checks: problems.length === 0 ? [passed('agent', `alive, version ${agent.version}`)] : problems,
    };
  });
}
