/** When certificates are renewed, and how a CA is replaced. Pure: the clock and the look at the disk are the caller's. */

export interface Validity {
  readonly notBefore: Date;
  readonly notAfter: Date;
}

export type RenewalState = 'not-yet-valid' | 'fresh' | 'due' | 'urgent' | 'expired';

/** Share of its lifetime after which a certificate is renewed; the rest is the time in which renewing may fail. */
const DUE_AT = 2 / 3;
/** From here on it is said aloud. */
const URGENT_AT = 0.9;

export function renewalState({ notBefore, notAfter }: Validity, nowMs: number): RenewalState {
  const [start, end] = [notBefore.getTime(), notAfter.getTime()];
  if (nowMs < start) return 'not-yet-valid';
  if (nowMs >= end) return 'expired';
  const age = (nowMs - start) / (end - start);
  return age >= URGENT_AT ? 'urgent' : age >= DUE_AT ? 'due' : 'fresh';
}

export function isRenewalDue(validity: Validity, nowMs: number): boolean {
  const state = renewalState(validity, nowMs);
  return state === 'due' || state === 'urgent' || state === 'expired';
}

/** Milliseconds until the certificate is due; 0 when it is. */
export function renewInMs({ notBefore, notAfter }: Validity, nowMs: number): number {
  const [start, end] = [notBefore.getTime(), notAfter.getTime()];
  return Math.max(0, start + (end - start) * DUE_AT - nowMs);
}

/**
 * Why a certificate is no good now, with the clock as a suspect where it is one; undefined when it is good. A clock that is wrong
 * by minutes makes what was just issued "not yet valid"; one that is wrong by years makes everything expired.
 */
export function validityProblem(validity: Validity, nowMs: number, what: string): string | undefined {
  const state = renewalState(validity, nowMs);
  const at = (date: Date) => date.toISOString();
  if (state === 'expired')
    return `${what} expired at ${at(validity.notAfter)}, ${span(nowMs - validity.notAfter.getTime())} ago by this machine's clock (${at(new Date(nowMs))})`;
  if (state === 'not-yet-valid')
    return `${what} is valid only from ${at(validity.notBefore)}, in ${span(validity.notBefore.getTime() - nowMs)} by this machine's clock (${at(new Date(nowMs))}): is that clock behind?`;
  return undefined;
}

function span(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/**
 * The replacement of a CA, each phase visible on the disk (rotation.ts):
 *
 *   idle ─announce─► announced ─switch─► switched ─retire─► idle
 *                    both trusted,       both trusted,
 *                    old one signs       new one signs
 *
 * No phase ends before everybody who would be locked out by the next has been seen to be ready for it.
 */
export type RotationPhase = 'idle' | 'announced' | 'switched';
export type RotationStep = 'announce' | 'switch' | 'retire';

export interface RotationFacts {
  readonly phase: RotationPhase;
  /** This cluster's etcd has been restarted with the new bundle: it lets in a certificate that the new CA has signed. */
  readonly isTrustedByEtcd: boolean;
  /** Peers and nodes that do not trust the new CA yet: they would refuse our server. */
  readonly withoutBundle: readonly string[];
  /** Peers and nodes whose certificate is of the old CA still, and servers of that kind: they would be refused. */
  readonly usersOfOldCa: readonly string[];
  /** Until when both are trusted at least, milliseconds since 1970; for readers that tell nothing of themselves. */
  readonly overlapEndsAtMs: number;
  readonly nowMs: number;
}

export type RotationDecision = { readonly next: RotationStep } | { readonly waitFor: string };

/** The next step of a rotation that is wanted or under way. */
export function rotationDecision(facts: RotationFacts): RotationDecision {
  const { phase, isTrustedByEtcd, withoutBundle, usersOfOldCa, overlapEndsAtMs, nowMs } = facts;
  if (phase === 'idle') return { next: 'announce' };
  if (phase === 'announced') {
    if (!isTrustedByEtcd) return { waitFor: 'etcd to be restarted once: it reads trusted CAs only when it starts' };
    if (withoutBundle.length > 0)
      return { waitFor: `${withoutBundle.join(', ')} to take up the new CA beside the old one` };
    return { next: 'switch' };
  }
  if (usersOfOldCa.length > 0) return { waitFor: `${usersOfOldCa.join(', ')} to renew their certificates` };
  if (nowMs < overlapEndsAtMs)
    return {
      waitFor: `the overlap to end at ${new Date(overlapEndsAtMs).toISOString()}; both CAs are trusted until then`,
    };
  return { next: 'retire' };
}
