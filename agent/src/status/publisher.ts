/** `clustermesh/agents/<node>`: what this agent has applied, under a lease, so that it goes when the agent does. */
import { type AgentStatus, agentKey, messageOf } from '@clustermesh/contract';
import type { Etcd, Lease } from '@clustermesh/kvstore';
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';

export interface StatusPublisher {
  /** The status may have changed. */
  trigger(): void;
  /** etcd is there again: whether it still has what was published is not known. */
  onEtcdConnected(): void;
  close(): Promise<void>;
}

/** An unchanged status is written again after this long. */
const REFRESH_MS = 10_000;
/** Least time between two publications, by the size of the status: 5 s at 1000 families, 80 ms at 16. */
const MS_PER_FAMILY = 5;
const REQUEST_TIMEOUT_MS = 3_000;

export function startStatusPublisher(options: {
  readonly etcd: Etcd;
  readonly node: string;
  readonly status: () => Omit<AgentStatus, 'updatedAt'>;
  readonly minIntervalMs: number;
  /** How long the status outlives an agent that is gone. */
  readonly leaseSeconds: number;
  /** Families that the status names. */
  readonly size: () => number;
  readonly clock: Clock;
  readonly log: Log;
}): StatusPublisher {
  const { etcd, clock, log } = options;
  const stop = new AbortController();
  let lease: Lease | undefined;
  let published: { readonly text: string; readonly atMs: number } | undefined;
  let lastError: string | undefined;

  async function publish(): Promise<void> {
    lease ??= await etcd.lease(
      {
        ttlSeconds: options.leaseSeconds,
        onRegranted() {
          published = undefined;
          runner.trigger();
        },
      },
      { timeoutMs: REQUEST_TIMEOUT_MS },
    );
    // With hundreds of clusters the status is tens of kilobytes: then it is written more rarely.
    const waitMs = (published?.atMs ?? Number.NEGATIVE_INFINITY) + options.size() * MS_PER_FAMILY - clock.nowMs();
    if (waitMs > 0) {
      again(waitMs);
      return;
    }
    const status = options.status();
    const text = JSON.stringify(status);
    if (published?.text === text && clock.nowMs() - published.atMs < REFRESH_MS) return;
    const value = JSON.stringify({ ...status, updatedAt: new Date(clock.wallMs()).toISOString() });
    await etcd.put(agentKey(options.node), value, { lease: lease.id, timeoutMs: REQUEST_TIMEOUT_MS });
    published = { text, atMs: clock.nowMs() };
    lastError = undefined;
  }

  let isWaiting = false;
  function again(ms: number): void {
    if (isWaiting) return;
    isWaiting = true;
    void clock.sleep(ms, stop.signal).then(() => {
      isWaiting = false;
      if (!stop.signal.aborted) runner.trigger();
    });
  }

  const runner = startRunner({
    run: publish,
    minIntervalMs: options.minIntervalMs,
    retryMs: options.minIntervalMs,
    // Also the longest delay between tries.
    maxIntervalMs: 2_000,
    onError(error) {
      const message = messageOf(error);
      if (message !== lastError) log.warn({ reason: message }, 'status could not be published; trying again');
      lastError = message;
    },
    signal: stop.signal,
    clock,
  });

  return {
    trigger: runner.trigger,
    onEtcdConnected() {
      published = undefined;
      runner.trigger();
    },
    async close() {
      stop.abort();
      await runner.ended;
      await lease?.close();
    },
  };
}
