/** One-shot zstd decompression with Cilium's bound, straight on the system's library. */
import koffi from 'koffi';

/** The memory that Cilium's decoder allows itself. */
const MAX_BYTES = 16 * 1024 * 1024;

let functions:
  | { decompress: (...args: unknown[]) => number | bigint; name: (result: number | bigint) => string }
  | undefined;

/** Used again and again: what is returned is a copy. */
let target: Buffer | undefined;

function load() {
  const library = koffi.load('libzstd.so.1');
  return {
    decompress: library.func(
      'size_t ZSTD_decompress(_Out_ uint8_t *dst, size_t capacity, const uint8_t *src, size_t size)',
    ),
    name: library.func('const char *ZSTD_getErrorName(size_t result)'),
  };
}

/** Throws with zstd's own words. */
export function decompress(frame: Buffer): Buffer {
  functions ??= load();
  target ??= Buffer.allocUnsafeSlow(MAX_BYTES);
  const size = functions.decompress(target, target.length, frame, frame.length);
  if (Number(size) > MAX_BYTES) throw new Error(functions.name(size));
  return Buffer.from(target.subarray(0, Number(size)));
}
