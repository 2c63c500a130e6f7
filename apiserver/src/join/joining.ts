/**
 * The side that joins: meets the cluster that the token names, knows it by the pin of its CA, and exchanges certificates with it.
 *
 *   joiner                                         inviting cluster
 *     └ request for a certificate, facts, token ──► lets the joiner in, signs
 *       certificate ◄── its own request, facts ───┘
 *     └ lets it in, signs, brings its certificate ► spends the token
 *
 * Both sides run an ordinary connect; a token never reaches Redis or a log.
 */
import {
  type AdminMethods,
  type ClusterInfo,
  MeshError,
  type RedeemInviteRequest,
  type RedeemInviteResponse,
} from '@clustermesh/contract';
import {
  certificateFacts,
  fetchPinnedCa,
  type InviteFacts,
  InviteRefused,
  joinerRefusal,
  parseToken,
  SERVER_COMMON_NAME,
} from '@clustermesh/pki';
import { type Clock, dialRpc, type Log, type RpcClient, systemClock } from '@clustermesh/runtime';
import type { Operations } from '../operations/operations.ts';

export interface JoiningPorts {
  readonly operations: Operations;
  readonly cluster: () => ClusterInfo;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

type Admin = RpcClient<AdminMethods>;

const RETRY_MS = 500;
/** As long as the inviting side waits for the certificate (steps.ts). */
const COURIER_MS = 5 * 60_000;

/** Returns the id of this side's connect. Safe to be called again with the same token while the join is not complete. */
export function createJoining(ports: JoiningPorts): (token: string) => Promise<string> {
  const { operations, log } = ports;
  const clock = ports.clock ?? systemClock;

  return async (text) => {
    const own = ports.cluster();
    const token = parseToken(text);
    const reason = joinerRefusal(token, own);
    if (reason !== undefined) throw new InviteRefused(reason, token.facts);
    const { facts } = token;
    const csrPem = await operations.prepareConnect(facts.cluster);
    const request: RedeemInviteRequest = { token: text, peer: own, csrPem };
    const host = await meet(facts);
    try {
      const answer = await host.RedeemInvite(request);
      checkAnswer(facts, answer);
      const id = await operations.startConnect(answer.cluster, answer.csrPem);
      await operations.supplyCertificate(facts.cluster, answer.certificatePem);
      void bring(host, request, id)
        .catch((error: unknown) => log.warn({ err: error, peer: facts.cluster }, 'join not completed'))
        .finally(() => host.close());
      return id;
    } catch (error) {
      host.close();
      throw error;
    }
  };

  /** The inviting cluster gets its certificate as soon as our connect has signed it. */
  async function bring(host: Admin, redeemed: RedeemInviteRequest, operation: string): Promise<void> {
    const signal = AbortSignal.any([ports.signal, AbortSignal.timeout(COURIER_MS)]);
    for await (const event of operations.watch(operation, signal)) {
      if (event.state === 'failed') return;
      const certificatePem = event.certificateForPeerPem;
      if (certificatePem === '') continue;
      for (let isAgain = false; !signal.aborted; isAgain = true) {
        try {
          await host.CompleteInvite({ redeemed, certificatePem });
          return;
        } catch (error) {
          // The answer to an earlier try was lost: the token is spent, so the certificate is there.
          if (isAgain && error instanceof MeshError && error.code === 'unauthenticated') return;
          if (!(error instanceof MeshError) || !(error.code === 'unreachable' || error.retryable)) throw error;
          await clock.sleep(RETRY_MS, signal);
        }
      }
    }
  }
}

/** The first address of the token where the pinned cluster answers. */
async function meet(facts: InviteFacts): Promise<Admin> {
  let last: unknown;
  for (const endpoint of facts.endpoints) {
    try {
      const caPem = await fetchPinnedCa({ endpoint, pin: facts.caPin });
      return dialRpc<AdminMethods>('admin', endpoint, { caPem, serverName: SERVER_COMMON_NAME });
    } catch (error) {
      last = error;
    }
  }
  const { code, message, hint } = MeshError.from(last, `meeting cluster ${facts.cluster}`);
  throw new MeshError({
    code,
    message: `joining ${facts.cluster}: ${message}`,
    hint:
      hint ??
      `check that the apiserver of ${facts.cluster} runs, and that this host can connect to ${facts.endpoints.join(' or ')}`,
    cause: last,
  });
}

/** What the token's holder was promised, and nobody else. */
function checkAnswer(facts: InviteFacts, { cluster }: RedeemInviteResponse): void {
  const isPinned = certificateFacts(cluster.caPem, `the CA of ${cluster.name}`).fingerprint === facts.caPin;
  if (cluster.name === facts.cluster && cluster.id === facts.clusterId && isPinned) return;
  throw new MeshError({
    code: 'conflict',
    message: `joining ${facts.cluster} (id ${facts.clusterId}): ${cluster.name} (id ${cluster.id})${isPinned ? '' : ' with another CA'} has answered`,
    hint: 'ask for a new invitation over a way that you trust',
  });
}
