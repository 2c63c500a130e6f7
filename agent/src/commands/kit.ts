/** What the agent's commands share: the socket they talk to, how they print, how they end. */
import { type AgentMethods, MeshError } from '@clustermesh/contract';
import { dialRpc, type RpcClient, table } from '@clustermesh/runtime';
import { type Command, Option } from 'commander';
import { loadAgentConfig } from '../config.ts';

/** Documented in docs/cli.md and in --help; scripts rely on them. */
export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

export interface Terminal {
  out(line: string): void;
  err(line: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
}

/** A mistake on the command line. */
export class UsageError extends MeshError {}

export interface SocketOptions {
  readonly socket?: string;
  readonly config?: string;
}

export interface PrintOptions extends SocketOptions {
  readonly output: 'table' | 'json';
}

export type Rpc = RpcClient<AgentMethods>;

export interface CommandKit {
  readonly terminal: Terminal;
  /** Makes a word that other commands follow. */
  readonly group: (name: string, description: string) => Command;
  /** Makes a command with the options that all of them have. */
  readonly add: (name: string, description: string, parent?: Command) => Command;
  /** Opens the agent's socket for as long as `use` takes. Its number becomes the exit code, 0 if it has none. */
  readonly withAgent: (options: SocketOptions, use: (rpc: Rpc) => Promise<number | undefined>) => Promise<void>;
}

export const SOCKET_VARIABLE = 'CLUSTERMESH_AGENT_SOCKET';

export const outputOption = () =>
  new Option('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table');

function socketOf({ socket, config }: SocketOptions, env: Terminal['env']): string {
  const path = socket ?? (config === undefined ? env[SOCKET_VARIABLE] : loadAgentConfig(config).socket);
  if (path !== undefined && path !== '') return path;
  throw new UsageError({
    code: 'invalid-argument',
    message: 'asking an agent: which one?',
    hint: `Name its socket (--socket PATH or ${SOCKET_VARIABLE}) or its configuration (--config FILE).`,
  });
}

export async function withAgentAt<T>(
  options: SocketOptions,
  env: Terminal['env'],
  use: (rpc: Rpc) => Promise<T>,
): Promise<T> {
  const rpc = dialRpc<AgentMethods>('agent', `unix:${socketOf(options, env)}`);
  try {
    return await use(rpc);
  } finally {
    rpc.close();
  }
}

type Row = Readonly<Record<string, unknown>>;

/** A cell: nothing for what is absent, the values of a list, JSON for what has members. */
const cell = (value: unknown): string => {
  if (value === undefined || value === null) return '';
  if (Array.isArray(value)) return value.map(cell).join(' ');
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
};

/** Rows under the names of their members, or as JSON. Columns are those of any row, in the order in which they come up. */
export function printRows(
  terminal: Terminal,
  output: 'table' | 'json',
  rows: readonly Row[],
  columns?: string[],
): void {
  if (output === 'json') {
    terminal.out(JSON.stringify(rows, null, 2));
    return;
  }
  const shown = columns ?? [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const head = shown.map((name) => name.replace(/[A-Z]/g, ' $&').toUpperCase());
  for (const line of table(
    head,
    rows.map((row) => shown.map((name) => cell(row[name]))),
  ))
    terminal.out(line);
}

/** All rows of a map, however many. */
export async function readMap(rpc: Rpc, map: string): Promise<Row[]> {
  const rows: Row[] = [];
  for await (const { json } of rpc.ReadMap({ map })) rows.push(...(JSON.parse(json) as Row[]));
  return rows;
}
