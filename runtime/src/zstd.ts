/**
 * zstd for the codecs of contract/ (`Compression`): the system's libzstd.so.1 through koffi, because Node 20 has none. One call per
 * value; values are small (a slice of 100 endpoints is some hundred bytes).
 */
import { accept, type Compression, type Decoded, MeshError, reject } from '@clustermesh/contract';
import koffi from 'koffi';

/** koffi gives a size_t beyond 2^53 as a bigint; errors are such. */
type Size = number | bigint;

/** What libzstd's stable interface (zstd.h, zstd_errors.h; 1.4 or later) offers that is used here. */
interface Library {
  compressBound(size: number): number;
  compress(target: Uint8Array, capacity: number, source: Uint8Array, size: number, level: number): Size;
  decompress(target: Uint8Array, capacity: number, source: Uint8Array, size: number): Size;
  isError(result: Size): number;
  errorCode(result: Size): number;
  errorName(result: Size): string;
  contentSize(source: Uint8Array, size: number): Size;
}

/** Stable since 1.3.1 (zstd_errors.h). */
const ERROR = { prefixUnknown: 10, corrupt: 20, checksum: 22, dictionary: 32, noRoom: 70, sourceSize: 72 } as const;
const REASONS: ReadonlyMap<number, string> = new Map([
  [ERROR.prefixUnknown, 'is no zstd frame'],
  [ERROR.corrupt, 'is a damaged zstd frame'],
  [ERROR.checksum, 'is a zstd frame whose checksum does not match'],
  [ERROR.dictionary, 'is a zstd frame that needs a dictionary'],
  [ERROR.sourceSize, 'is a zstd frame that ends early or has something behind it'],
]);

/** ZSTD_getFrameContentSize: the frame does not say (2^64 - 1), or is none (2^64 - 2). */
const SIZE_UNKNOWN = 0xffff_ffff_ffff_ffffn;
const SIZE_ERROR = 0xffff_ffff_ffff_fffen;
/** Where to begin when a frame does not state its size. */
const FIRST_GUESS = 64 * 1024;
/** zstd's own default: the values are too small for higher levels to matter. */
const LEVEL = 3;

let loaded: Library | undefined;

function library(): Library {
  if (loaded !== undefined) return loaded;
  try {
    const zstd = koffi.load('libzstd.so.1');
    const declare = (prototype: string) => zstd.func(prototype) as never;
    loaded = {
      compressBound: declare('size_t ZSTD_compressBound(size_t size)'),
      compress: declare(
        'size_t ZSTD_compress(_Out_ uint8_t *dst, size_t capacity, const uint8_t *src, size_t size, int level)',
      ),
      decompress: declare(
        'size_t ZSTD_decompress(_Out_ uint8_t *dst, size_t capacity, const uint8_t *src, size_t size)',
      ),
      isError: declare('unsigned int ZSTD_isError(size_t result)'),
      errorCode: declare('int ZSTD_getErrorCode(size_t result)'),
      errorName: declare('const char *ZSTD_getErrorName(size_t result)'),
      contentSize: declare('unsigned long long ZSTD_getFrameContentSize(const uint8_t *src, size_t size)'),
    };
    return loaded;
  } catch (error) {
    throw new MeshError({
      code: 'unsupported',
      message: `loading libzstd.so.1: ${error instanceof Error ? error.message : String(error)}`,
      hint: 'Install the library: the package is called libzstd1 on Debian and Ubuntu.',
      cause: error,
    });
  }
}

/**
 * Throws MeshError `unsupported` where there is no libzstd; afterwards only `compress` can throw, and only for want of memory.
 * Not to be shared between threads: it reuses one buffer.
 */
export function openZstd(): Compression {
  const zstd = library();
  let scratch = Buffer.alloc(0);
  const room = (size: number): Buffer => {
    if (scratch.length < size) scratch = Buffer.allocUnsafeSlow(size);
    return scratch;
  };

  const compress = (bytes: Uint8Array): Uint8Array => {
    const bound = zstd.compressBound(bytes.length);
    const target = room(bound);
    const size = zstd.compress(target, bound, bytes, bytes.length, LEVEL);
    if (zstd.isError(size) !== 0) {
      const reason = zstd.errorName(size);
      throw new MeshError({ code: 'exhausted', message: `compressing ${bytes.length} bytes with zstd: ${reason}` });
    }
    return Buffer.from(target.subarray(0, Number(size)));
  };

  const decompress = (frame: Uint8Array, maxBytes: number): Decoded<Uint8Array> => {
    const tooBig = (size: string) => reject(`is a zstd frame of ${size} bytes; at most ${maxBytes} are taken`);
    const stated = BigInt(zstd.contentSize(frame, frame.length));
    if (stated === SIZE_ERROR) return reject(REASONS.get(ERROR.prefixUnknown) ?? '');
    if (stated !== SIZE_UNKNOWN && stated > BigInt(maxBytes)) return tooBig(String(stated));
    // What is stated is that of the first frame; a value may be several, whose sizes are known only by trying.
    let capacity = stated === SIZE_UNKNOWN ? Math.min(FIRST_GUESS, maxBytes) : Number(stated);
    for (;;) {
      const target = room(capacity);
      const size = zstd.decompress(target, capacity, frame, frame.length);
      if (zstd.isError(size) === 0) return accept(Buffer.from(target.subarray(0, Number(size))));
      const code = zstd.errorCode(size);
      if (code !== ERROR.noRoom) return reject(REASONS.get(code) ?? `is no good zstd frame: ${zstd.errorName(size)}`);
      if (capacity >= maxBytes) return tooBig(`more than ${maxBytes}`);
      capacity = Math.min(maxBytes, Math.max(FIRST_GUESS, capacity * 4));
    }
  };

  return { compress, decompress };
}
