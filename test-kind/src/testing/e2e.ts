/** What the whole-mesh tests share: a lab of their own, the operator's commands, and ways to look into the kernel. */
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { repoRoot, waitFor } from '@clustermesh/runtime';
import { dumpMap } from '../cli/inspect.ts';
import { defaultTopologyFile } from '../cli/lifecycle.ts';
import { holderOf, type LabClient, startLab } from '../client.ts';
import { manifestFile, shopManifest } from '../demo/shop.ts';
import { askAgent, askApiserver, bundle } from '../labd/daemons.ts';
import { type EtcdRole, etcdCredentials, etcdctlCommand } from '../labd/etcdctl.ts';
import { capture, inNamespace, type Output } from '../netns/exec.ts';
import { isOrphan, teardown } from '../netns/instance.ts';
import { clusterPaths, instancePaths, nodeNamespace, nodePaths } from '../netns/names.ts';
import { parseTopology, type Topology } from '../topology.ts';

const POOL = ['t1', 't2', 't3', 't4', 't5', 't6', 't7', 't8', 't9'] as const;

export interface TestLab {
  readonly lab: LabClient;
  readonly instance: string;
  readonly topology: Topology;
  close(): Promise<void>;
}

export interface TestLabOptions {
  /** YAML; default: two regions of two nodes each. */
  readonly topology?: string;
}

/** A lab of the test's own, in the first instance of the pool that is free; it ends with the test's process. */
export async function openLab(options: TestLabOptions = {}): Promise<TestLab> {
  const text = options.topology ?? readFileSync(defaultTopologyFile(), 'utf8');
  const topology = parseTopology(text, 'test');
  const tried: string[] = [];
  for (const instance of POOL) {
    const holder = holderOf(instance);
    if (holder !== undefined && !isOrphan(holder)) continue;
    try {
      const lab = await startLab({ instance, topology, tied: true });
      const close = async () => {
        keepLogs(instance);
        await teardown(instance);
      };
      return { lab, instance, topology, close };
    } catch (error) {
      // Somebody else was quicker; anything but that is the test's to know.
      if (!(error instanceof MeshError) || error.code !== 'locked') throw error;
      tried.push(messageOf(error));
    }
  }
  throw new MeshError({
    code: 'exhausted',
    message: `opening a lab for a test: no instance is free: ${tried.join('; ') || POOL.join(', ')}`,
  });
}

/** A name of the pool that nobody uses right now, for programs that bring up an instance themselves. */
export function freeInstance(): string {
  const free = POOL.toReversed().find((instance) => holderOf(instance) === undefined);
  if (free !== undefined) return free;
  throw new MeshError({
    code: 'exhausted',
    message: `looking for a free lab instance: all of ${POOL.join(', ')} are in use`,
  });
}

/** CM_KEEP_LOGS=DIR keeps the logs of every lab, for a look at a test that failed. */
function keepLogs(instance: string): void {
  const { CM_KEEP_LOGS: dir } = process.env;
  if (dir === undefined) return;
  mkdirSync(dir, { recursive: true });
  if (existsSync(instancePaths(instance).logs))
    cpSync(instancePaths(instance).logs, join(dir, `${instance}-${process.pid}`), { recursive: true });
}

/** Brings the shop of the demonstration up in both clusters. */
export async function deployShop(
  test: TestLab,
  change: (manifest: string) => string = (manifest) => manifest,
): Promise<void> {
  for (const { name } of test.topology.clusters)
    await test.lab.apply(name, change(shopManifest(name)), manifestFile(name));
  await test.lab.podsReady();
}

export const withAffinity = (affinity: string) => (manifest: string) =>
  manifest.replace('service.cilium.io/affinity: "none"', `service.cilium.io/affinity: "${affinity}"`);

/** Runs a program to its end, with the repository as working directory. */
export function program(
  command: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Output> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: repoRoot(),
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code: code ?? 128, stdout, stderr }));
  });
}

/** The operator's tool, as built. */
export const clustermesh = (...args: string[]): Promise<Output> =>
  program(process.execPath, [bundle('clustermesh'), ...args]);
/** A command of the agent of one node, as built. */
export const agentCommand = (instance: string, cluster: string, node: string, ...args: string[]): Promise<Output> =>
  program(process.execPath, [bundle('clustermesh-agent'), ...args], {
    CLUSTERMESH_AGENT_SOCKET: nodePaths(instance, cluster, node).socket,
  });

/** The lab's own command, as built. */
export const labCommand = (instance: string, ...args: string[]): Promise<Output> =>
  program(process.execPath, [bundle('clustermesh-lab'), '--instance', instance, ...args]);

export async function connect(test: TestLab, a = 'eu', b = 'us'): Promise<void> {
  const args = ['connect', '--context', `${test.instance}/${a}`, '--destination-context', `${test.instance}/${b}`];
  const output = await clustermesh(...args);
  if (output.code !== 0)
    throw new Error(`clustermesh ${args.join(' ')} ended with ${output.code}:\n${output.stdout}${output.stderr}`);
  await converged(test);
}

/** Every cluster has every peer synced, and every node has applied it. */
export async function converged(test: TestLab): Promise<void> {
  for (const { name } of test.topology.clusters) {
    const output = await clustermesh('status', '--context', `${test.instance}/${name}`, '--wait');
    if (output.code !== 0)
      throw new Error(
        `clustermesh status --wait of ${name} ended with ${output.code}:\n${output.stdout}${output.stderr}`,
      );
  }
}

export async function runInPod(test: TestLab, pod: string, ...command: string[]): Promise<Output> {
  return labCommand(test.instance, 'exec', pod, '--', ...command);
}

export const mapOf = (test: TestLab, node: string, map: string) => dumpMap(test.instance, node, map);

export async function statusOf(test: TestLab, cluster: string) {
  return askApiserver(clusterPaths(test.instance, cluster).socket);
}

export function agentApplied(test: TestLab, cluster: string, node: string, timeoutMs = 40_000): Promise<boolean> {
  const { socket } = nodePaths(test.instance, cluster, node);
  return waitFor(async () => (await askAgent(socket, 'GetStatus')).applied, {
    what: `the agent of ${cluster}/${node} to report applied`,
    timeoutMs,
    intervalMs: 50,
  });
}

export async function inNode(test: TestLab, cluster: string, node: string, ...command: string[]): Promise<Output> {
  const [name, ...args] = inNamespace(nodeNamespace(test.instance, cluster, node), command);
  return capture(name!, args);
}

/** etcdctl as the lab's command runs it, or with credentials of the test's own, against the etcd of `cluster`. */
export async function etcdctl(
  test: TestLab,
  cluster: string,
  role: EtcdRole | { readonly credentials: readonly string[] },
  ...args: string[]
): Promise<Output> {
  const credentials =
    typeof role === 'string' ? etcdCredentials(test.instance, test.topology, cluster, role) : role.credentials;
  const limits = ['--command-timeout=2s', '--dial-timeout=2s'];
  const [command, ...rest] = etcdctlCommand(test.instance, cluster, credentials, [...limits, ...args]);
  return capture(command!, rest);
}
