/**
 * The side that joins: meets the cluster that the token names, knows it by the pin of its CA, and exchanges certificates with it.
 *
 *   joiner                                         inviting cluster
 *     └ request for a certificate, facts, token ──► lets the joiner in, signs
 *       certificate ◄── its own request, facts ───┘
 *     └ lets it in, signs, brings its certificate ► spends the token
 *
 * Both sides run an ordinary connect; a token never reaches Redis or a log, and the joiner's disk only until it is spent (unfinished.ts).
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
import { newRequest, operationId } from '../operations/model.ts';
import type { Operations } from '../operations/operations.ts';
import type { UnfinishedJoin, UnfinishedJoins } from './unfinished.ts';

export interface JoiningPorts {
  readonly operations: Operations;
  readonly unfinished: UnfinishedJoins;
  readonly cluster: () => ClusterInfo;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

type Admin = RpcClient<AdminMethods>;

const RETRY_MS = 500;
/** An inviting apiserver that goes away in the middle is waited for; the caller's own deadline is longer. */
const REDEEM_MS = 25_000;
/** As long as the inviting side waits for the certificate (steps.ts). */
const COURIER_MS = 5 * 60_000;

/**
 * Returns the id of this side's connect. Safe to be called again with the same token while the join is not complete, and with the
 * same `request` (admin.proto) at any time. What a process before this one left unfinished is gone on with.
 */
export function createJoining(ports: JoiningPorts): (token: string, request?: string) => Promise<string> {
  const { operations, unfinished, log } = ports;
  const clock = ports.clock ?? systemClock;
  for (const left of unfinished.list()) void courier(left);

  return async (text, wanted = '') => {
    const own = ports.cluster();
    const token = parseToken(text);
    const reason = joinerRefusal(token, own);
    if (reason !== undefined) throw new InviteRefused(reason, token.facts);
    const { facts } = token;
    const peer = facts.cluster;
    const request = wanted || newRequest();
    const operation = operationId('connect', peer, request);
    if (await operations.isKnown(operation)) return operation;
    const wasPrepared = operations.isPrepared(peer);
    const redeemed: RedeemInviteRequest = {
      ...{ token: text, peer: own },
      csrPem: await operations.prepareConnect(peer),
    };
    const answer = await redeem(facts, redeemed).catch((error) => {
      // Nothing comes of a token that is refused. After any other failure it may be tried again, and be bound to this key already.
      if (!wasPrepared && isRefusal(error)) operations.abandonConnect(peer);
      throw error;
    });
    checkAnswer(facts, answer);
    // Before anything is started: what starts finds all that it needs, whenever this process is killed.
    await operations.supplyCertificate(peer, answer.certificatePem);
    const join = { peer, operation, redeemed };
    unfinished.keep(join);
    try {
      const started = { ...join, operation: await operations.startConnect(answer.cluster, answer.csrPem, { request }) };
      // An equal connect ran already.
      if (started.operation !== operation) unfinished.keep(started);
      void courier(started);
      return started.operation;
    } catch (error) {
      unfinished.clear(join);
      throw error;
    }
  };

  /** Once it has been met, a host that does not answer is being restarted. */
  async function redeem(facts: InviteFacts, request: RedeemInviteRequest): Promise<RedeemInviteResponse> {
    const end = clock.nowMs() + REDEEM_MS;
    for (let isMet = false; ; ) {
      try {
        return await withHost(facts, (host) => {
          isMet = true;
          return host.RedeemInvite(request, { timeoutMs: Math.max(1, end - clock.nowMs()) });
        });
      } catch (error) {
        if (!isMet || clock.nowMs() >= end || !(error instanceof MeshError) || error.code !== 'unreachable')
          throw error;
        await clock.sleep(RETRY_MS, ports.signal);
        ports.signal.throwIfAborted();
      }
    }
  }

  async function courier(join: UnfinishedJoin): Promise<void> {
    try {
      await bring(join);
    } catch (error) {
      log.warn({ err: error, peer: join.peer }, 'join not completed');
    }
    // A process that is stopped leaves it to the next one.
    if (!ports.signal.aborted) unfinished.clear(join);
  }

  /** The inviting cluster gets its certificate as soon as our connect has signed it. */
  async function bring({ operation, redeemed }: UnfinishedJoin): Promise<void> {
    const { facts } = parseToken(redeemed.token);
    const signal = AbortSignal.any([ports.signal, AbortSignal.timeout(COURIER_MS)]);
    for await (const event of operations.watch(operation, signal)) {
      if (event.state === 'failed') return;
      const certificatePem = event.certificateForPeerPem;
      if (certificatePem === '') continue;
      for (let isAgain = false; !signal.aborted; isAgain = true) {
        try {
          await withHost(facts, (host) => host.CompleteInvite({ redeemed, certificatePem }));
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

/** The token is worth nothing there, or the host is not the one that it names. */
const isRefusal = (error: unknown): boolean =>
  error instanceof MeshError && (error.code === 'unauthenticated' || error.code === 'tls');

/** A connection for this one call: gRPC would wait ever longer before it tries one again that was lost. */
async function withHost<T>(facts: InviteFacts, use: (host: Admin) => Promise<T>): Promise<T> {
  const host = await meet(facts);
  try {
    return await use(host);
  } finally {
    host.close();
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
