/** What the demonstration shows, step by step. Every step checks what it claims and throws when it does not hold. */
import { spawn } from 'node:child_process';
import { MeshError } from '@clustermesh/contract';
import { systemClock, waitFor } from '@clustermesh/runtime';
import { type LabClient, startLab } from '../client.ts';
import { askAgent, bundle } from '../labd/daemons.ts';
import { nodePaths } from '../netns/names.ts';
import type { Topology } from '../topology.ts';
import {
  countBy,
  type Load,
  type RequestResult,
  requests,
  servedBy,
  servingCluster,
  startLoad,
  startTransfer,
} from '../traffic.ts';
import { manifestFile, STALL_LIMIT_MS, shopManifest, shopUrl } from './shop.ts';

export interface FailoverFigures {
  requests: number;
  failed: number;
  /** Start of the last request that failed, after the kill; 0 when none did. */
  lastFailureMs: number;
  /** Start of the first request, after the kill, from which on none failed. */
  recoveredMs: number;
}

export interface RestartFigures {
  bytesLost: number;
  throughputDipMs: number;
}

export interface DemoContext {
  readonly instance: string;
  readonly topology: Topology;
  /** Shown while the step runs. */
  readonly live: (text: string) => void;
  /** The instance is ours to take down. */
  held: boolean;
  lab: LabClient;
  /** Runs from before the kill until traffic is home again. */
  load?: Load;
  killedAt?: number;
  failover?: FailoverFigures;
  restart?: RestartFigures;
}

export interface Step {
  readonly name: string;
  readonly title: string;
  /** Returns what was seen, for the line under the title. */
  readonly run: (demo: DemoContext) => Promise<string>;
}

const HOME = 'us';
const AWAY = 'eu';
const CLIENT = `${HOME}/default/client-0`;
const SHOP_PODS = `${HOME}/pod/default/shop-*`;
/** The promise: no request that starts later than this after the kill fails. */
const FAILOVER_LIMIT_MS = 3000;
const AFFINITY_NONE = 'service.cilium.io/affinity: "none"';
/** Requests in a row, by start, that have to agree before traffic counts as moved. */
const STEADY = 50;

function spread(results: readonly RequestResult[], key = servedBy): string {
  const counts = countBy(results, key);
  return Object.keys(counts)
    .sort()
    .map((name) => `${name} ${Math.round(((counts[name] ?? 0) / results.length) * 100)} %`)
    .join(', ');
}

function claim(holds: boolean, message: string): void {
  if (!holds) throw new MeshError({ code: 'internal', message });
}

/** Runs the operator's own tool, so that the demonstration shows what an operator would do. */
async function clustermesh(demo: DemoContext, args: readonly string[]): Promise<string> {
  const child = spawn(process.execPath, [bundle('clustermesh'), ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      const last = output.trimEnd().split('\n').at(-1);
      if (last !== undefined) demo.live(last.trim());
    });
  }
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  claim(code === 0, `clustermesh ${args.join(' ')} ended with exit code ${code}:\n${output.trim()}`);
  return output;
}

async function up(demo: DemoContext): Promise<string> {
  demo.lab = await startLab({
    instance: demo.instance,
    topology: demo.topology,
    tied: true,
    progress: demo.live,
    onHeld: () => {
      demo.held = true;
    },
  });
  return demo.topology.clusters
    .map(
      (cluster) =>
        `${cluster.name} (id ${cluster.id}, ${cluster.region}): etcd, Redis, apiserver, ${cluster.nodes.length} nodes with an agent each`,
    )
    .join('\n');
}

async function deploy(demo: DemoContext): Promise<string> {
  for (const { name } of demo.topology.clusters) await demo.lab.apply(name, shopManifest(name), manifestFile(name));
  const pods = await demo.lab.podsReady();
  const urls = await Promise.all(
    demo.topology.clusters.map(
      async ({ name }) => `http ${name} → ${(await shopUrl(demo.lab, name)).replace('http://', '')}`,
    ),
  );
  return `${pods.length} pods, the same global service in both regions, each with its own ClusterIP: ${urls.join(', ').replaceAll('http ', '')}`;
}

async function connect(demo: DemoContext): Promise<string> {
  const [eu, us] = [`${demo.instance}/${AWAY}`, `${demo.instance}/${HOME}`];
  await clustermesh(demo, ['connect', '--context', eu, '--destination-context', us]);
  for (const context of [eu, us]) await clustermesh(demo, ['status', '--context', context, '--wait']);
  return 'certificates exchanged, each cluster reads the other over mutual TLS, every node has applied it';
}

