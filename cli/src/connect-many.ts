/** `clustermesh connect` of more than two clusters: which pairs, and several of them at a time. */
import { type ErrorCode, MeshError } from '@clustermesh/contract';
import { connect, type PairOptions } from './connect.ts';
import { OutOfTime } from './exit-codes.ts';
import type { Side } from './side.ts';

export const CONNECT_MODES = ['bidirectional', 'unicast', 'mesh'] as const;
export type ConnectMode = (typeof CONNECT_MODES)[number];

export interface ManyOptions extends Omit<PairOptions, 'source' | 'destination' | 'oneWay'> {
  /** The first is --context. */
  readonly sides: readonly Side[];
  readonly mode: ConnectMode;
  /** Pairs at a time. */
  readonly parallel: number;
}

/** `mesh`: every pair; otherwise the first with each of the others. */
export function pairsOf<T>(all: readonly T[], mode: ConnectMode): (readonly [T, T])[] {
  const [first, ...others] = all;
  if (mode !== 'mesh') return others.map((other) => [first!, other]);
  return all.flatMap((one, index) => all.slice(index + 1).map((other) => [one, other] as const));
}

/** A pair that fails does not hold the others up; all failures are told at the end. */
export async function connectMany(options: ManyOptions): Promise<void> {
  const { sides, mode, parallel, ...shared } = options;
  const pairs = pairsOf(sides, mode);
  const failures: { readonly index: number; readonly pair: string; readonly error: unknown }[] = [];
  const waiting = pairs.entries();
  const work = async () => {
    // One iterator for all workers: each takes the next pair.
    for (const [index, [source, destination]] of waiting) {
      try {
        await connect({ ...shared, source, destination, oneWay: mode === 'unicast' });
      } catch (error) {
        if (options.signal.aborted) throw error;
        failures.push({ index, pair: `${source.name} and ${destination.name}`, error });
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(parallel, pairs.length) }, work));
  if (failures.length === 0) return;
  failures.sort((a, b) => a.index - b.index);
  if (pairs.length === 1) throw failures[0]!.error;
  const reasons = failures.map(({ pair, error }) => {
    const { message, hint } = MeshError.from(error, 'connecting');
    return `${pair}: ${message}${hint === undefined ? '' : ` (${hint})`}`;
  });
  const message = `connecting ${sides.map((side) => side.name).join(', ')}: ${failures.length} of ${pairs.length} pairs failed: ${reasons.join('; ')}`;
  const hint = 'mend it and run the same command again: pairs that are connected are left as they are';
  if (failures.every(({ error }) => error instanceof OutOfTime)) throw new OutOfTime({ message, hint });
  const code: ErrorCode = MeshError.from(failures[0]!.error, 'connecting').code;
  throw new MeshError({ code, message, hint });
}
