/**
 * Puts the time of the last semantic change into JSON values, under `x-clustermesh`. A value that differs from what is there only
 * inside that object is not written again (wire-contract, top), so a restart rewrites nothing; weights are the exception. Pure.
 */
import { EXTENSION_FIELD, rfc3339Ms } from '@clustermesh/contract';

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}

/** Everything but our own object, of which only weights are a meaning: what decides whether a value has changed. */
function semantic(value: Record<string, unknown>): string {
  const { weights } = (value[EXTENSION_FIELD] ?? {}) as { readonly weights?: unknown };
  return JSON.stringify({ ...value, [EXTENSION_FIELD]: weights });
}

export function stampChanges(
  rows: ReadonlyMap<string, string>,
  previous: ReadonlyMap<string, string>,
  wallMs: number,
): Map<string, string> {
  const stamped = new Map<string, string>();
  for (const [key, text] of rows) {
    const next = parseObject(text);
    if (next === undefined) {
      stamped.set(key, text);
      continue;
    }
    const before = previous.get(key);
    const old = before === undefined ? undefined : parseObject(before);
    if (before !== undefined && old !== undefined && semantic(old) === semantic(next)) stamped.set(key, before);
    else
      stamped.set(
        key,
        JSON.stringify({
          ...next,
          [EXTENSION_FIELD]: { ...(next[EXTENSION_FIELD] as object | undefined), changedAt: rfc3339Ms(wallMs) },
        }),
      );
  }
  return stamped;
}
