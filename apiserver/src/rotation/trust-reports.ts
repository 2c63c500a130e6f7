import type { HeldTrust } from '@clustermesh/contract';

export interface TrustReports {
  note(peer: string, trust: HeldTrust): void;
  /** What the peer said last; undefined when it has said nothing since this process started. */
  of(peer: string): HeldTrust | undefined;
}

/**
 * What peers say that they hold of this cluster's CAs. In memory: they say it again every `timers.peerRenewalMs`. A peer that says
 * something else than what is so locks out itself and nobody else.
 */
export function createTrustReports(): TrustReports {
  const said = new Map<string, HeldTrust>();
  return {
    note: (peer, trust) => void said.set(peer, trust),
    of: (peer) => said.get(peer),
  };
}
