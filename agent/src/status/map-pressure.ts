/** How full the kernel's maps are, under Cilium's name, so that its dashboards and alerts fit. */
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';
import { Gauge, type Registry } from 'prom-client';
import type { Datapath } from '../datapath/types.ts';

/** The kernel does not keep count of rows: maps are read whole, a thousand rows at a time. */
const COUNT_INTERVAL_MS = 30_000;

export interface MapPressure {
  readonly ended: Promise<void>;
}

export function startMapPressure(options: {
  readonly registry: Registry;
  readonly usage: Datapath['usage'];
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}): MapPressure {
  const gauge = new Gauge({
    name: 'cilium_bpf_map_pressure',
    help: `Rows of a kernel map as a share of what it may hold, counted every ${COUNT_INTERVAL_MS / 1000} seconds.`,
    labelNames: ['map_name'],
    registers: [options.registry],
  });
  const runner = startRunner({
    async run() {
      for (const { name, rows, maxEntries } of await options.usage()) gauge.set({ map_name: name }, rows / maxEntries);
    },
    minIntervalMs: COUNT_INTERVAL_MS,
    retryMs: COUNT_INTERVAL_MS,
    maxIntervalMs: COUNT_INTERVAL_MS,
    onError: (error) =>
      options.log.warn({ err: error }, 'the rows of the kernel maps could not be counted; trying again'),
    signal: options.signal,
    clock: options.clock,
  });
  runner.trigger();
  return { ended: runner.ended };
}
