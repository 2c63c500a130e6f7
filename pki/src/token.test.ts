import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { inspect } from 'node:util';
import {
  createInvite,
  INVITE_TTL_MS,
  type InviteRecord,
  InviteRefused,
  isSpent,
  joinerRefusal,
  judgeInvite,
  MAX_WRONG_SECRETS,
  parseToken,
  redactTokens,
  requestDigest,
} from './token.ts';

const NOW = Date.parse('2030-01-01T00:00:00Z');
const own = { cluster: 'eu', clusterId: 1, caPin: 'ab'.repeat(32) };
const invite = (nowMs = NOW) => createInvite({ own, endpoints: ['192.0.2.1:9882'], nowMs });
const request = { peer: 'us', requestDigest: requestDigest(['the CSR', 'the facts']) };

function judge(
  text: string,
  record: InviteRecord | undefined,
  change: Partial<Parameters<typeof judgeInvite>[0]> = {},
): ReturnType<typeof judgeInvite> {
  return judgeInvite({ token: parseToken(text), record, own, request, nowMs: NOW, ...change });
}
const reasonOf = (judgement: ReturnType<typeof judgeInvite>) =>
  judgement.verdict === 'refuse' ? judgement.reason : judgement.verdict;

describe('an invitation', () => {
  it('says where to join, whom and until when, and comes through copying with line breaks', () => {
    const { token, record } = invite();
    const wrapped = token.reveal().replace(/(.{40})/g, '$1\n  ');
    assert.deepEqual(parseToken(wrapped).facts, {
      id: record.facts.id,
      ...own,
      endpoints: ['192.0.2.1:9882'],
      expiresAtMs: NOW + INVITE_TTL_MS,
    });
  });

  it('is good for one request, which may be repeated until it is done', () => {
    const { token, record } = invite();
    const first = judge(token.reveal(), record);
    assert.equal(first.verdict, 'accept');
    const redeemed = (first as { record: InviteRecord }).record;
    assert.equal(reasonOf(judge(token.reveal(), redeemed)), 'again');
    assert.equal(reasonOf(judge(token.reveal(), redeemed, { request: { ...request, peer: 'asia' } })), 'used');
    const otherKey = { ...request, requestDigest: requestDigest(['another CSR', 'the facts']) };
    assert.equal(reasonOf(judge(token.reveal(), redeemed, { request: otherKey })), 'used');
    const done: InviteRecord = { ...redeemed, state: 'done' };
    assert.equal(reasonOf(judge(token.reveal(), done)), 'replayed');
    assert.equal(reasonOf(judge(token.reveal(), done, { request: otherKey })), 'used');
  });

  it('expires by the clock of the cluster that made it, repetitions too', () => {
    const { token, record } = invite();
    assert.equal(reasonOf(judge(token.reveal(), record, { nowMs: NOW + INVITE_TTL_MS - 1 })), 'accept');
    assert.equal(reasonOf(judge(token.reveal(), record, { nowMs: NOW + INVITE_TTL_MS })), 'expired');
    const redeemed = (judge(token.reveal(), record) as { record: InviteRecord }).record;
    assert.equal(reasonOf(judge(token.reveal(), redeemed, { nowMs: NOW + INVITE_TTL_MS })), 'expired');
  });

  it('is refused altered, by whoever reads it, wherever it is altered', () => {
    const text = invite().token.reveal();
    for (let at = 0; at < text.length; at++) {
      const altered = `${text.slice(0, at)}${text[at] === 'A' ? 'B' : 'A'}${text.slice(at + 1)}`;
      assert.throws(() => parseToken(altered), { code: 'invalid-argument' }, `altered at ${at}`);
    }
    assert.throws(() => parseToken(text.slice(0, -3)), /altered or cut off/);
    assert.throws(() => parseToken('hello'), /not of the form/);
  });

  it('is refused with facts or a secret of its own making, however well its check fits', () => {
    const { token, record } = invite();
    // One with the same id, whose facts were changed and whose check was computed anew, as a forger would.
    const forged = createInvite({ own, endpoints: ['203.0.113.9:9882'], nowMs: NOW });
    assert.equal(reasonOf(judge(forged.token.reveal(), { ...record })), 'altered');
    assert.equal(reasonOf(judge(token.reveal(), { ...record, digest: forged.record.digest })), 'altered');
  });

  it('is void after too many wrong secrets, also for the right one', () => {
    const { token, record } = invite();
    const forged = createInvite({ own, endpoints: ['192.0.2.1:9882'], nowMs: NOW }).token.reveal();
    let kept = record;
    for (let i = 0; i < MAX_WRONG_SECRETS; i++) {
      const judgement = judge(forged, kept);
      assert.equal(reasonOf(judgement), 'altered');
      kept = (judgement as { record: InviteRecord }).record;
    }
    assert.equal(reasonOf(judge(token.reveal(), kept)), 'locked');
  });

  it('is refused by another cluster, by one with another CA, when unknown, taken back, or of one’s own cluster', () => {
    const { token, record } = invite();
    const text = token.reveal();
    assert.equal(reasonOf(judge(text, record, { own: { ...own, cluster: 'us' } })), 'wrong-cluster');
    assert.equal(reasonOf(judge(text, record, { own: { ...own, clusterId: 2 } })), 'wrong-cluster');
    assert.equal(reasonOf(judge(text, record, { own: { ...own, caPin: 'cd'.repeat(32) } })), 'wrong-ca');
    assert.equal(reasonOf(judge(text, undefined)), 'unknown');
    assert.equal(reasonOf(judge(text, { ...record, state: 'revoked' })), 'revoked');
    assert.equal(joinerRefusal(parseToken(text), { name: 'eu', id: 7 }), 'own-cluster');
    assert.equal(joinerRefusal(parseToken(text), { name: 'us', id: 2 }), undefined);
  });

  it('tells each reason in words, with what to do', () => {
    const { record } = invite();
    const reasons = [
      ...['unknown', 'expired', 'used', 'replayed', 'altered', 'revoked', 'locked'],
      ...['wrong-ca', 'wrong-cluster', 'own-cluster'],
    ] as const;
    const texts = reasons.map((reason) => new InviteRefused(reason as 'used', record.facts));
    assert.equal(new Set(texts.map((error) => error.message)).size, reasons.length);
    for (const error of texts) assert.ok(error.hint !== undefined && error.message.includes(record.facts.id));
  });

  it('keeps its secret out of records, logs, errors and dumps', () => {
    const { token, record } = invite();
    const parsed = parseToken(token.reveal());
    const secret = parsed.secret.reveal();
    const shown = [inspect({ token, parsed }), JSON.stringify({ token, parsed, record }), String(token)];
    for (const text of shown) assert.ok(!text.includes(secret) && !text.includes(token.reveal()), text);
    assert.ok(!JSON.stringify(record).includes(secret));
    const dump = `joining with ${token.reveal()}, then ${token.reveal().slice(0, -20)} cut off`;
    assert.equal(redactTokens(dump), 'joining with cm1.<redacted>, then cm1.<redacted> cut off');
  });

  it('is forgotten a day after it ended', () => {
    const { record } = invite();
    assert.equal(isSpent(record, record.facts.expiresAtMs + 23 * 3_600_000), false);
    assert.equal(isSpent(record, record.facts.expiresAtMs + 24 * 3_600_000), true);
  });

  it('has a lifetime of its own, within bounds', () => {
    assert.throws(() => createInvite({ own, endpoints: ['a:1'], nowMs: NOW, ttlMs: 0 }), /lifetime/);
    assert.throws(() => createInvite({ own, endpoints: ['a:1'], nowMs: NOW, ttlMs: 25 * 3_600_000 }), /lifetime/);
  });
});