async function bothServe(demo: DemoContext): Promise<string> {
  const details: string[] = [];
  for (const cluster of [AWAY, HOME]) {
    const url = await shopUrl(demo.lab, cluster);
    const seen = async () => {
      const results = await requests(demo.lab, `${cluster}/default/client-0`, `${url}/`, 100);
      demo.live(`from ${cluster}: ${spread(results)}`);
      return results.every((result) => result.error === undefined) &&
        Object.keys(countBy(results, servedBy)).length === 4
        ? results
        : undefined;
    };
    const results = await waitFor(seen, {
      what: `answers from all four servers to the client in ${cluster}`,
      timeoutMs: 30_000,
      intervalMs: 100,
    });
    details.push(`client in ${cluster}: ${spread(results)}`);
  }
  return details.join('\n');
}

async function localAffinity(demo: DemoContext): Promise<string> {
  for (const { name } of demo.topology.clusters) {
    await demo.lab.apply(
      name,
      shopManifest(name).replace(AFFINITY_NONE, 'service.cilium.io/affinity: "local"'),
      manifestFile(name),
    );
  }
  const url = await shopUrl(demo.lab, HOME);
  const home = async () => {
    const results = await requests(demo.lab, CLIENT, `${url}/`, 100);
    demo.live(spread(results));
    return results.every((result) => result.cluster === HOME) ? results : undefined;
  };
  return `client in ${HOME}: ${spread(await waitFor(home, { what: `all answers from ${HOME}`, timeoutMs: 30_000, intervalMs: 100 }))}`;
}

/** The last requests by start, once they are over: the load is open, so a late one may still be missing. */
function steadyIn(load: Load, cluster: string, since: number): boolean {
  const last = load.results
    .filter((result) => result.at > since)
    .toSorted((a, b) => a.at - b.at)
    .slice(-STEADY);
  return last.length === STEADY && last.every((result) => result.cluster === cluster);
}

function liveLoad(demo: DemoContext): void {
  const { results } = demo.load!;
  const failed = results.filter((result) => result.error !== undefined).length;
  demo.live(`${results.length} requests, ${failed} failed; lately ${spread(results.slice(-STEADY), servingCluster)}`);
}

async function killBackends(demo: DemoContext): Promise<string> {
  const load = await startLoad(demo.lab, CLIENT, `${await shopUrl(demo.lab, HOME)}/`);
  demo.load = load;
  await waitFor(() => steadyIn(load, HOME, 0), { what: 'the load to run', timeoutMs: 20_000, intervalMs: 20 });
  demo.killedAt = systemClock.wallMs();
  const { done } = await demo.lab.kill(SHOP_PODS);
  return `a request every 20 ms from ${CLIENT}; SIGKILL to ${done.join(' and ')}`;
}

async function failover(demo: DemoContext): Promise<string> {
  const killedAt = demo.killedAt!;
  await waitFor(
    () => {
      liveLoad(demo);
      return systemClock.wallMs() > killedAt + FAILOVER_LIMIT_MS + 1500 && steadyIn(demo.load!, AWAY, killedAt);
    },
    { what: `traffic to be served by ${AWAY}`, timeoutMs: 20_000, intervalMs: 50 },
  );
  const after = demo.load!.results.filter((result) => result.at >= killedAt).toSorted((a, b) => a.at - b.at);
  const failures = after.filter((result) => result.error !== undefined);
  const lastFailure = failures.at(-1);
  const recovered = after.find(
    (result) => result.error === undefined && (lastFailure === undefined || result.at > lastFailure.at),
  );
  const late = after.filter((result) => result.at > killedAt + FAILOVER_LIMIT_MS);
  const figures = {
    requests: after.length,
    failed: failures.length,
    lastFailureMs: lastFailure === undefined ? 0 : Math.round(lastFailure.at - killedAt),
    recoveredMs: recovered === undefined ? -1 : Math.max(0, Math.round(recovered.at - killedAt)),
  };
  demo.failover = figures;
  claim(
    late.every((result) => result.cluster === AWAY),
    `of the requests that started later than ${FAILOVER_LIMIT_MS} ms after the kill: ${spread(late, servingCluster)}`,
  );
  return `${figures.failed} of ${figures.requests} requests failed, the last one started ${figures.lastFailureMs} ms after the kill; then all served by ${AWAY}`;
}

