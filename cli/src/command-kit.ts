/** What every command is given, and what several of them do. */
import { type Command, Option } from 'commander';
import { stringify } from 'yaml';
import { type Context, type ContextPlaces, resolveContext } from './contexts.ts';
import { UsageError } from './exit-codes.ts';
import { openSide, type Side } from './side.ts';
import type { Terminal } from './terminal.ts';

export interface CommandKit {
  readonly terminal: Terminal;
  readonly places: ContextPlaces;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
  /** Makes a command that prints through `terminal` and throws instead of ending the process. */
  readonly add: (name: string, description: string, parent?: Command) => Command;
}

export type Format = 'table' | 'json' | 'yaml';

export const outputOption = () =>
  new Option('-o, --output <format>', 'how to print').choices(['table', 'json', 'yaml']).default('table');

/** Prints `value` for machines, or what `asTable` makes of it for people. */
export function print<T>(terminal: Terminal, format: Format, value: T, asTable: (value: T) => string): void {
  if (format === 'json') terminal.out(JSON.stringify(value, null, 2));
  else if (format === 'yaml') terminal.out(stringify(value).trimEnd());
  else terminal.out(asTable(value));
}

/** Opens each named cluster, which must be different ones, and closes them whatever happens. */
export async function withSides<T>(
  names: readonly (string | Context)[],
  places: ContextPlaces,
  use: (sides: readonly Side[]) => Promise<T>,
): Promise<T> {
  const contexts = names.map((name) => (typeof name === 'string' ? resolveContext(name, places) : name));
  const byAddress = new Map<string, Context>();
  for (const context of contexts) {
    if (byAddress.has(context.apiserver)) {
      throw new UsageError({
        code: 'invalid-argument',
        message: `both contexts are the cluster ${context.cluster}`,
        hint: 'name two different clusters',
      });
    }
    byAddress.set(context.apiserver, context);
  }
  const sides = contexts.map((context) => openSide(context));
  try {
    return await use(sides);
  } finally {
    for (const side of sides) side.close();
  }
}

export const withSide = <T>(
  name: string | Context,
  places: ContextPlaces,
  use: (side: Side) => Promise<T>,
): Promise<T> => withSides([name], places, ([side]) => use(side!));
