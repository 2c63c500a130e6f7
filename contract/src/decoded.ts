/**
 * The result of reading a value that a stranger wrote. A bad object is a value, not an exception: it is quarantined and
 * counted, and the rest of its peer's state is applied (reliability F22, F24).
 */
export type Decoded<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly reason: string };

export function accept<T>(value: T): Decoded<T> {
  return { ok: true, value };
}

export function reject(reason: string): { readonly ok: false; readonly reason: string } {
  return { ok: false, reason };
}
