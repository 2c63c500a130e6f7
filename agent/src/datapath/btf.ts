/**
 * The kernel's own description of a map's rows (BTF), as far as it takes to find a field by its name. Pure.
 * Format: linux/Documentation/bpf/btf.rst; little-endian, as all that we run on.
 */

/** Something that is copied as it is: a number, or an array of numbers. */
export interface Field {
  /** Members from the outside in: `nat_addr.word`; '' where the whole type is one number. */
  readonly path: string;
  readonly offset: number;
  readonly size: number;
}

const KIND = {
  int: 1,
  pointer: 2,
  array: 3,
  struct: 4,
  union: 5,
  enum: 6,
  typedef: 8,
  volatile: 9,
  const: 10,
  restrict: 11,
  functionProto: 13,
  variable: 14,
  section: 15,
  float: 16,
  declarationTag: 17,
  typeTag: 18,
  enum64: 19,
} as const;

/** Bytes behind a type's own twelve: fixed, or for each of its members. */
const FIXED: Readonly<Record<number, number>> = {
  [KIND.int]: 4,
  [KIND.array]: 12,
  [KIND.variable]: 4,
  [KIND.declarationTag]: 4,
};
const EACH: Readonly<Record<number, number>> = {
  [KIND.struct]: 12,
  [KIND.union]: 12,
  [KIND.enum]: 8,
  [KIND.functionProto]: 8,
  [KIND.section]: 12,
  [KIND.enum64]: 12,
};
const OTHER_NAMES: ReadonlySet<number> = new Set([
  KIND.typedef,
  KIND.volatile,
  KIND.const,
  KIND.restrict,
  KIND.typeTag,
]);
const NUMBERS: ReadonlySet<number> = new Set([KIND.int, KIND.enum, KIND.enum64, KIND.float]);
const TYPE_BYTES = 12;
const MEMBER_BYTES = 12;

/** Reads `struct btf_header` and where each type begins; type 0 is void. */
export function readBtf(raw: Buffer): (typeId: number) => readonly Field[] {
  const at = (place: number) => raw.readUInt32LE(place);
  const header = at(4);
  const [typesAt, typesLength, textsAt] = [header + at(8), at(12), header + at(16)];
  const starts = [0];
  for (let place = typesAt; place < typesAt + typesLength; ) {
    starts.push(place);
    const { kind, members } = read(place);
    place += TYPE_BYTES + (FIXED[kind] ?? 0) + (EACH[kind] ?? 0) * members;
  }

  function read(place: number) {
    const info = at(place + 4);
    return { kind: (info >>> 24) & 0x1f, members: info & 0xffff, sizeOrType: at(place + 8) };
  }

  function text(offset: number): string {
    const start = textsAt + offset;
    return raw.toString('latin1', start, raw.indexOf(0, start));
  }

  /** Through names and qualifiers. */
  function resolve(typeId: number) {
    let place = starts[typeId] ?? 0;
    for (let type = read(place); OTHER_NAMES.has(type.kind); type = read(place)) place = starts[type.sizeOrType] ?? 0;
    return { place, ...read(place) };
  }

  function sizeOf(typeId: number): number {
    const { place, kind, sizeOrType } = resolve(typeId);
    return kind === KIND.array ? sizeOf(at(place + TYPE_BYTES)) * at(place + TYPE_BYTES + 8) : sizeOrType;
  }

  function* fields(typeId: number, path: string, offset: number): Generator<Field> {
    const { place, kind, members } = resolve(typeId);
    const size = sizeOf(typeId);
    if (kind === KIND.struct) {
      for (let i = 0; i < members; i++) {
        const member = place + TYPE_BYTES + i * MEMBER_BYTES;
        const name = text(at(member));
        // Bits 0 to 23: the offset, in bits; the rest says that it is a bit field, which ours have none of.
        const inside = (at(member + 8) & 0xffffff) / 8;
        yield* fields(at(member + 4), path === '' ? name : `${path}.${name}`, offset + inside);
      }
      return;
    }
    const element = kind === KIND.array ? at(place + TYPE_BYTES) : undefined;
    if (element !== undefined && !NUMBERS.has(resolve(element).kind)) {
      const step = sizeOf(element);
      for (let i = 0; i * step < size; i++) yield* fields(element, `${path}[${i}]`, offset + i * step);
      return;
    }
    yield { path, offset, size };
  }

  return (typeId) => [...fields(typeId, '', 0)];
}
