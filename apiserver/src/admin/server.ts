/** The operator interface: contract/proto/admin.proto on a unix socket that only the owner may open, and over TLS (tls.ts). */
import type {
  AdminMethods,
  ClusterFacts,
  ClusterInfo,
  Diagnosis,
  HeldTrust,
  IssuedCertificate,
  PreflightCheck,
  PreflightRequest,
} from '@clustermesh/contract';
import { type Caller, type Handlers, type RpcServer, serveRpc } from '@clustermesh/runtime';
import type { Inviting } from '../join/inviting.ts';
import type { MeshSwitch, Parting } from '../operations/mesh-switch.ts';
import type { Operations } from '../operations/operations.ts';
import type { AgentView, EtcdView, LocalView, MirrorView } from '../ports.ts';
import type { Audit } from './audit.ts';
import { authorized } from './authorize.ts';
import { composeStatus } from './status.ts';

export interface AdminOptions {
  readonly socket: string;
  readonly clusterName: string;
  readonly audit: Audit;
  /** Asked for each time: the CA on disk may be replaced. */
  readonly cluster: () => ClusterInfo;
  readonly facts: () => Promise<ClusterFacts>;
  readonly diagnose: (peer: string) => Promise<readonly Diagnosis[]>;
  readonly preflight: (request: PreflightRequest) => Promise<readonly PreflightCheck[]>;
  readonly operations: Operations;
  readonly mesh: MeshSwitch;
  readonly disable: () => Promise<readonly Parting[]>;
  readonly inviting: Inviting;
  readonly join: (token: string, request?: string) => Promise<string>;
  readonly renewPeer: (peer: string, csrPem: string) => Promise<{ certificatePem: string; caPem: string }>;
  readonly rotateLeaves: () => Promise<readonly IssuedCertificate[]>;
  /** Called with what a peer says that it holds of this cluster's CAs. */
  readonly onTrust: (peer: string, trust: HeldTrust) => void;
  readonly mirror: MirrorView;
  readonly agents: AgentView;
  readonly local: LocalView;
  readonly etcd: EtcdView;
  /** Nodes that should have an agent. */
  readonly nodes: readonly string[];
}

export function startAdmin(options: AdminOptions): Promise<RpcServer> {
  const handlers = authorized(adminHandlers(options), options.clusterName, options.audit);
  return serveRpc<AdminMethods>('admin', options.socket, handlers);
}

export function adminHandlers(options: AdminOptions): Handlers<AdminMethods> {
  const { operations } = options;
  return {
    GetCluster: async ({ trustedCas = [], signedBy = '' }, { caller }) => {
      const peer = peerOf(caller);
      if (peer !== undefined) options.onTrust(peer, { trustedCas, signedBy });
      return options.cluster();
    },
    PrepareConnect: async ({ peer }) => ({ csrPem: await operations.prepareConnect(peer) }),
    StartConnect: async ({ peer, peerCsrPem, direction, request }) => ({
      id: await operations.startConnect(peer, peerCsrPem, { direction: direction || 'both', request }),
    }),
    SupplyCertificate: async ({ peer, certificatePem }) => {
      await operations.supplyCertificate(peer, certificatePem);
      return {};
    },
    StartDisconnect: async ({ peer, request }) => ({ id: await operations.startDisconnect(peer, request) }),
    StartDrain: async ({ peer, request }) => ({ id: await operations.startDrain(peer, request) }),
    ListOperations: async () => ({ operations: await operations.list() }),
    RetryOperation: async ({ id }) => ({ id: await operations.retry(id) }),
    CancelOperation: async ({ id }) => {
      await operations.cancel(id);
      return {};
    },
    WatchOperation: ({ id }, { signal }) => operations.watch(id, signal),
    CreateInvite: ({ ttlMs }) => options.inviting.create(ttlMs),
    Join: async ({ token, request }) => ({ id: await options.join(token, request) }),
    RedeemInvite: (request, { caller }) => options.inviting.redeem(request, sourceOf(caller)),
    CompleteInvite: async ({ redeemed, certificatePem }, { caller }) => {
      await options.inviting.complete(redeemed, certificatePem, sourceOf(caller));
      return {};
    },
    RotateCa: async ({ overlapMs, without, request }) => ({
      id: await operations.startRotation({ overlapMs, without }, request),
    }),
    RotateLeaves: async () => ({ issued: await options.rotateLeaves() }),
    // Nobody but a peer comes so far (admin-roles.ts).
    RenewPeer: ({ csrPem }, { caller }) => options.renewPeer(peerOf(caller) ?? '', csrPem),
    Disable: async () => ({ partings: await options.disable() }),
    Enable: async () => {
      await options.mesh.set(false);
      return {};
    },
    Diagnose: async ({ peer }) => ({ diagnoses: await options.diagnose(peer) }),
    GetFacts: async () => options.facts(),
    Preflight: async (request) => ({ checks: await options.preflight(request) }),
    GetStatus: async () =>
      composeStatus({
        cluster: options.cluster(),
        peers: options.mirror.peers(),
        agents: options.agents.agents(),
        nodes: options.nodes,
        problems: options.local.problems(),
        counts: options.local.counts(),
        etcdConnected: options.etcd.connected(),
        etcdError: options.etcd.lastError(),
        redisConnected: await operations.redisReachable(),
        // Without its etcd nothing is known of it, and the status says that.
        meshDisabled: options.etcd.connected() && (await options.mesh.isDisabled().catch(() => false)),
      }),
  };
}

const sourceOf = (caller: Caller): string => (caller.via === 'socket' ? 'socket' : caller.address);

/** The cluster that has come with a certificate for remote-<cluster>. */
const peerOf = (caller: Caller): string | undefined =>
  caller.via === 'tls' ? /^remote-(.+)$/.exec(caller.user ?? '')?.[1] : undefined;
