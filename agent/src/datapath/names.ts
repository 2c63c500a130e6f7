/** Numbers of the programs as words. */

/** CmReason.TO_STACK reads as 'to-stack'. */
export function namesOf(constants: Readonly<Record<string, number>>): Map<number, string> {
  const named = Object.entries(constants).filter(([name]) => name !== 'MAX');
  return new Map(named.map(([name, value]) => [value, name.toLowerCase().replaceAll('_', '-')]));
}

export type ReasonClass = 'forwarded' | 'noted' | 'answered' | 'dropped';

/** Ranges of bpf/lib/reasons.h. */
export function classOf(reason: number): ReasonClass {
  if (reason < 32) return 'forwarded';
  if (reason < 64) return 'noted';
  return reason < 128 ? 'answered' : 'dropped';
}
