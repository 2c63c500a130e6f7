/** Key ranges and page sizes: pure. */

const ALL_KEYS = Buffer.from([0]);

/** The end of the range of all keys with this prefix: the last byte + 1, carrying over 0xff. */
export function prefixEnd(prefix: Buffer): Buffer {
  for (let i = prefix.length - 1; i >= 0; i--) {
    if (prefix[i]! < 0xff) {
      const end = Buffer.from(prefix.subarray(0, i + 1));
      end[i]!++;
      return end;
    }
  }
  return ALL_KEYS;
}

export function prefixRange(prefix: string): { key: Buffer; range_end: Buffer } {
  const key = Buffer.from(prefix);
  return key.length === 0 ? { key: ALL_KEYS, range_end: ALL_KEYS } : { key, range_end: prefixEnd(key) };
}

/** The first key after `key`. */
export function successor(key: Buffer): Buffer {
  return Buffer.concat([key, ALL_KEYS]);
}

export const FIRST_PAGE = 256;
const PAGE_BYTES = 2 << 20;
const LARGEST_PAGE = 16_384;

/**
 * etcd 3.4 needs time in proportion to the keys that remain for every page (300k keys: 29 s in pages of 256, 4.8 s in pages of
 * 2048), so pages grow until they hold about 2 MiB. They grow fourfold at most: the next values may be larger than these.
 */
export function nextPageSize(current: number, keys: number, bytes: number): number {
  const fitting = Math.floor(PAGE_BYTES / Math.max(1, bytes / Math.max(1, keys)));
  return Math.max(1, Math.min(fitting, current * 4, LARGEST_PAGE));
}
