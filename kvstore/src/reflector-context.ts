import { type Clock, systemClock } from '@clustermesh/runtime';
import { Holdback } from './holdback.ts';
import { ReflectorProgress } from './reflector-progress.ts';
import { RowIndex } from './row-index.ts';
import type { ReflectorOptions, RowUpsert } from './types.ts';

/** What the parts of one reflector share. Outlives every session. */
export interface ReflectorContext {
  readonly options: ReflectorOptions;
  readonly clock: Clock;
  readonly index: RowIndex;
  readonly progress: ReflectorProgress;
  readonly holdback: Holdback | undefined;
}

export interface Canary {
  /** What showed the canary must also give the list: the next connection may lead to an empty etcd. */
  readonly connection: number;
  readonly createRevision: number;
}

export function contextOf(options: ReflectorOptions): ReflectorContext {
  const clock = options.clock ?? systemClock;
  const index = new RowIndex();
  return {
    options,
    clock,
    index,
    progress: new ReflectorProgress({ ...options, clock, index }),
    holdback: options.holdDeletes && new Holdback(options.holdDeletes),
  };
}

export function toUpsert(row: {
  readonly key: string;
  readonly value: Buffer;
  readonly modRevision: number;
}): RowUpsert {
  return { key: row.key, value: row.value, modRevision: row.modRevision };
}
