/** The measured process: one agent, the core with the real datapath. Its datapath is told on: what was written, and when. */
import { writeFileSync } from 'node:fs';
import { Session } from 'node:inspector';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { type MapOps, type OpResult, openDatapath, parseAgentConfig, startAgent } from '@clustermesh/agent';
import { openEtcd } from '@clustermesh/kvstore';
import { createLog, openZstd, systemClock } from '@clustermesh/runtime';
import { fingerprint, ipcacheText, OWN } from './load.ts';
import {
  type AgentSettings,
  type AppliedRow,
  type FromAgent,
  monotonicMs,
  type ToAgent,
  threadCpuMs,
} from './messages.ts';

const settings = JSON.parse(process.argv[2]!) as AgentSettings;
const log = createLog('bench-agent');
const send = (message: FromAgent) => void process.send!(message);

const config = parseAgentConfig({
  cluster: { name: OWN.name, id: OWN.id },
  node: { name: OWN.node, ip: OWN.ip, podCIDR: OWN.podCIDR, gatewayIP: OWN.gatewayIP },
  etcd: { endpoints: [settings.endpoint], ...settings.pki },
  socket: '/unused',
  stateDir: settings.stateDir,
  datapath: { bpffs: settings.bpffs, cgroup: settings.cgroup },
});

let follows = false;
let applied: AppliedRow[] = [];
let rowsWritten = 0;
let largestBatch = 0;
let disconnects = 0;

/** Notes what the kernel has taken, and how much came at once. */
function told<Row>(
  table: AppliedRow['table'],
  ops: MapOps<Row>,
  keyOf: (row: Row) => string,
  textOf: (row: Row) => string,
): MapOps<Row> {
  const note = (results: OpResult[], keys: readonly string[], texts: readonly (string | undefined)[]) => {
    const atMs = monotonicMs();
    results.forEach((result, i) => {
      if (result.error === undefined) applied.push({ table, key: keys[i]!, text: texts[i], atMs });
    });
  };
  return {
    ...ops,
    async update(rows) {
      const results = await ops.update(rows);
      rowsWritten += rows.length;
      if (follows) note(results, rows.map(keyOf), rows.map(textOf));
      return results;
    },
    async remove(keys) {
      const results = await ops.remove(keys);
      rowsWritten += keys.length;
      if (follows) note(results, keys, []);
      return results;
    },
  };
}

const startedAt = monotonicMs();
const startedCpu = threadCpuMs();
let peakRss = 0;
const watchPeak = setInterval(() => {
  peakRss = Math.max(peakRss, process.memoryUsage.rss());
}, 50);

const kernel = await openDatapath(
  {
    clusterId: OWN.id,
    clusterName: OWN.name,
    identityShift: 16,
    nodeName: OWN.node,
    nodeIp: OWN.ip,
    gatewayIp: config.node.gatewayIP,
    podCidr: config.node.podCIDR,
    bpffs: settings.bpffs,
    cgroup: settings.cgroup,
    vxlanDevice: config.datapath.vxlanDevice,
  },
  { log },
);
const datapath = {
  ...kernel,
  ipcache: told(
    'ipcache',
    kernel.ipcache,
    (row) => row.prefix,
    (row) => ipcacheText(row.identity, row.clusterId, row.tunnelEndpoint),
  ),
  nodes: told(
    'nodes',
    kernel.nodes,
    (row) => row.ip,
    (row) => String(row.clusterId),
  ),
};
// Only now: the profiler's signals interrupt the kernel's verifier.
const profile = process.env.CM_BENCH_PROFILE;
const profiler = profile === undefined ? undefined : new Session();
profiler?.connect();
profiler?.post('Profiler.enable');
profiler?.post('Profiler.start');
function endProfile(): void {
  profiler?.post('Profiler.stop', (_, result) => {
    writeFileSync(`${profile}-${process.pid}.cpuprofile`, JSON.stringify(result.profile));
    profiler.disconnect();
  });
}

const etcd = openEtcd({ ...config.etcd, log });
etcd.onEvent((event) => {
  if (event.type === 'disconnected') disconnects++;
});
const agent = await startAgent({
  config,
  etcd,
  datapath,
  interfaces: () => undefined,
  zstd: openZstd(),
  clock: systemClock,
  log,
});

const poll = setInterval(() => {
  if (agent.notReady() !== undefined) return;
  clearInterval(poll);
  peakRss = Math.max(peakRss, process.memoryUsage.rss());
  const threadMs = threadCpuMs() - startedCpu;
  send({ type: 'bootstrapped', ms: monotonicMs() - startedAt, threadMs, rowsWritten, peakRssMb: peakRss / 1e6 });
  clearInterval(watchPeak);
  endProfile();
}, 10);

async function sumOf(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
  const metric = await agent.metrics.getSingleMetric(name)?.get();
  const matches = metric?.values.filter((value) =>
    Object.entries(labels).every(([label, wanted]) => value.labels[label] === wanted),
  );
  return matches?.reduce((sum, value) => sum + value.value, 0) ?? 0;
}

const loop = monitorEventLoopDelay({ resolution: 5 });
loop.enable();
const queueProbe = setInterval(async () => {
  largestBatch = Math.max(largestBatch, await sumOf('clustermesh_agent_queued_rows'));
}, 20);
setInterval(async () => {
  const { rss, heapUsed } = process.memoryUsage();
  const { user, system } = process.cpuUsage();
  send({
    type: 'sample',
    sample: {
      rssMb: rss / 1e6,
      heapMb: heapUsed / 1e6,
      cpuUs: user + system,
      queue: largestBatch,
      rowFailures: await sumOf('clustermesh_agent_row_failures_total'),
      repairs: await sumOf('clustermesh_agent_repairs_total'),
      disconnects,
      loopMaxMs: loop.max / 1e6,
    },
  });
  loop.reset();
  largestBatch = 0;
}, 1_000);
setInterval(() => {
  if (applied.length === 0) return;
  send({ type: 'applied', rows: applied });
  applied = [];
}, 200);

async function reportKernel(): Promise<void> {
  const [ipcache, nodes] = [await kernel.ipcache.list(), await kernel.nodes.list()];
  send({
    type: 'kernel',
    ipcache: fingerprint(
      [...ipcache].map(([key, row]) => [key, ipcacheText(row.identity, row.clusterId, row.tunnelEndpoint)]),
    ),
    nodes: fingerprint([...nodes].map(([key, row]) => [key, String(row.clusterId)])),
    metrics: await agent.metrics.metrics(),
  });
}

process.on('message', (message: ToAgent) => {
  if (message.type === 'follow') follows = message.on;
  else if (message.type === 'report-kernel') void reportKernel();
  else {
    clearInterval(queueProbe);
    void agent
      .close()
      .then(() => etcd.close())
      .then(() => datapath.close())
      .then(() => process.exit(0));
  }
});
