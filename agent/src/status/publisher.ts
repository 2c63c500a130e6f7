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
const REQUEST_TIMEOUT_MS = 3_000;

export function startStatusPublisher(options: {
  readonly etcd: Etcd;
  readonly node: string;
  readonly status: () => Omit<AgentStatus, 'updatedAt'>;
  readonly minIntervalMs: number;
  /** How long the status outlives an agent that is gone. */
  readonly leaseSeconds: number;
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
    const status = options.status();
    const text = JSON.stringify(status);
    if (published?.text === text && clock.nowMs() - published.atMs < REFRESH_MS) return;
    const value = JSON.stringify({ ...status, updatedAt: new Date(clock.wallMs()).toISOString() });
    await etcd.put(agentKey(options.node), value, { lease: lease.id, timeoutMs: REQUEST_TIMEOUT_MS });
    published = { text, atMs: clock.nowMs() };
    lastError = undefined;
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
