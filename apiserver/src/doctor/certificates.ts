/** What the dates of a certificate mean. Pure. */
import type { PreflightCheck } from '@clustermesh/contract';
import { doubtful, passed, refused } from '../preflight/check.ts';

const DAY_MS = 86_400_000;
const SOON_MS = 30 * DAY_MS;

export interface CertificateSeen {
  /** `the server certificate of us` */
  readonly what: string;
  readonly fingerprint: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** What nobody can do without it. */
  readonly why: string;
  readonly fix: string;
}

export function validityCheck(name: string, seen: CertificateSeen, nowMs: number): PreflightCheck {
  const shown = `${seen.what} (${seen.fingerprint.slice(0, 16)}…)`;
  const until = day(seen.notAfter);
  const leftMs = seen.notAfter.getTime() - nowMs;
  if (leftMs <= 0) {
    const ago = Math.floor(-leftMs / DAY_MS);
    return refused(name, {
      code: 'tls',
      what: `${shown} expired on ${until}, ${ago === 0 ? 'less than a day' : ago === 1 ? 'a day' : `${ago} days`} ago: nobody renewed it, as happens when its cluster was stopped for longer than it was valid`,
      why: seen.why,
      fix: seen.fix,
    });
  }
  if (seen.notBefore.getTime() > nowMs) {
    return refused(name, {
      code: 'tls',
      what: `${shown} is valid only from ${seen.notBefore.toISOString()} on: one of the two clocks is wrong`,
      why: seen.why,
      fix: 'synchronise the clocks of both hosts (NTP)',
    });
  }
  if (leftMs < SOON_MS) return doubtful(name, { what: `${shown} expires on ${until}`, why: seen.why, fix: seen.fix });
  return passed(name, `${shown} is valid until ${until}`);
}

const day = (date: Date): string => date.toISOString().slice(0, 10);
