import { MeshError, readIpAddress, writeIpAddress } from '@clustermesh/contract';

/** How one C struct (or scalar) lies in memory. Implementations are generated: see generated/layout.ts. */
export interface Codec<T> {
  readonly name: string;
  readonly size: number;
  /** Writes `value` at `at`; padding becomes zero. Returns the buffer. */
  encode(value: T, into?: Buffer, at?: number): Buffer;
  decode(from: Buffer, at?: number): T;
}

/** A map as its program declares it. */
export interface MapLayout<K, V> {
  readonly type: number;
  readonly flags: number;
  readonly maxEntries: number;
  readonly key: Codec<K>;
  readonly value: Codec<V>;
  /** Changes whenever the meaning of the bytes changes: member names, types, order, map type. */
  readonly fingerprint: string;
}

/** `struct cm_addr`: an address as text, '::' for none. What is no address throws. */
export const cmAddr: Codec<string> = {
  name: 'cm_addr',
  size: 16,
  encode(value, into = Buffer.alloc(16), at = 0) {
    if (writeIpAddress(value, into, at)) return into;
    throw new MeshError({ code: 'invalid-argument', message: `programming the address '${value}': not an IP address` });
  },
  decode: (from, at = 0) => readIpAddress(from, at),
};

export const u32: Codec<number> = {
  name: '__u32',
  size: 4,
  encode(value, into = Buffer.alloc(4), at = 0) {
    into.writeUInt32LE(value, at);
    return into;
  },
  decode: (from, at = 0) => from.readUInt32LE(at),
};

/** Key and value of a ring buffer, which has neither. */
export const nothing: Codec<undefined> = {
  name: 'nothing',
  size: 0,
  encode: (_, into = Buffer.alloc(0)) => into,
  decode: () => undefined,
};
