/** What every command is given, and what several of them do. */
import { type Command, Option } from 'commander';
import { stringify } from 'yaml';
import { type Context, type ContextPlaces, listContexts, resolveContext } from './contexts.ts';
import { UsageError } from './exit-codes.ts';
import { openSide, type Side } from './side.ts';
import type { Terminal } from './terminal.ts';

export interface CommandKit {
  readonly terminal: Terminal;
  readonly places: ContextPlaces;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
  /** All of it. */
  readonly program: Command;
  /** Makes a command that prints through `terminal` and throws instead of ending the process. */
  readonly add: (name: string, description: string, parent?: Command) => Command;
}

export type Format = 'table' | 'json' | 'yaml';

export const outputOption = () =>
  new Option('-o, --output <format>', 'how to print').choices(['table', 'json', 'yaml']).default('table');

export const contextOption = () =>
  new Option('--context <context>', 'the cluster; may be left out when there is only one');

/** The context that was given, or the only one there is. */
export function onlyContext(given: string | undefined, places: ContextPlaces): string | Context {
  if (given !== undefined) return given;
  const all = listContexts(places);
  if (all.length === 1) return all[0]!;
  throw new UsageError(
    all.length === 0
      ? {
          code: 'not-found',
          message: 'choosing a cluster: none was found',
          hint: 'start a lab (npm start, or npm run lab -- up), or set CLUSTERMESH_CONTEXTS',
        }
      : {
          code: 'invalid-argument',
          message: `choosing a cluster: there are ${all.length} contexts`,
          hint: `give --context with one of: ${all.map((context) => context.name).join(', ')}`,
        },
  );
}

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
