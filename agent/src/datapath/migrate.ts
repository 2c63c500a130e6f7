/**
 * Pinned maps of another layout, or of another size, are succeeded by new ones that hold the same rows, field by field:
 *
 *   old map ── rows, fields by name ──► new map ── takes the pin ──► programs attached ──► rows that came meanwhile
 *
 * What a field is called is what it means: one that means something else must be called something else. A field that is new is zero, one that
 * is gone is forgotten. Old programs go on over the old map until they are replaced, so nothing is ever without its rows. Killed before the
 * pin is taken, all begins anew; after it, the new map is as if it had always been there.
 */
import { renameSync, rmSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import type { Codec, MapLayout, MapName } from '@clustermesh/bpf';
import { MeshError } from '@clustermesh/contract';
import { openMap } from './bpf-map.ts';
import { type Field, readBtf } from './btf.ts';
import * as libbpf from './libbpf.ts';

/** Descriptors of a pinned map and of what takes its place. */
export interface Succession {
  readonly name: MapName;
  readonly pin: string;
  readonly from: number;
  readonly to: number;
}

const TYPE = { hash: 1, array: 2, percpuHash: 5, percpuArray: 6, lruHash: 9, lpmTrie: 11 } as const;
/** Each CPU has values of its own in them: counters, which begin anew. */
const COUNTERS: ReadonlySet<number> = new Set([TYPE.percpuHash, TYPE.percpuArray]);
const CATCH_UP_SLICE = 1000;

interface Described {
  readonly info: libbpf.RawMapInfo;
  readonly key: readonly Field[];
  readonly value: readonly Field[];
}

function describe(fd: number): Described | undefined {
  const info = libbpf.mapInfo(fd);
  const raw = libbpf.btfOf(info);
  if (raw === undefined) return undefined;
  const fieldsOf = readBtf(raw);
  return { info, key: fieldsOf(info.btfKeyType), value: fieldsOf(info.btfValueType) };
}

const isSame = (a: readonly Field[], b: readonly Field[]): boolean => JSON.stringify(a) === JSON.stringify(b);

/** Why the rows of `from` cannot become rows of a map like `layout`; undefined: they can. */
export function whyNot(from: number, layout: Pick<MapLayout<unknown, unknown>, 'type'>): string | undefined {
  const { type, ...info } = libbpf.mapInfo(from);
  if (COUNTERS.has(type) && COUNTERS.has(layout.type)) return undefined;
  const isHash = (one: number) => one === TYPE.hash || one === TYPE.lruHash;
  if (type !== layout.type && !(isHash(type) && isHash(layout.type))) return 'it is of another kind';
  return libbpf.btfOf({ type, ...info }) === undefined
    ? 'the kernel does not know what its rows are made of'
    : undefined;
}

interface Move {
  readonly from: number;
  readonly to: number;
  readonly bytes: number;
}

function movesBetween(from: readonly Field[], to: readonly Field[]): Move[] {
  const known = new Map(from.map((field) => [field.path, field]));
  return to.flatMap(({ path, offset, size }) => {
    const old = known.get(path);
    // A number that has grown: its low bytes come first.
    return old === undefined ? [] : [{ from: old.offset, to: offset, bytes: Math.min(old.size, size) }];
  });
}

function converter(from: readonly Field[], to: readonly Field[], size: number): (row: Buffer) => Buffer {
  const moves = movesBetween(from, to);
  return (row) => {
    const made = Buffer.alloc(size);
    for (const move of moves) row.copy(made, move.to, move.from, move.from + move.bytes);
    return made;
  };
}

const bytes = (size: number): Codec<Buffer> => ({
  name: 'bytes',
  size,
  encode(value, into = Buffer.alloc(size), at = 0) {
    value.copy(into, at);
    return into;
  },
  decode: (from, at = 0) => from.subarray(at, at + size),
});

const rawMap = (name: string, fd: number, { info }: Described) =>
  openMap<Buffer, Buffer>(name, fd, {
    ...info,
    fingerprint: '',
    key: bytes(info.keySize),
    value: bytes(info.valueSize),
  });

/** Undefined: its rows are not carried over. */
function plan({ name, pin, from, to }: Succession) {
  const [old, made] = [describe(from), describe(to)];
  if (COUNTERS.has(libbpf.mapInfo(from).type)) return undefined;
  if (old === undefined || made === undefined)
    throw impossible(pin, 'the kernel does not know what its rows are made of');
  if (made.info.type === TYPE.lpmTrie && !isSame(old.key, made.key))
    throw impossible(pin, 'its prefixes have another key');
  return {
    old: rawMap(name, from, old),
    made: rawMap(name, to, made),
    isLru: made.info.type === TYPE.lruHash,
    key: converter(old.key, made.key, made.info.keySize),
    value: converter(old.value, made.value, made.info.valueSize),
  };
}

export const impossible = (pin: string, reason: string): MeshError =>
  new MeshError({
    code: 'map-layout',
    message: `reusing the pinned map ${pin}: another version of the agent made it, with another layout, and ${reason}`,
    hint: `Run the agent version that made it, or drain this node, remove ${pin} and start again.`,
  });

/** All rows, then the pin. `noteLayout` is told of each map whose pin is its new one. */
export async function carryOver(all: readonly Succession[], noteLayout: (name: MapName) => void): Promise<void> {
  for (const one of all) {
    const planned = plan(one);
    if (planned === undefined) continue;
    const rows = await planned.old.entries();
    const results = await planned.made.updateEach(
      rows,
      ([key]) => planned.key(key),
      ([, value]) => planned.value(value),
      (_, error) => {
        throw error;
      },
    );
    const failed = results.filter((error) => error !== undefined);
    const [first] = failed;
    if (first === undefined) continue;
    const lost = `carrying ${rows.length} rows of ${one.pin} over to its new layout and size: ${failed.length} were not taken`;
    throw new MeshError({
      code: first.code,
      message: `${lost}: ${first.message}`,
      hint: `Give mapSizes.${one.name} room for them. Nothing has been changed.`,
    });
  }
  for (const { name, pin, to } of all) {
    const beside = `${pin}_next`;
    rmSync(beside, { force: true }); // of a start that was killed here
    libbpf.pinFd(to, beside);
    renameSync(beside, pin);
    // In this order: a layout noted too early would have the old bytes read as new ones; too late, and they are carried over once more.
    noteLayout(name);
  }
}

/** What the old programs have noted by themselves since: to be called once no program uses the old maps any more. */
export async function catchUp(all: readonly Succession[]): Promise<void> {
  for (const one of all) {
    const planned = plan(one);
    if (planned === undefined || !planned.isLru) continue;
    let done = 0;
    for (const [key, value] of await planned.old.entries()) {
      if (++done % CATCH_UP_SLICE === 0) await setImmediate();
      libbpf.mapInsert(one.to, planned.key(key), planned.value(value)); // there already, or no room: either is fine
    }
  }
}
