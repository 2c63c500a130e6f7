import assert from 'node:assert/strict';
import { it } from 'node:test';
import { silentLog, systemClock, waitFor } from '@clustermesh/runtime';
import { Registry } from 'prom-client';
import { startMapPressure } from './map-pressure.ts';

it('how full each map is, is a metric from the start', async () => {
  const registry = new Registry();
  const stop = new AbortController();
  const usage = async () => [
    { name: 'cm_ct', rows: 16, maxEntries: 64 },
    { name: 'cm_nodes', rows: 0, maxEntries: 10 },
  ];
  const { ended } = startMapPressure({ registry, usage, clock: systemClock, log: silentLog(), signal: stop.signal });
  const text = await waitFor(
    async () => {
      const metrics = await registry.metrics();
      return metrics.includes('cm_nodes') ? metrics : undefined;
    },
    { what: 'the first count', timeoutMs: 10_000 },
  );
  stop.abort();
  await ended;
  assert.match(text, /^cilium_bpf_map_pressure\{map_name="cm_ct"\} 0\.25$/m);
  assert.match(text, /^cilium_bpf_map_pressure\{map_name="cm_nodes"\} 0$/m);
});
