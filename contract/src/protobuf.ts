/**
 * Protobuf's wire format for messages that are described by a table. Two things set it apart from the usual libraries: fields that the
 * table does not know are kept and written again, and the bytes are those that Go's generated code writes (fields in the order of
 * their numbers, map entries in the order of their keys, fields of plain Go values always there). Throws WireError; callers turn it
 * into a reason, because what is decoded here was written by a stranger.
 */

export type FieldKind = 'string' | 'uint32' | 'int32' | 'bool' | 'map' | MessageType;

export interface FieldType {
  readonly name: string;
  readonly kind: FieldKind;
  readonly repeated?: true;
  /** Written even when it is empty, and there after reading even when it was not written: a plain value in Go's struct. */
  readonly always?: true;
}

/** Field number → field, in ascending order. */
export type MessageType = ReadonlyMap<number, FieldType>;

/** Fields that the table does not know, as they were on the wire; on every message that had some. */
export const UNKNOWN_FIELDS = 'unknownFields';

// biome-ignore lint/suspicious/noExplicitAny: the table knows the fields only at run time; the codecs name their messages.
type Message = Record<string, any>;

export class WireError extends Error {}

/**
 * A few bytes of wire can become hundreds of bytes of objects. Kubernetes allows 1000 endpoints of 100 addresses in a slice, and
 * nobody writes a tenth of that; more fields than this are an attack on our memory.
 */
const MAX_FIELDS = 250_000;

const WIRE_VARINT = 0;
const WIRE_64BIT = 1;
const WIRE_BYTES = 2;
const WIRE_32BIT = 5;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

class Reader {
  private readonly bytes: Uint8Array;
  /** Shared by the readers of one decode. */
  readonly budget: { fields: number };
  offset = 0;

  constructor(bytes: Uint8Array, budget: { fields: number }) {
    this.bytes = bytes;
    this.budget = budget;
  }

  get done(): boolean {
    return this.offset >= this.bytes.length;
  }

  /** The low 32 bits, and whether any bit is set. */
  varint(): { readonly low: number; readonly isZero: boolean } {
    let low = 0;
    let any = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = this.bytes[this.offset++];
      if (byte === undefined) throw new WireError('ends inside a number');
      any |= byte & 0x7f;
      if (shift < 32) low |= (byte & 0x7f) << shift;
      if (byte < 0x80) return { low: low >>> 0, isZero: any === 0 };
    }
    throw new WireError('has a number of more than 10 bytes');
  }

  take(length: number): Uint8Array {
    if (length > this.bytes.length - this.offset) throw new WireError('ends inside a field');
    this.offset += length;
    return this.bytes.subarray(this.offset - length, this.offset);
  }

  skip(wireType: number): void {
    if (wireType === WIRE_VARINT) this.varint();
    else if (wireType === WIRE_64BIT) this.take(8);
    else if (wireType === WIRE_BYTES) this.take(this.varint().low);
    else if (wireType === WIRE_32BIT) this.take(4);
    else throw new WireError(`has a field of the unknown wire type ${wireType}`);
  }

  since(offset: number): Uint8Array {
    return this.bytes.subarray(offset, this.offset);
  }
}

function text(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new WireError('has text that is not UTF-8');
  }
}

const wireTypeOf = (kind: FieldKind) =>
  kind === 'uint32' || kind === 'int32' || kind === 'bool' ? WIRE_VARINT : WIRE_BYTES;

const MAP_ENTRY: MessageType = new Map([
  [1, { name: 'key', kind: 'string', always: true }],
  [2, { name: 'value', kind: 'string', always: true }],
]);

function emptyOf(field: FieldType): unknown {
  if (field.repeated) return [];
  if (field.kind === 'string') return '';
  if (field.kind === 'bool') return false;
  if (field.kind === 'uint32' || field.kind === 'int32') return 0;
  return field.kind === 'map' ? {} : emptyMessage(field.kind);
}

function emptyMessage(type: MessageType): Message {
  const message: Message = {};
  for (const field of type.values()) if (field.always || field.repeated) message[field.name] = emptyOf(field);
  return message;
}

function readValue(reader: Reader, field: FieldType, before: unknown): unknown {
  const { kind } = field;
  if (kind === 'uint32') return reader.varint().low;
  if (kind === 'int32') return reader.varint().low | 0;
  if (kind === 'bool') return !reader.varint().isZero;
  const bytes = reader.take(reader.varint().low);
  if (kind === 'string') return text(bytes);
  if (kind === 'map') {
    const { key, value } = decode(new Reader(bytes, reader.budget), MAP_ENTRY);
    // Defined, not assigned: a stranger may have called a label `__proto__`.
    return Object.defineProperty(before ?? {}, key, { value, writable: true, enumerable: true, configurable: true });
  }
  return decode(new Reader(bytes, reader.budget), kind);
}

