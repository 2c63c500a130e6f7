/**
 * libbpf's ring buffer reader. Nobody waits here: Node can neither poll libbpf's epoll descriptor nor be called from a thread that
 * does, and records that were submitted without a wakeup would not end such a wait. Asking an empty ring costs 0.5 µs.
 */
import { MeshError } from '@clustermesh/contract';
import koffi from 'koffi';
import { kernelError, type Pointer } from './libbpf.ts';

const lib = koffi.load('libbpf.so.1');
const onRecord = koffi.proto('int cm_ring_record(void *context, void *data, size_t size)');
const c = {
  create: lib.func('void *ring_buffer__new(int map_fd, cm_ring_record *callback, void *context, const void *opts)'),
  consume: lib.func('int ring_buffer__consume(void *ring)'),
  free: lib.func('void ring_buffer__free(void *ring)'),
};

/** What the callback says to be called no more; any negative number but libbpf's own errors would do. */
const ENOUGH = -4095;

export interface RingBuffer {
  /** Hands over what is there, at most `limit` records, and returns how many they were. A record is only valid during the call. */
  consume(visit: (record: Buffer) => void, limit: number): number;
  close(): void;
}

export function openRingBuffer(mapFd: number): RingBuffer {
  let visit: (record: Buffer) => void = () => undefined;
  let left = 0;
  let failure: unknown;
  const callback = koffi.register((_: Pointer, data: Pointer, size: number | bigint) => {
    try {
      visit(Buffer.from(koffi.view(data, Number(size))));
    } catch (error) {
      // An exception must not cross libbpf's frames.
      failure ??= error;
      return ENOUGH;
    }
    left--;
    return left > 0 ? 0 : ENOUGH;
  }, koffi.pointer(onRecord));
  const ring: Pointer | null = c.create(mapFd, callback, null, null);
  if (ring === null) {
    koffi.unregister(callback);
    throw kernelError('mapping the ring of flow events', koffi.errno());
  }
  let isOpen = true;

  return {
    consume(visitor, limit) {
      if (!isOpen) throw new MeshError({ code: 'internal', message: 'reading flow events: the ring is closed' });
      visit = visitor;
      left = limit;
      failure = undefined;
      const rc: number = c.consume(ring);
      if (failure !== undefined) throw failure;
      if (rc < 0 && rc !== ENOUGH) throw kernelError('reading flow events', rc);
      return limit - left;
    },
    close() {
      if (!isOpen) return;
      isOpen = false;
      c.free(ring);
      koffi.unregister(callback);
    },
  };
}
