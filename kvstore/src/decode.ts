/**
 * The two answers that carry rows, decoded by hand: they are nearly all that is ever received, and protobufjs with longs as strings
 * costs several times what etcd needs to send them. Field numbers are those of etcd's rpc.proto and kv.proto.
 */

import type { WireHeader } from './proto.ts';
import type { KeyValue, WatchEvent } from './types.ts';

export interface RangeAnswer {
  readonly header: WireHeader;
  readonly kvs: KeyValue[];
  /** As etcd sent it: a key need not be UTF-8, and the next page begins behind its bytes. */
  readonly lastKey: Buffer | undefined;
  readonly more: boolean;
  readonly count: number;
}

export interface WatchAnswer {
  readonly header: WireHeader;
  readonly watchId: string;
  readonly created: boolean;
  readonly canceled: boolean;
  readonly compactRevision: number;
  readonly cancelReason: string;
  readonly fragment: boolean;
  readonly events: WatchEvent[];
}

const VARINT = 0;
const FIXED64 = 1;
const LENGTH = 2;
const FIXED32 = 5;

/** A cursor over one message; sub-messages share it and are bounded by their end. */
class Cursor {
  at = 0;
  readonly bytes: Buffer;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  /** Revisions, versions and counts stay far below 2^53. */
  number(): number {
    // Tags, and most lengths.
    const first = this.bytes[this.at];
    if (first !== undefined && first < 0x80) {
      this.at++;
      return first;
    }
    let value = 0;
    let factor = 1;
    for (;;) {
      const byte = this.#byte();
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
      factor *= 128;
    }
  }

  /** Cluster, lease and watch ids use all 64 bits. */
  decimal(isSigned: boolean): string {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.#byte();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    return (isSigned ? BigInt.asIntN(64, value) : BigInt.asUintN(64, value)).toString();
  }

  /** The end of the length-delimited field that begins here. */
  end(): number {
    const length = this.number();
    const end = this.at + length;
    if (end > this.bytes.length) throw new Error('a field of etcd reaches beyond its message');
    return end;
  }

  data(): Buffer {
    const end = this.end();
    const value = this.bytes.subarray(this.at, end);
    this.at = end;
    return value;
  }

  text(): string {
    const end = this.end();
    const value = this.bytes.toString('utf8', this.at, end);
    this.at = end;
    return value;
  }

  skip(wireType: number): void {
    if (wireType === VARINT) while (this.#byte() >= 0x80);
    else if (wireType === LENGTH) this.at = this.end();
    else if (wireType === FIXED64) this.at += 8;
    else if (wireType === FIXED32) this.at += 4;
    else throw new Error(`etcd sent wire type ${wireType}`);
  }

  #byte(): number {
    const byte = this.bytes[this.at++];
    if (byte === undefined) throw new Error('a message of etcd ends in the middle of a number');
    return byte;
  }
}

function header(cursor: Cursor): WireHeader {
  const end = cursor.end();
  let cluster_id = '0';
  let revision = 0;
  while (cursor.at < end) {
    const tag = cursor.number();
    if (tag === 8) cluster_id = cursor.decimal(false);
    else if (tag === 24) revision = cursor.number();
    else cursor.skip(tag & 7);
  }
  return { cluster_id, revision: String(revision) };
}

const EMPTY: Buffer = Buffer.alloc(0);

/** The bytes of field 1 of the key-value at the cursor, which etcd writes first; the cursor stays. */
function peekKey(cursor: Cursor): Buffer | undefined {
  const at = cursor.at;
  cursor.end();
  const key = cursor.number() === 10 ? cursor.data() : undefined;
  cursor.at = at;
  return key;
}

function keyValue(cursor: Cursor): KeyValue {
  const end = cursor.end();
  let key = '';
  let value = EMPTY;
  let createRevision = 0;
  let modRevision = 0;
  let version = 0;
  let lease = '0';
  while (cursor.at < end) {
    const tag = cursor.number();
    switch (tag) {
      case 10:
        key = cursor.text();
        break;
      case 16:
        createRevision = cursor.number();
        break;
      case 24:
        modRevision = cursor.number();
        break;
      case 32:
        version = cursor.number();
        break;
      case 42:
        value = cursor.data();
        break;
      case 48:
        lease = cursor.decimal(true);
        break;
      default:
        cursor.skip(tag & 7);
    }
  }
  return { key, value, createRevision, modRevision, version, lease };
}

