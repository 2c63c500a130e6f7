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

export const u32: Codec<number> = {
  name: '__u32',
  size: 4,
  encode(value, into = Buffer.alloc(4), at = 0) {
    into.writeUInt32LE(value, at);
    return into;
  },
  decode: (from, at = 0) => from.readUInt32LE(at),
};
