/** Garbage collection of what the kernel's programs remember, with Cilium's metrics for it. */
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';
import { Counter, Gauge, type Registry } from 'prom-client';
import type { Datapath } from './datapath/types.ts';

/** A pass reads the maps whole, a thousand rows at a time. */
const INTERVAL_MS = 60_000;

export interface GarbageCollection {
  readonly ended: Promise<void>;
}

export function startGarbageCollection(options: {
  readonly registry: Registry;
  readonly collect: Datapath['collectGarbage'];
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}): GarbageCollection {
  const registers = [options.registry];
  const entries = new Gauge({
    name: 'cilium_datapath_conntrack_gc_entries',
    help: 'Flows at the end of the last pass of garbage collection: how many stayed, how many were removed.',
    labelNames: ['status'],
    registers,
  });
  const runs = new Counter({
    name: 'cilium_datapath_conntrack_gc_runs_total',
    help: 'Passes of garbage collection.',
    labelNames: ['status'],
    registers,
  });
  const affinity = new Counter({
    name: 'clustermesh_affinity_gc_removed_total',
    help: 'Choices of session affinity that were removed because their time was over or their service gone.',
    registers,
  });
  const runner = startRunner({
    async run() {
      const collected = await options.collect();
      entries.set({ status: 'alive' }, collected.flows.alive);
      entries.set({ status: 'deleted' }, collected.flows.removed);
      affinity.inc(collected.affinity.removed);
      runs.inc({ status: 'completed' });
    },
    minIntervalMs: INTERVAL_MS,
    retryMs: INTERVAL_MS,
    maxIntervalMs: INTERVAL_MS,
    onError(error) {
      runs.inc({ status: 'uncompleted' });
      options.log.warn({ err: error }, 'flows that are over could not be removed; trying again');
    },
    signal: options.signal,
    clock: options.clock,
  });
  runner.trigger();
  return { ended: runner.ended };
}
