/** Tells when one key may have changed; what it holds then is the caller's to read. Peers let others read single keys, not prefixes. */
import type { Etcd } from '@clustermesh/kvstore';
import { type Clock, startRunner } from '@clustermesh/runtime';

export interface KeyWatchOptions {
  readonly etcd: Etcd;
  readonly key: string;
  /** Also at the beginning of every watch: a change may have been missed. */
  readonly onChange: () => void;
  /** How often it is looked at where no watch holds, and the longest delay after a failure (default 10 s). */
  readonly maxIntervalMs?: number;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** Watches for ever; while the etcd is away or refuses, it tries again with a growing delay. Resolves after the signal. */
export function watchKey(options: KeyWatchOptions): Promise<void> {
  const { etcd, key, onChange, clock, signal } = options;
  const run = async () => {
    const { header } = await etcd.getWithHeader(key, { signal });
    onChange();
    const { revision, connection } = header;
    await etcd.watch({ prefix: key, exact: true, startRevision: revision + 1, connection, signal, onEvents: onChange });
  };
  const runner = startRunner({
    run,
    minIntervalMs: 0,
    retryMs: 200,
    maxIntervalMs: options.maxIntervalMs ?? 10_000,
    signal,
    clock,
    onError: () => {}, // The peer's other reads tell why.
  });
  runner.trigger();
  return runner.ended;
}
