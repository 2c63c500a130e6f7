import { readFileSync } from 'node:fs';
import { MeshError, messageOf } from '@clustermesh/contract';
import { parse } from 'yaml';
import type { z } from 'zod';

/** Reads a YAML file into a validated, frozen config. All problems are reported together, each with its field. */
export function loadConfig<T>(path: string, schema: z.ZodType<T>): Readonly<T> {
  let raw: unknown;
  try {
    raw = parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new MeshError({
      code: 'invalid-config',
      message: `reading config ${path}: ${messageOf(error)}`,
      cause: error,
    });
  }
  const parsed = schema.safeParse(raw);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => `  ${issue.path.join('.') || '(file)'}: ${issue.message}`);
    throw new MeshError({ code: 'invalid-config', message: `config ${path} is invalid:\n${problems.join('\n')}` });
  }
  return deepFreeze(parsed.data);
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