function event(cursor: Cursor): WatchEvent {
  const end = cursor.end();
  let type: WatchEvent['type'] = 'put';
  let kv: KeyValue | undefined;
  while (cursor.at < end) {
    const tag = cursor.number();
    if (tag === 8) type = cursor.number() === 1 ? 'delete' : 'put';
    else if (tag === 18) kv = keyValue(cursor);
    else cursor.skip(tag & 7);
  }
  if (kv === undefined) throw new Error('etcd sent an event without a key');
  const { key, value, modRevision, createRevision, lease } = kv;
  return { type, key, value, modRevision, createRevision, lease };
}

const NO_HEADER: WireHeader = { cluster_id: '0', revision: '0' };

export function decodeRange(bytes: Buffer): RangeAnswer {
  return range(new Cursor(bytes), bytes.length);
}

/** The answers to a transaction of two reads: a key, and a page. */
export interface BesideAnswer extends RangeAnswer {
  readonly beside: KeyValue | undefined;
}

export function decodeBeside(bytes: Buffer): BesideAnswer {
  const cursor = new Cursor(bytes);
  const answers: RangeAnswer[] = [];
  let whole = NO_HEADER;
  while (cursor.at < bytes.length) {
    const tag = cursor.number();
    if (tag === 10) whole = header(cursor);
    else if (tag === 26) {
      const end = cursor.end();
      if (cursor.number() !== 10) throw new Error('etcd answered a read with something else');
      answers.push(range(cursor, cursor.end()));
      if (cursor.at !== end) throw new Error('etcd answered one read with several answers');
    } else cursor.skip(tag & 7);
  }
  const [key, page] = answers;
  if (key === undefined || page === undefined)
    throw new Error(`etcd answered two reads with ${answers.length} answers`);
  // Only the transaction as a whole says which cluster answered.
  return { ...page, header: whole, beside: key.kvs[0] };
}

function range(cursor: Cursor, until: number): RangeAnswer {
  const answer = {
    header: NO_HEADER,
    kvs: [] as KeyValue[],
    lastKey: undefined as Buffer | undefined,
    more: false,
    count: 0,
  };
  let lastAt = 0;
  while (cursor.at < until) {
    const tag = cursor.number();
    if (tag === 10) answer.header = header(cursor);
    else if (tag === 18) {
      lastAt = cursor.at;
      answer.kvs.push(keyValue(cursor));
    } else if (tag === 24) answer.more = cursor.number() === 1;
    else if (tag === 32) answer.count = cursor.number();
    else cursor.skip(tag & 7);
  }
  if (lastAt > 0) {
    const { at } = cursor;
    cursor.at = lastAt;
    answer.lastKey = peekKey(cursor);
    cursor.at = at;
  }
  return answer;
}

export function decodeWatch(bytes: Buffer): WatchAnswer {
  const cursor = new Cursor(bytes);
  const answer = {
    ...{ header: NO_HEADER, watchId: '0', created: false, canceled: false },
    ...{ compactRevision: 0, cancelReason: '', fragment: false, events: [] as WatchEvent[] },
  };
  while (cursor.at < bytes.length) {
    const tag = cursor.number();
    switch (tag) {
      case 10:
        answer.header = header(cursor);
        break;
      case 16:
        answer.watchId = cursor.decimal(true);
        break;
      case 24:
        answer.created = cursor.number() === 1;
        break;
      case 32:
        answer.canceled = cursor.number() === 1;
        break;
      case 40:
        answer.compactRevision = cursor.number();
        break;
      case 50:
        answer.cancelReason = cursor.text();
        break;
      case 56:
        answer.fragment = cursor.number() === 1;
        break;
      case 90:
        answer.events.push(event(cursor));
        break;
      default:
        cursor.skip(tag & 7);
    }
  }
  return answer;
}
