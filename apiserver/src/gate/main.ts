/** clustermesh-gate: the door of one cluster's etcd for its peers. The wiring, and nothing else. */
import { configArgument, createLog, loadConfig, runDaemon, serveHttp, version } from '@clustermesh/runtime';
import { Registry } from 'prom-client';
import { gateSchema } from './config.ts';
import { startGate } from './gate.ts';
import { createGateMetrics } from './metrics.ts';

const log = createLog('clustermesh-gate');
const configFile = configArgument('clustermesh-gate');

await runDaemon(log, async (signal) => {
  const config = loadConfig(configFile, gateSchema);
  const registry = new Registry();
  const gate = await startGate({ config, log, signal, metrics: createGateMetrics(registry) });
  log.info({ cluster: config.cluster, port: gate.port, version: version() }, 'started');
  const http = await serveHttp({
    ...config.http,
    registry,
    notReady: () => (gate.problems().length === 0 ? undefined : gate.problems().join('; ')),
  });
  return [http.close, () => gate.ended];
});
