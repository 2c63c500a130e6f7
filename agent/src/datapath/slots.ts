/**
 * How a service's slots are filled. Each backend once where all weigh the same and a flow may go anywhere; a Maglev table where
 * weights differ or the service asks for it. Behind the slots that are drawn from stand the draining backends. Pure.
 *
 *   slot   0 ………………… count-1 │ count ………                  in blocks of 110: rows of cm_slots
 *          drawn from        │ draining, each once
 */
import { createHash } from 'node:crypto';
import { type CmBlock, cmBlock } from '@clustermesh/bpf';
import { maglevSlots, maglevSteps } from './maglev.ts';
import { type Backend, SERVICE_FLAG, type ServiceRow } from './types.ts';

/** CM_BLOCK_SLOTS */
const BLOCK_SLOTS = cmBlock.size / 4;

export interface Slots {
  /** Those that are drawn from. */
  readonly count: number;
  /** Backend of each slot: an index of `backendsOf(row)`, or an id. */
  readonly of: Uint32Array;
}

const weightOf = (backend: Backend): number => backend.weight ?? 1;

/** All backends that the kernel must know of: those that are drawn, then those that drain. */
export const backendsOf = (row: ServiceRow): readonly Backend[] => [...row.backends, ...(row.draining ?? [])];

/** Written alike for one backend on all nodes: its slots in a table follow from it. */
const tableId = ({ clusterId, ip, port }: Backend): string => `${clusterId}/${ip}:${port}`;

/** Each backend has a slot, and all are drawn alike. */
function isPlain({ backends, flags }: ServiceRow): boolean {
  const weight = backends.length === 0 ? 1 : weightOf(backends[0]!);
  return (flags & SERVICE_FLAG.maglev) === 0 && weight > 0 && backends.every((one) => weightOf(one) === weight);
}

function plainSlots({ backends, draining = [] }: ServiceRow): Slots {
  const of = new Uint32Array(backends.length + draining.length);
  for (let i = 0; i < of.length; i++) of[i] = i;
  return { count: backends.length, of };
}

function* drawn(row: ServiceRow): Generator<void, Uint32Array> {
  const { backends } = row;
  const weights = backends.map(weightOf);
  if (weights.every((weight) => weight === 0)) return new Uint32Array();
  const entries = backends.map((backend, i) => ({ id: tableId(backend), weight: weights[i]! }));
  return yield* maglevSteps(entries, maglevSlots(weights.filter((weight) => weight > 0).length));
}

/** Who gets no slot (weight 0, or the table is too small) still keeps the connections that it has. */
export function* slotSteps(row: ServiceRow): Generator<void, Slots> {
  if (isPlain(row)) return plainSlots(row);
  const selected = yield* drawn(row);
  const seen = new Set(selected);
  const rest = [...backendsOf(row).keys()].filter((i) => !seen.has(i));
  return { count: selected.length, of: Uint32Array.from([...selected, ...rest]) };
}

/** Of one service that is changed often, or has several addresses, the table is made once. */
export function slotBuilder(pause: () => Promise<unknown>): (row: ServiceRow) => Promise<Slots> {
  let last: { name: string; slots: Slots } | undefined;
  return async (row) => {
    if (isPlain(row)) return plainSlots(row);
    const name = JSON.stringify([row.flags, row.backends, row.draining ?? []]);
    if (last?.name === name) return last.slots;
    const steps = slotSteps(row);
    for (;;) {
      const { done, value } = steps.next();
      if (done === true) {
        last = { name, slots: value };
        return value;
      }
      await pause();
    }
  };
}

export const blockCount = (ids: Uint32Array): number => Math.ceil(ids.length / BLOCK_SLOTS);

/** Rows of cm_slots, from block 0 on. */
export function toBlocks(ids: Uint32Array): CmBlock[] {
  return Array.from({ length: blockCount(ids) }, (_, block) => ({
    backend: Array.from(ids.subarray(block * BLOCK_SLOTS, (block + 1) * BLOCK_SLOTS)),
  }));
}

/** The slots up to the first block that is missing, without the empty ones at the end. */
export function fromBlocks(blocks: ReadonlyMap<number, CmBlock>): Uint32Array {
  const ids: number[] = [];
  for (let block = 0; blocks.has(block); block++) ids.push(...blocks.get(block)!.backend);
  while (ids.at(-1) === 0) ids.pop();
  return Uint32Array.from(ids);
}

/** Tells two tables apart without keeping either. */
export const digestOf = (ids: Uint32Array): string =>
  createHash('sha1')
    .update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength))
    .digest('base64');

/** Weights as the slots tell them: none where no backend has two slots more than another. */
export function weightsFrom(counts: readonly number[]): (number | undefined)[] {
  const isEven = Math.max(...counts) - Math.min(...counts) <= 1;
  return counts.map((n) => (isEven ? undefined : n));
}
