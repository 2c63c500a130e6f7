/**
 * Invitations: what `clustermesh invite` prints and `clustermesh join` redeems. Pure: clock and store are the caller's.
 *
 *   cm1.<facts>.<secret>.<check>       base64url; the check finds what copying broke, it keeps nobody out
 *
 * The serving cluster keeps a SHA-256 over facts and secret only. 256 random bits cannot be guessed from it, so whoever reads the
 * record (every node of the cluster may) cannot join with it.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { inspect } from 'node:util';
import { clusterNameProblem, MeshError } from '@clustermesh/contract';
import { z } from 'zod';

const VERSION = 'cm1';
/** Default lifetime of an invitation, as of Skupper's access tokens. */
export const INVITE_TTL_MS = 15 * 60_000;
export const LONGEST_INVITE_TTL_MS = 24 * 3_600_000;
/** How long a record is kept after it ended, so that a late token is told why and not just "unknown". */
const RECORD_RETENTION_MS = 24 * 3_600_000;
/** Wrong secrets after which an invitation is void: its id has leaked, and somebody guesses. */
export const MAX_WRONG_SECRETS = 5;
const SECRET_BYTES = 32;
const CHECK_CHARS = 8;
/** For redaction: every token in a text, whole or cut off behind its facts. */
const TOKEN_PATTERN = /\bcm1\.[\w-]+(?:\.[\w-]*){0,2}/g;

const factsSchema = z.strictObject({
  id: z.string().regex(/^[0-9a-f]{16}$/),
  cluster: z.string().refine((name) => clusterNameProblem(name) === undefined),
  clusterId: z.number().int().min(1).max(511),
  endpoints: z.array(z.string().min(1)).min(1),
  caPin: z.string().regex(/^[0-9a-f]{64}$/),
  expiresAtMs: z.number().int(),
});

/** What a token says in the open. */
export interface InviteFacts {
  readonly id: string;
  readonly cluster: string;
  readonly clusterId: number;
  /** `host:port` of the serving cluster's admin interface, in the order to be tried. */
  readonly endpoints: readonly string[];
  /** SHA-256 over the DER form of the serving cluster's CA, lower case hex (`certificateFacts().fingerprint`). */
  readonly caPin: string;
  /** Wall clock of the serving cluster, which alone judges it. */
  readonly expiresAtMs: number;
}

/** A string that logs, JSON and inspection show as `<redacted>`. */
export class Secret {
  readonly #text: string;
  constructor(text: string) {
    this.#text = text;
  }
  reveal(): string {
    return this.#text;
  }
  toString(): string {
    return '<redacted>';
  }
  toJSON(): string {
    return '<redacted>';
  }
  [inspect.custom](): string {
    return '<redacted>';
  }
}

export interface InviteToken {
  readonly facts: InviteFacts;
  readonly secret: Secret;
  /** SHA-256 over facts and secret, lower case hex. */
  readonly digest: string;
}

/** Who redeemed an invitation, and with what. */
export interface Redemption {
  readonly peer: string;
  /** SHA-256 of all that was asked for (the certificate request and the peer's facts). */
  readonly requestDigest: string;
  readonly atMs: number;
}

/** What the serving cluster keeps; nothing in it is secret. */
export interface InviteRecord {
  readonly facts: InviteFacts;
  readonly digest: string;
  readonly createdAtMs: number;
  readonly wrongSecrets: number;
  /**
   * open → redeemed → done, or revoked from anywhere. A redeemed one still answers the very same request, because its sender may
   * have been killed before it heard; a done one answers nobody.
   */
  readonly state: 'open' | 'redeemed' | 'done' | 'revoked';
  readonly redemption?: Redemption | undefined;
}

export type InviteRefusal =
  | 'unknown'
  | 'expired'
  | 'used'
  | 'replayed'
  | 'altered'
  | 'revoked'
  | 'locked'
  | 'wrong-ca'
  | 'wrong-cluster'
  | 'own-cluster';

