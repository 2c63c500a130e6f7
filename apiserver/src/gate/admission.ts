/** Who may pass the gate. Pure: it is asked at the door and again, for every open connection, whenever the policy changes. */
import type { AuthMode } from './config.ts';

export interface Policy {
  readonly authMode: AuthMode;
  /** `remote-<peer>` of users.yaml. */
  readonly users: ReadonlySet<string>;
  /** Serial numbers of revoked certificates. */
  readonly revoked: ReadonlySet<string>;
}

export interface Visitor {
  /** Common name of the client certificate, whose issuer has been verified. */
  readonly user: string;
  readonly serial: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** Whether one of the CAs trusted now has issued the certificate. */
  readonly isTrusted: boolean;
}

export type Refusal = 'unknown-user' | 'revoked' | 'expired' | 'not-yet-valid' | 'legacy-user' | 'untrusted-ca';

/** Undefined when the visitor may pass. */
export function refusalOf(policy: Policy, visitor: Visitor, wallMs: number): Refusal | undefined {
  if (!visitor.isTrusted) return 'untrusted-ca';
  if (policy.revoked.has(visitor.serial)) return 'revoked';
  if (wallMs >= visitor.notAfterMs) return 'expired';
  if (wallMs < visitor.notBeforeMs) return 'not-yet-valid';
  if (visitor.user === 'remote') return policy.authMode === 'cluster' ? 'legacy-user' : undefined;
  if (policy.authMode === 'legacy') return 'unknown-user';
  return policy.users.has(visitor.user) ? undefined : 'unknown-user';
}

export const REFUSAL_TEXT: Readonly<Record<Refusal, string>> = {
  'unknown-user': 'users.yaml does not name this user',
  revoked: 'this certificate was revoked',
  expired: 'this certificate has expired: rotate it, or connect again',
  'not-yet-valid': 'this certificate is not valid yet: compare the clocks of both clusters',
  'untrusted-ca': 'its certificate is not of a CA that is trusted here any more',
  'legacy-user': 'authMode cluster does not take the common name "remote"; issue remote-<peer>',
};