async function bringBack(demo: DemoContext): Promise<string> {
  const { done } = await demo.lab.start(SHOP_PODS);
  await demo.lab.podsReady((pod) => pod.cluster === HOME);
  liveLoad(demo);
  return `${done.join(' and ')} started, ready again`;
}

async function returnHome(demo: DemoContext): Promise<string> {
  const load = demo.load!;
  const since = systemClock.wallMs();
  await waitFor(
    () => {
      liveLoad(demo);
      return steadyIn(load, HOME, since);
    },
    { what: `traffic to return to ${HOME}`, timeoutMs: 20_000, intervalMs: 50 },
  );
  const results = (await load.stop()).filter((result) => result.at > demo.killedAt! + FAILOVER_LIMIT_MS);
  const failed = results.filter((result) => result.error !== undefined);
  claim(
    failed.length === 0,
    `${failed.length} of ${results.length} requests failed on the way back: ${spread(failed)}`,
  );
  const firstHome = results.find((result) => result.cluster === HOME);
  return `none of ${results.length} requests failed; first answer from ${HOME} ${Math.round((firstHome?.at ?? since) - since)} ms after its servers were ready`;
}

async function agentRestart(demo: DemoContext): Promise<string> {
  const client = (await demo.lab.pods()).find((pod) => `${pod.cluster}/${pod.namespace}/${pod.name}` === CLIENT)!;
  const agent = `${HOME}/agent/${client.node}`;
  const { socket } = nodePaths(demo.instance, HOME, client.node);
  const transfer = await startTransfer(
    demo.lab,
    CLIENT,
    `${await shopUrl(demo.lab, HOME, 'shop-remote')}/stream?rate=20000000`,
  );
  const flowing = (bytes: number, what: string) =>
    waitFor(
      () => {
        demo.live(`${(transfer.bytesSoFar() / 1e6).toFixed(0)} MB`);
        return transfer.bytesSoFar() >= bytes;
      },
      { what, timeoutMs: 30_000, intervalMs: 50 },
    );
  await flowing(10e6, 'the transfer to flow');
  await demo.lab.kill(agent);
  await flowing(transfer.bytesSoFar() + 10e6, 'the transfer to go on without an agent');
  await demo.lab.start(agent);
  await waitFor(async () => (await askAgent(socket, 'GetStatus')).applied, {
    what: `the restarted ${agent} to report applied`,
    timeoutMs: 30_000,
  });
  await flowing(transfer.bytesSoFar() + 10e6, 'the transfer to go on with the new agent');
  const result = await transfer.finish();
  demo.restart = { bytesLost: Math.abs(result.sentBytes - result.bytes), throughputDipMs: result.longestStallMs };
  claim(
    result.intact,
    `the transfer arrived damaged: ${result.bytes} of ${result.sentBytes} bytes, ${result.error ?? 'checksum differs'}`,
  );
  claim(
    result.longestStallMs <= STALL_LIMIT_MS,
    `the transfer stalled for ${result.longestStallMs} ms, allowed are ${STALL_LIMIT_MS} ms`,
  );
  const rate = (result.bytes / 1e6 / (result.ms / 1000)).toFixed(0);
  return `${agent} killed and started under ${(result.bytes / 1e6).toFixed(0)} MB from ${AWAY} at ${rate} MB/s: checksum right, longest stall ${result.longestStallMs} ms`;
}

export const STEPS: readonly Step[] = [
  { name: 'up', title: 'Two regions come up', run: up },
  { name: 'deploy', title: 'A shop in both: two servers and two clients each', run: deploy },
  { name: 'connect', title: 'clustermesh connect', run: connect },
  { name: 'both-regions-serve', title: 'Both regions serve (affinity none)', run: bothServe },
  { name: 'local-affinity', title: 'Local affinity keeps traffic home', run: localAffinity },
  { name: 'kill-backends', title: `All servers of region ${HOME} are killed under load`, run: killBackends },
  { name: 'failover', title: `Traffic flows from region ${AWAY}`, run: failover },
  { name: 'bring-back', title: `Region ${HOME} is brought back`, run: bringBack },
  { name: 'return-home', title: 'Traffic returns home', run: returnHome },
  { name: 'agent-restart', title: 'An agent restarts under a transfer across regions', run: agentRestart },
];