export interface OwnIdentity {
  readonly cluster: string;
  readonly clusterId: number;
  readonly caPin: string;
}

export function createInvite(options: {
  readonly own: OwnIdentity;
  readonly endpoints: readonly string[];
  readonly nowMs: number;
  readonly ttlMs?: number | undefined;
}): { readonly token: Secret; readonly record: InviteRecord } {
  const ttlMs = options.ttlMs ?? INVITE_TTL_MS;
  if (!(ttlMs > 0 && ttlMs <= LONGEST_INVITE_TTL_MS))
    throw new MeshError({
      code: 'invalid-argument',
      message: `inviting a cluster: a lifetime of ${ttlMs / 1000} s is not between 0 and ${LONGEST_INVITE_TTL_MS / 3_600_000} h`,
    });
  const facts = factsSchema.parse({
    id: randomBytes(8).toString('hex'),
    ...options.own,
    endpoints: options.endpoints,
    expiresAtMs: Math.round(options.nowMs + ttlMs),
  });
  const body = encode(JSON.stringify(facts));
  const secret = randomBytes(SECRET_BYTES).toString('base64url');
  return {
    token: new Secret([VERSION, body, secret, check(body, secret)].join('.')),
    record: {
      facts,
      digest: digestOf(body, secret),
      createdAtMs: Math.round(options.nowMs),
      wrongSecrets: 0,
      state: 'open',
    },
  };
}

/** Reads what `createInvite` printed; white space around and inside (a wrapped line) is no fault. Nothing secret is in its errors. */
export function parseToken(text: string): InviteToken {
  const refuse = (why: string, hint: string) =>
    new MeshError({ code: 'invalid-argument', message: `reading an invitation: ${why}`, hint });
  const parts = text.replace(/\s+/g, '').split('.');
  const [version, body, secret, sum] = parts;
  if (version !== VERSION || parts.length !== 4 || body === undefined || secret === undefined || sum === undefined)
    throw refuse('it is not of the form cm1.….….…', 'copy the whole line that clustermesh invite has printed');
  if (!equal(sum, check(body, secret)))
    throw refuse(
      'it was altered or cut off on the way (its check does not fit)',
      'copy the whole line that clustermesh invite has printed',
    );
  const facts = factsSchema.safeParse(decode(body));
  if (!facts.success || Buffer.from(secret, 'base64url').length !== SECRET_BYTES)
    throw refuse('its content is not what clustermesh invite prints', 'make a new one with: clustermesh invite');
  return { facts: facts.data, secret: new Secret(secret), digest: digestOf(body, secret) };
}

/** Of the joiner, before anything is sent: an invitation of one's own cluster leads nowhere. */
export function joinerRefusal(token: InviteToken, ownCluster: { readonly name: string; readonly id: number }) {
  return token.facts.cluster === ownCluster.name || token.facts.clusterId === ownCluster.id
    ? ('own-cluster' as const)
    : undefined;
}

export type Judgement =
  | { readonly verdict: 'accept' | 'again'; readonly record: InviteRecord }
  /** `record`: what is to be kept, when the refusal changes it. */
  | { readonly verdict: 'refuse'; readonly reason: InviteRefusal; readonly record?: InviteRecord };

/**
 * Whether a token may be redeemed. `again` is the repetition of a request that was accepted and whose answer may be lost.
 * The secret is judged before anything that the record says is told, so that only its holder learns it.
 */
