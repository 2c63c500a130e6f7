/**
 * JSON as Go's encoding/json reads it into a struct, and as it writes one: every field that is not omitempty is there, nothing is of
 * another type or beyond its width, and no name differs from a field's only in upper and lower case (Go would take it for that field).
 */
import { isIP } from 'node:net';
import { canonicalIp } from './addresses.ts';

export interface Context {
  readonly problems: string[];
  /** Fields of a newer writer are no problem. */
  readonly allowUnknown: boolean;
}

/** Says in `context.problems` what is wrong with `value` at `path`. */
export type Shape = (value: unknown, path: string, context: Context) => void;

function wrong(context: Context, path: string, expected: string, value: unknown): void {
  const text = JSON.stringify(value);
  context.problems.push(`${path || 'value'} is ${text.length > 60 ? `${text.slice(0, 57)}…` : text}, not ${expected}`);
}

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export const text: Shape = (value, path, context) => {
  if (typeof value !== 'string') wrong(context, path, 'text', value);
};

export const filled: Shape = (value, path, context) => {
  if (typeof value !== 'string' || value === '') wrong(context, path, 'text that is not empty', value);
};

export const flag: Shape = (value, path, context) => {
  if (typeof value !== 'boolean') wrong(context, path, 'true or false', value);
};

export const always =
  (expected: unknown): Shape =>
  (value, path, context) => {
    if (value !== expected) wrong(context, path, `${JSON.stringify(expected)}, which every writer writes`, value);
  };

export const oneOf =
  (...allowed: readonly string[]): Shape =>
  (value, path, context) => {
    if (typeof value !== 'string' || !allowed.includes(value))
      wrong(context, path, `one of ${allowed.join(', ')}`, value);
  };

export const unsigned =
  (bits: 8 | 16 | 32, min = 0): Shape =>
  (value, path, context) => {
    if (!Number.isInteger(value) || (value as number) < min || (value as number) >= 2 ** bits)
      wrong(context, path, `a whole number in ${min}…${2 ** bits - 1}`, value);
  };

/** Go's net.IP as text; its own text form is expected, because that is what keys are made of. */
export const ip: Shape = (value, path, context) => {
  if (typeof value !== 'string' || isIP(value) === 0 || value.includes('%')) wrong(context, path, 'an address', value);
  else if (canonicalIp(value) !== value)
    wrong(context, path, `in the form that Go writes (${canonicalIp(value)})`, value);
};

/** An address, or "" where there is none. */
export const ipOrEmpty: Shape = (value, path, context) => {
  if (value !== '') ip(value, path, context);
};

export const time: Shape = (value, path, context) => {
  const form = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;
  if (typeof value !== 'string' || !form.test(value) || Number.isNaN(Date.parse(value)))
    wrong(context, path, 'a time as in RFC 3339', value);
  else if (value.startsWith('0001-01-01T00:00:00')) wrong(context, path, 'a time that is set', value);
};

/** A pointer, slice or map of Go: null is nothing. */
export const nullable =
  (shape: Shape): Shape =>
  (value, path, context) => {
    if (value !== null) shape(value, path, context);
  };

export const list =
  (item: Shape): Shape =>
  (value, path, context) => {
    if (!Array.isArray(value)) return wrong(context, path, 'a list', value);
    for (const [index, entry] of value.entries()) item(entry, `${path}[${index}]`, context);
  };

export const map =
  (item: Shape, key: Shape = text): Shape =>
  (value, path, context) => {
    if (!isObject(value)) return wrong(context, path, 'an object', value);
    for (const [name, entry] of Object.entries(value)) {
      key(name, `${path}: name`, context);
      item(entry, `${path}[${JSON.stringify(name)}]`, context);
    }
  };

/** `required`: written always. `optional`: omitempty, so never there with an empty value that Go would have left out. */
export const struct =
  (required: Readonly<Record<string, Shape>>, optional: Readonly<Record<string, Shape>> = {}): Shape =>
  (value, path, context) => {
    if (!isObject(value)) return wrong(context, path, 'an object', value);
    const at = (name: string) => (path === '' ? name : `${path}.${name}`);
    const fields: Readonly<Record<string, Shape>> = { ...required, ...optional };
    for (const name of Object.keys(required)) {
      if (!Object.hasOwn(value, name)) context.problems.push(`${at(name)} is missing`);
    }
    const byLowerCase = new Map(Object.keys(fields).map((name) => [name.toLowerCase(), name]));
    for (const [name, entry] of Object.entries(value)) {
      const shape = Object.hasOwn(fields, name) ? fields[name] : undefined;
      if (shape !== undefined) shape(entry, at(name), context);
      else if (byLowerCase.has(name.toLowerCase()))
        context.problems.push(`${at(name)} would be read as ${byLowerCase.get(name.toLowerCase())}`);
      else if (!context.allowUnknown) context.problems.push(`${at(name)} is no field of it`);
    }
  };

/** The text as JSON of the shape; undefined (and the problems say why) when it is not even an object. */
export function readJson(bytes: Buffer, shape: Shape, context: Context): Record<string, unknown> | undefined {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    context.problems.push(`is not JSON: ${error instanceof Error ? error.message : String(error)}`);
    return undefined;
  }
  shape(value, '', context);
  return isObject(value) ? value : undefined;
}
