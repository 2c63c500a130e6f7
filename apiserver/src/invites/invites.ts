/**
 * Invitations of this cluster, kept in its etcd, so that every replica can redeem what another one has made. All judging is
 * pki/token.ts; here is only the record and its compare-and-swap: of two that redeem one token at once, one gets it.
 */
import { INVITES_PREFIX, inviteKey, MeshError } from '@clustermesh/contract';
import type { Compare, Etcd } from '@clustermesh/kvstore';
import {
  createInvite,
  type InviteFacts,
  type InviteRecord,
  InviteRefused,
  isSpent,
  judgeInvite,
  type OwnIdentity,
  parseToken,
  type Redemption,
  type Secret,
} from '@clustermesh/pki';
import { type Clock, type Log, systemClock } from '@clustermesh/runtime';
import { createGuard, type Guard } from './guard.ts';

export interface InvitesOptions {
  readonly etcd: Etcd;
  /** Asked for each time: the CA may have been rotated. */
  readonly own: () => OwnIdentity;
  /** `host:port` of the admin interface as peers reach it. */
  readonly endpoints: readonly string[];
  /** Holds only in an etcd that has been bootstrapped. */
  readonly fence: () => readonly Compare[];
  readonly log: Log;
  readonly clock?: Clock | undefined;
  readonly guard?: Guard | undefined;
}

export interface RedeemRequest extends Omit<Redemption, 'atMs'> {
  readonly token: string;
  /** The address that the request came from: rate limit and lock-out are by it. */
  readonly source: string;
}

export interface Invites {
  create(options?: { readonly ttlMs?: number | undefined }): Promise<{ token: Secret; facts: InviteFacts }>;
  /**
   * Takes the token for this request. `isRepetition`: the same request was accepted before and may have been carried out.
   * Throws InviteRefused with its reason, or `exhausted` for a source that is locked out.
   */
  redeem(request: RedeemRequest): Promise<{ readonly facts: InviteFacts; readonly isRepetition: boolean }>;
  /** The join is complete: from now on even its own repetition is refused. Idempotent. */
  finish(id: string): Promise<void>;
  /** Takes an invitation back; one that is unknown is as good as taken back. */
  revoke(id: string): Promise<void>;
  list(): Promise<readonly InviteRecord[]>;
  /** Removes records of invitations that ended a day ago; returns how many. */
  sweep(): Promise<number>;
}

export function createInvites(options: InvitesOptions): Invites {
  const { etcd } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'invites' });
  const guard = options.guard ?? createGuard('redeeming an invitation', undefined, clock);

  async function read(id: string): Promise<{ record: InviteRecord; modRevision: number } | undefined> {
    const kv = await etcd.get(inviteKey(id));
    if (kv === undefined) return undefined;
    return { record: JSON.parse(kv.value.toString()) as InviteRecord, modRevision: kv.modRevision };
  }

  /** False when somebody else has changed it since it was read. */
  async function replace(record: InviteRecord, modRevision: number): Promise<boolean> {
    const key = inviteKey(record.facts.id);
    const { succeeded } = await etcd.txn({
      compare: [...options.fence(), { key, modRevision }],
      success: [{ put: key, value: JSON.stringify(record) }],
    });
    return succeeded;
  }

  async function change(id: string, next: (record: InviteRecord) => InviteRecord): Promise<void> {
    for (;;) {
      const found = await read(id);
      if (found === undefined) return;
      const changed = next(found.record);
      if (changed === found.record || (await replace(changed, found.modRevision))) return;
    }
  }

  async function judge(request: RedeemRequest) {
    const token = parseToken(request.token);
    for (;;) {
      const found = await read(token.facts.id);
      const judgement = judgeInvite({
        token,
        record: found?.record,
        own: options.own(),
        request: { peer: request.peer, requestDigest: request.requestDigest },
        nowMs: clock.wallMs(),
      });
      const isUnchanged = judgement.record === undefined || judgement.record === found?.record;
      if (!isUnchanged && !(await replace(judgement.record, found!.modRevision))) continue;
      if (judgement.verdict === 'refuse') throw new InviteRefused(judgement.reason, token.facts);
      return { facts: token.facts, isRepetition: judgement.verdict === 'again' };
    }
  }

  return {
    async create({ ttlMs } = {}) {
      if (options.endpoints.length === 0)
        throw new MeshError({
          code: 'invalid-config',
          message: 'inviting a cluster: this cluster does not say how its admin interface is reached',
          hint: 'set advertise.admin in apiserver.yaml',
        });
      const { token, record } = createInvite({
        own: options.own(),
        endpoints: options.endpoints,
        nowMs: clock.wallMs(),
        ttlMs,
      });
      const key = inviteKey(record.facts.id);
      const { succeeded } = await etcd.txn({
        compare: [...options.fence(), { key, absent: true }],
        success: [{ put: key, value: JSON.stringify(record) }],
      });
      if (!succeeded)
        throw new MeshError({
          code: 'etcd-unreachable',
          message: "inviting a cluster: this cluster's etcd is not set up yet",
          hint: 'try again when clustermesh status shows etcd connected',
        });
      log.info({ invite: record.facts.id, expiresAt: new Date(record.facts.expiresAtMs).toISOString() }, 'invited');
      return { token, facts: record.facts };
    },

    async redeem(request) {
      guard.admit(request.source);
      try {
        const result = await judge(request);
        guard.succeeded(request.source);
        log.info({ invite: result.facts.id, peer: request.peer, source: request.source }, 'invitation redeemed');
        return result;
      } catch (error) {
        const isTheirFault =
          error instanceof InviteRefused || (error instanceof MeshError && error.code === 'invalid-argument');
        if (isTheirFault) {
          guard.failed(request.source);
          log.warn({ source: request.source, peer: request.peer, reason: error.message }, 'invitation refused');
        }
        throw error;
      }
    },

    finish: (id) => change(id, (record) => (record.state === 'redeemed' ? { ...record, state: 'done' } : record)),
    revoke: (id) => change(id, (record) => (record.state === 'revoked' ? record : { ...record, state: 'revoked' })),
    list: async () =>
      (await etcd.range(INVITES_PREFIX)).kvs.map((kv) => JSON.parse(kv.value.toString()) as InviteRecord),

    async sweep() {
      let removed = 0;
      for (const kv of (await etcd.range(INVITES_PREFIX)).kvs) {
        if (!isSpent(JSON.parse(kv.value.toString()) as InviteRecord, clock.wallMs())) continue;
        await etcd.delete(kv.key);
        removed++;
      }
      return removed;
    },
  };
}