export function judgeInvite(options: {
  readonly token: InviteToken;
  readonly record: InviteRecord | undefined;
  readonly own: OwnIdentity;
  readonly request: Omit<Redemption, 'atMs'>;
  readonly nowMs: number;
}): Judgement {
  const { token, record, own, request, nowMs } = options;
  const refuse = (reason: InviteRefusal): Judgement => ({ verdict: 'refuse', reason });
  if (token.facts.cluster !== own.cluster || token.facts.clusterId !== own.clusterId) return refuse('wrong-cluster');
  if (token.facts.caPin !== own.caPin) return refuse('wrong-ca');
  if (record === undefined) return refuse('unknown');
  if (record.wrongSecrets >= MAX_WRONG_SECRETS) return refuse('locked');
  if (!equal(record.digest, token.digest))
    return {
      verdict: 'refuse',
      reason: 'altered',
      record: { ...record, wrongSecrets: record.wrongSecrets + 1 },
    };
  if (record.state === 'revoked') return refuse('revoked');
  const isSame =
    record.redemption !== undefined &&
    record.redemption.peer === request.peer &&
    equal(record.redemption.requestDigest, request.requestDigest);
  if (record.state === 'done') return refuse(isSame ? 'replayed' : 'used');
  if (record.state === 'redeemed' && !isSame) return refuse('used');
  if (nowMs >= record.facts.expiresAtMs) return refuse('expired');
  if (record.state === 'redeemed') return { verdict: 'again', record };
  return {
    verdict: 'accept',
    record: { ...record, state: 'redeemed', redemption: { ...request, atMs: Math.round(nowMs) } },
  };
}

/** Whether a record tells nobody anything any more. */
export function isSpent(record: InviteRecord, nowMs: number): boolean {
  return nowMs >= record.facts.expiresAtMs + RECORD_RETENTION_MS;
}

const REFUSALS: Readonly<Record<InviteRefusal, readonly [why: string, hint: string]>> = {
  unknown: ['it is not known here', 'was this cluster rebuilt since? make a new one with: clustermesh invite'],
  expired: ['it has expired', 'make a new one with: clustermesh invite, and join within its lifetime'],
  used: [
    'it was used by another request',
    'an invitation is good for one join; make a new one with: clustermesh invite',
  ],
  replayed: [
    'this very request was answered and completed before',
    'if nobody here sent it again, somebody has copied it; it was of no use to them',
  ],
  altered: ['it was altered, or its secret is wrong', 'copy the whole line that clustermesh invite has printed'],
  revoked: ['it was taken back', 'make a new one with: clustermesh invite'],
  locked: ['it was tried with wrong secrets too often', 'make a new one with: clustermesh invite'],
  'wrong-ca': [
    'it names another certificate authority than this cluster has',
    'the CA was rotated since; make a new one with: clustermesh invite',
  ],
  'wrong-cluster': [
    'it is for another cluster than the one that answers',
    'does its address lead to another cluster by now? make a new one with: clustermesh invite',
  ],
  'own-cluster': ['it was made by the cluster that wants to join', 'run clustermesh join in the other cluster'],
};

/** The refusal as an operator reads it. Its reason stays machine-readable as the error's `reason`. */
export class InviteRefused extends MeshError {
  readonly reason: InviteRefusal;
  constructor(reason: InviteRefusal, facts: InviteFacts) {
    const [why, hint] = REFUSALS[reason];
    super({
      code: 'unauthenticated',
      message: `redeeming invitation ${facts.id} of ${facts.cluster}: ${why}`,
      hint,
      retryable: false,
    });
    this.reason = reason;
  }
}

/** A text with every token in it made useless; for logs, audit and bundles of files. */
export function redactTokens(text: string): string {
  return text.replace(TOKEN_PATTERN, 'cm1.<redacted>');
}

/** The digest of a request, however its parts are ordered by those who built it. */
export function requestDigest(parts: readonly string[]): string {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest('hex');
}

function digestOf(body: string, secret: string): string {
  return createHash('sha256').update(`${VERSION}.${body}.${secret}`).digest('hex');
}

function check(body: string, secret: string): string {
  return createHash('sha256').update(`check.${body}.${secret}`).digest('base64url').slice(0, CHECK_CHARS);
}

/** In constant time for equal lengths; lengths are no secret. */
function equal(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}

function encode(text: string): string {
  return Buffer.from(text).toString('base64url');
}

function decode(body: string): unknown {
  try {
    return JSON.parse(Buffer.from(body, 'base64url').toString());
  } catch {
    return undefined;
  }
}