function decode(reader: Reader, type: MessageType): Message {
  const message = emptyMessage(type);
  const unknown: Uint8Array[] = [];
  const seen = new Set<number>();
  while (!reader.done) {
    if (++reader.budget.fields > MAX_FIELDS) throw new WireError(`has more than ${MAX_FIELDS} fields`);
    const start = reader.offset;
    const tag = reader.varint().low;
    const wireType = tag & 7;
    const number = tag >>> 3;
    const field = type.get(number);
    if (number === 0) throw new WireError('has a field numbered 0');
    if (field === undefined) {
      reader.skip(wireType);
      unknown.push(reader.since(start));
      continue;
    }
    const { name, kind } = field;
    if (wireType !== wireTypeOf(kind)) throw new WireError(`has ${name} of the wrong wire type ${wireType}`);
    if (field.repeated) message[name].push(readValue(reader, field, undefined));
    else {
      // Protobuf would merge the two. No writer does it, and merging many costs a reader time without bound.
      if (typeof kind === 'object' && seen.has(number)) throw new WireError(`has ${name} twice`);
      message[name] = readValue(reader, field, message[name]);
    }
    seen.add(number);
  }
  if (unknown.length > 0) message[UNKNOWN_FIELDS] = concat(unknown);
  return message;
}

export function decodeMessage(bytes: Uint8Array, type: MessageType): Message {
  return decode(new Reader(bytes, { fields: 0 }), type);
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}

class Writer {
  private bytes = new Uint8Array(256);
  private length = 0;

  private room(count: number): void {
    if (this.length + count <= this.bytes.length) return;
    const bigger = new Uint8Array(Math.max(this.bytes.length * 2, this.length + count));
    bigger.set(this.bytes.subarray(0, this.length));
    this.bytes = bigger;
  }

  varint(value: number): void {
    this.room(10);
    let rest = value >>> 0;
    while (rest >= 0x80) {
      this.bytes[this.length++] = (rest & 0x7f) | 0x80;
      rest >>>= 7;
    }
    this.bytes[this.length++] = rest;
  }

  /** A negative int32 is sign-extended to 64 bits, so it takes ten bytes. */
  int32(value: number): void {
    if (value >= 0) {
      this.varint(value);
      return;
    }
    this.room(10);
    let rest = BigInt.asUintN(64, BigInt(value));
    while (rest >= 0x80n) {
      this.bytes[this.length++] = Number(rest & 0x7fn) | 0x80;
      rest >>= 7n;
    }
    this.bytes[this.length++] = Number(rest);
  }

  raw(bytes: Uint8Array): void {
    this.room(bytes.length);
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  delimited(bytes: Uint8Array): void {
    this.varint(bytes.length);
    this.raw(bytes);
  }

  finish(): Uint8Array {
    return this.bytes.subarray(0, this.length);
  }
}

function writeValue(writer: Writer, number: number, kind: FieldKind, value: unknown): void {
  if (kind === 'map') {
    for (const [key, entry] of Object.entries(value as object).sort(([a], [b]) => (a < b ? -1 : 1))) {
      writer.varint((number << 3) | WIRE_BYTES);
      writer.delimited(encodeMessage({ key, value: entry }, MAP_ENTRY));
    }
    return;
  }
  writer.varint((number << 3) | wireTypeOf(kind));
  if (kind === 'string') writer.delimited(encoder.encode(value as string));
  else if (kind === 'uint32') writer.varint(value as number);
  else if (kind === 'int32') writer.int32(value as number);
  else if (kind === 'bool') writer.varint(value === true ? 1 : 0);
  else writer.delimited(encodeMessage(value as Message, kind));
}

export function encodeMessage(message: Message, type: MessageType): Uint8Array {
  const writer = new Writer();
  for (const [number, field] of type) {
    const value = message[field.name] ?? (field.always ? emptyOf(field) : undefined);
    if (value === undefined) continue;
    if (field.repeated) for (const item of value) writeValue(writer, number, field.kind, item);
    else writeValue(writer, number, field.kind, value);
  }
  if (message[UNKNOWN_FIELDS] !== undefined) writer.raw(message[UNKNOWN_FIELDS]);
  return writer.finish();
}
