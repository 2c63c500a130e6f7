/** One run: an etcd with the load in it, the baseline, the agent's bootstrap, the churn, and a restart on the same kernel. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { clusterConfigKey, encodeClusterConfig, LOCAL_FAMILIES, localCanaryKey } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { ensureClusterPki, nodeUser } from '@clustermesh/pki';
import { mean } from '../report.ts';
import { type AgentProcess, runBaseline, startAgentProcess } from './children.ts';
import { type ChurnResult, createChurn } from './churn.ts';
import { announcementsOf, dataOf, type Entry, expectedOf, fingerprint, keysOf, type LoadShape, OWN } from './load.ts';
import type { AgentSettings, BaselineResult, FromAgent, Sample } from './messages.ts';

export interface RunOptions {
  readonly shape: LoadShape;
  readonly churnSeconds: number;
  readonly rateScale: number;
  readonly directory: string;
  readonly bpffs: string;
  readonly cgroup: string;
  readonly agentFlags: readonly string[];
  /** Measure the baseline and the restart too. */
  readonly whole: boolean;
  readonly progress: (text: string) => void;
}

export type Bootstrap = Extract<FromAgent, { type: 'bootstrapped' }>;

export interface RunResult {
  readonly keys: number;
  readonly baselines: readonly BaselineResult[];
  readonly bootstrap: Bootstrap;
  readonly restart: Bootstrap | undefined;
  readonly bootstrapSamples: readonly Sample[];
  readonly churn: ChurnResult;
  readonly churnSamples: readonly Sample[];
  readonly cpuUsPerEvent: number;
  /** The kernel holds exactly what was published. */
  readonly isKernelRight: boolean;
  readonly metrics: string;
}

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** Transactions of 100 puts, eight in flight. */
async function writeAll(etcd: Etcd, entries: Iterator<Entry>): Promise<void> {
  const worker = async () => {
    for (;;) {
      const success: { put: string; value: string }[] = [];
      for (let next = entries.next(); !next.done; next = entries.next()) {
        success.push({ put: next.value.key, value: next.value.value });
        if (success.length === 100) break;
      }
      if (success.length === 0) return;
      await etcd.txn({ success });
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
}

async function seed(etcd: Etcd, shape: LoadShape): Promise<void> {
  function* data() {
    for (let cluster = 1; cluster <= shape.clusters; cluster++) yield* dataOf(shape, cluster);
  }
  function* announcements() {
    const own = { id: OWN.id, capabilities: { syncedCanaries: true, maxConnectedClusters: 255 } };
    for (const family of LOCAL_FAMILIES) yield { key: localCanaryKey(family), value: 'now' };
    yield { key: clusterConfigKey(OWN.name), value: encodeClusterConfig(own) };
    for (let cluster = 1; cluster <= shape.clusters; cluster++) yield* announcementsOf(cluster);
  }
  await writeAll(etcd, data());
  await writeAll(etcd, announcements());
}

interface Stage {
  readonly server: EtcdServer;
  readonly etcd: Etcd;
  readonly settings: AgentSettings;
}

async function prepare({ directory, bpffs, cgroup }: RunOptions): Promise<Stage> {
  const pkiDir = join(directory, 'pki');
  const stateDir = join(directory, 'state');
  mkdirSync(stateDir, { recursive: true });
  await ensureClusterPki({ dir: pkiDir, cluster: OWN.name, nodes: [OWN.node] });
  const file = (name: string) => join(pkiDir, name);
  const tls = { caFile: file('ca.crt'), certFile: file('server.crt'), keyFile: file('server.key') };
  const server = await startEtcd({ tls });
  const admin = { caFile: tls.caFile, certFile: file('admin.crt'), keyFile: file('admin.key') };
  const node = join(pkiDir, 'nodes', OWN.node);
  const pki = { caFile: tls.caFile, certFile: join(node, 'node.crt'), keyFile: join(node, 'node.key') };
  const etcd = server.client({ ...admin, requestTimeoutMs: 60_000, connectTimeoutMs: 5_000 });
  return { server, etcd, settings: { endpoint: server.endpoint, pki, stateDir, bpffs, cgroup } };
}

async function settled(agent: AgentProcess, what: string, progress: RunOptions['progress']): Promise<Bootstrap> {
  const bootstrap = await agent.bootstrapped;
  progress(
    `${what}: ${(bootstrap.ms / 1000).toFixed(1)} s (${(bootstrap.threadMs / 1000).toFixed(1)} s of CPU), ${bootstrap.rowsWritten} rows written, peak ${Math.round(bootstrap.peakRssMb)} MB`,
  );
  return bootstrap;
}

export async function runScale(options: RunOptions): Promise<RunResult> {
  const { shape, progress, whole } = options;
  const { server, etcd, settings } = await prepare(options);
  try {
    progress(`${shape.clusters} clusters: writing ${keysOf(shape)} keys for ${nodeUser(OWN.node)}`);
    await seed(etcd, shape);

    const baselines: BaselineResult[] = [];
    const baseline = async () => {
      if (!whole) return;
      const result = await runBaseline(settings, shape);
      baselines.push(result);
      progress(
        `bare range: ${(result.ms / 1000).toFixed(1)} s (${(result.threadMs / 1000).toFixed(1)} s of CPU), ${result.keys} keys in ${result.pages} pages`,
      );
    };
    await baseline();
    const agent = startAgentProcess(settings, options.agentFlags);
    const bootstrap = await settled(agent, 'bootstrap', progress);
    await sleep(1_500);
    const bootstrapSamples = [...agent.samples];
    // Before and after: what else the machine does weighs on both alike.
    await baseline();

    const expected = expectedOf(shape);
    const churn = createChurn({ etcd, shape, expected, rateScale: options.rateScale });
    agent.onApplied = churn.applied;
    agent.follow(true);
    await sleep(2_000);
    const before = agent.samples.length;
    const idle = agent.samples.slice(-2);
    const result = await churn.run(options.churnSeconds, (text) =>
      progress(`${text}, ${Math.round(agent.samples.at(-1)?.rssMb ?? 0)} MB`),
    );
    await sleep(1_200);
    const churnSamples = agent.samples.slice(before);
    agent.follow(false);
    const cpuUs = (churnSamples.at(-1)?.cpuUs ?? 0) - (idle.at(-1)?.cpuUs ?? 0);

    const kernel = await agent.kernel();
    const [ipcache, nodes] = [fingerprint(expected.ipcache), fingerprint(expected.nodes)];
    const isKernelRight =
      JSON.stringify([ipcache, nodes]) === JSON.stringify([kernel.ipcache, kernel.nodes]) && result.lost.length === 0;
    progress(
      `kernel: ${kernel.ipcache.rows} addresses, ${kernel.nodes.rows} nodes: ${isKernelRight ? 'as published' : `WRONG, expected ${ipcache.rows} and ${nodes.rows}; lost ${result.lost.length}: ${result.lost.slice(0, 3).join(', ')}`}`,
    );
    await agent.stop();

    let restart: Bootstrap | undefined;
    if (whole) {
      const second = startAgentProcess(settings, options.agentFlags);
      restart = await settled(second, 'restart on the same kernel', progress);
      await second.stop();
    }
    return {
      keys: keysOf(shape),
      baselines,
      bootstrap,
      restart,
      bootstrapSamples,
      churn: result,
      churnSamples,
      cpuUsPerEvent: cpuUs / Math.max(1, result.events),
      isKernelRight,
      metrics: kernel.metrics,
    };
  } finally {
    await server.close();
  }
}

/** Mean memory of the last third over that of the first. */
export function memoryGrowth(samples: readonly Sample[]): { readonly first: number; readonly last: number } {
  const third = Math.max(1, Math.floor(samples.length / 3));
  const rss = samples.map((sample) => sample.rssMb);
  return { first: mean(rss.slice(0, third)), last: mean(rss.slice(-third)) };
}
