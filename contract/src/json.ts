import type { z } from 'zod';
import { accept, type Decoded, reject } from './decoded.ts';

/** Parses a JSON value against a schema. The reason names the first three fields that are wrong. */
export function decodeJson<T>(what: string, text: string, schema: z.ZodType<T>): Decoded<T> {
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    return reject(`${what} is not JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  const parsed = schema.safeParse(raw);
  if (parsed.success) return accept(parsed.data);
  const issues = parsed.error.issues
    .slice(0, 3)
    .map((issue) => `${issue.path.join('.') || '(value)'}: ${issue.message}`);
  return reject(`${what} is invalid: ${issues.join('; ')}`);
}
