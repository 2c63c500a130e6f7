/** The whole preflight of one side: what it knows of a peer, judged, and the peer's addresses, tried. Changes nothing. */
import { type ClusterFacts, MeshError, type PreflightCheck, type PreflightRequest } from '@clustermesh/contract';
import { agreementChecks, type KnownPeer, type OwnCluster } from './agreement.ts';
import { doubtful, passed, refused } from './check.ts';
import { environmentChecks } from './environment.ts';
import { probeEndpoints } from './probe.ts';
import { nodesCheck } from './reach.ts';

export interface PreflightPorts {
  readonly own: OwnCluster;
  readonly facts: () => Promise<ClusterFacts>;
  readonly knownPeers: () => Promise<readonly KnownPeer[]>;
  readonly etcd: { connected(): boolean; lastError(): string };
  readonly redisReachable: () => Promise<boolean>;
  /** Per address. Default 3 s. */
  readonly timeoutMs?: number;
}

const DEFAULT_TIMEOUT_MS = 3000;

export async function runPreflight(ports: PreflightPorts, request: PreflightRequest): Promise<PreflightCheck[]> {
  const { peer } = request;
  const timeoutMs = ports.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  const [own, known, etcd, nodes, redis] = await Promise.all([
    ports.facts(),
    ports.knownPeers(),
    etcdCheck(peer, timeoutMs),
    nodesCheck(peer.cluster.name, peer.nodes, timeoutMs),
    ports.redisReachable(),
  ]);
  return [
    enabledCheck([own, peer]),
    ...agreementChecks(ports.own, peer.cluster, known),
    ...environmentChecks(own, peer, { offsetMs: request.clockOffsetMs, errorMs: request.clockErrorMs }),
    etcd,
    nodes,
    ownEtcdCheck(ports),
    redis
      ? passed('redis', 'Redis answers')
      : doubtful('redis', {
          what: `Redis of ${ports.own.name} is unreachable`,
          why: 'operations are kept there: a connect waits until it is back',
          fix: 'start Redis, or look at redis in apiserver.yaml',
        }),
  ];
}

function enabledCheck(both: readonly ClusterFacts[]): PreflightCheck {
  const disabled = both.filter(({ meshDisabled }) => meshDisabled).map(({ cluster }) => cluster.name);
  if (disabled.length === 0) return passed('enabled', 'both clusters connect with others');
  return refused('enabled', {
    code: 'conflict',
    what: `clustermesh is disabled on ${disabled.join(' and ')}`,
    why: 'a cluster that is disabled refuses to connect with any other',
    fix: disabled.map((name) => `clustermesh enable --context ${name}`).join('; '),
  });
}

/** Address, name and certificate of the peer's etcd in one: the handshake verifies all of them. */
async function etcdCheck({ cluster }: ClusterFacts, timeoutMs: number): Promise<PreflightCheck> {
  try {
    const endpoint = await probeEndpoints({ ...cluster, peer: cluster.name, timeoutMs });
    return passed('etcd', `the etcd of ${cluster.name} answers at ${endpoint}, with a certificate of its CA`);
  } catch (error) {
    const { code, message, hint } = MeshError.from(error, `reaching the etcd of cluster ${cluster.name}`);
    const why = `this cluster reads the services of ${cluster.name} from there`;
    return refused('etcd', { code, what: message, why, fix: hint ?? 'look at the logs of both apiservers' });
  }
}

function ownEtcdCheck({ own, etcd }: PreflightPorts): PreflightCheck {
  if (etcd.connected()) return passed('own-etcd', `the etcd of ${own.name} is connected`);
  return refused('own-etcd', {
    code: 'etcd-unreachable',
    what: `the etcd of ${own.name} is not connected${etcd.lastError() === '' ? '' : `: ${etcd.lastError()}`}`,
    why: 'users of peers are made there, and their data is kept there',
    fix: 'start etcd, or look at etcd in apiserver.yaml',
  });
}
