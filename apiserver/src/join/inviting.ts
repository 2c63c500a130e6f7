/** The side that invites: answers a cluster that comes with a token, and with nothing else to show. */
import {
  type ClusterInfo,
  type ErrorCode,
  type Invitation,
  MeshError,
  type RedeemInviteRequest,
  type RedeemInviteResponse,
} from '@clustermesh/contract';
import { requestDigest } from '@clustermesh/pki';
import type { Invites } from '../invites/index.ts';
import type { Operations } from '../operations/operations.ts';

export interface InvitingPorts {
  readonly invites: Invites;
  readonly operations: Operations;
  readonly cluster: () => ClusterInfo;
  /** Throws when this cluster connects with nobody. */
  readonly mayConnect: (attempted: string) => Promise<void>;
}

export interface Inviting {
  create(ttlMs: number): Promise<Invitation>;
  /** `source`: the address that the request came from. */
  redeem(request: RedeemInviteRequest, source: string): Promise<RedeemInviteResponse>;
  complete(redeemed: RedeemInviteRequest, certificatePem: string, source: string): Promise<void>;
}

/** The joiner's own deadline for the call is longer. */
const SIGNING_MS = 20_000;

/** Anyone may call: on the wire every part of a message may be missing. */
function complete(request: RedeemInviteRequest | null): RedeemInviteRequest {
  if (request?.peer != null) return request;
  throw new MeshError({ code: 'invalid-argument', message: 'redeeming an invitation: the request names no cluster' });
}

export function createInviting({ invites, operations, cluster, mayConnect }: InvitingPorts): Inviting {
  /** Nothing of a request is used before its token has been judged. */
  const redeemed = (request: RedeemInviteRequest, source: string) => {
    const { token, peer, csrPem } = complete(request);
    const asked = [peer.name, String(peer.id), peer.caPem, ...peer.endpoints, csrPem];
    return invites.redeem({ token, source, peer: peer.name, requestDigest: requestDigest(asked) });
  };

  async function certificateFor(operation: string, peer: string): Promise<string> {
    for await (const event of operations.watch(operation, AbortSignal.timeout(SIGNING_MS))) {
      if (event.certificateForPeerPem !== '') return event.certificateForPeerPem;
      if (event.state === 'failed')
        throw new MeshError({
          code: (event.errorCode || 'internal') as ErrorCode,
          message: event.message,
          hint: event.hint,
        });
    }
    throw new MeshError({
      code: 'timeout',
      message: `letting ${peer} in: not done within ${SIGNING_MS / 1000} s`,
      hint: 'is Redis of the inviting cluster reachable? join again with the same token',
    });
  }

  return {
    create: async (ttlMs) => {
      await mayConnect('inviting a cluster');
      const { token, facts } = await invites.create(ttlMs === 0 ? {} : { ttlMs });
      return { token: token.reveal(), id: facts.id, expiresUnixMs: facts.expiresAtMs };
    },

    redeem: async (request, source) => {
      await redeemed(request, source);
      const csrPem = await operations.prepareConnect(request.peer.name);
      const operation = await operations.startConnect(request.peer, request.csrPem);
      return { cluster: cluster(), csrPem, certificatePem: await certificateFor(operation, request.peer.name) };
    },

    complete: async (request, certificatePem, source) => {
      const { facts, isRepetition } = await redeemed(request, source);
      if (!isRepetition) {
        throw new MeshError({
          code: 'conflict',
          message: `completing the join of ${request.peer.name}: it was not begun`,
          hint: 'redeem the invitation first',
        });
      }
      await operations.supplyCertificate(request.peer.name, certificatePem);
      await invites.finish(facts.id);
    },
  };
}
