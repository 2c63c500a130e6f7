/** exec, etcdctl, map, logs: looking into a running instance. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type AgentMethods, MAP_NAMES, MeshError } from '@clustermesh/contract';
import { dialRpc } from '@clustermesh/runtime';
import { parse } from 'yaml';
import { LabClient } from '../client.ts';
import { daemonLogFile } from '../labd/daemons.ts';
import { podLogFile } from '../labd/pod.ts';
import { inNamespace } from '../netns/exec.ts';
import { clusterPaths, controlPlaneNamespace, instancePaths, nodePaths } from '../netns/names.ts';
import { findCluster, findNode, type Topology } from '../topology.ts';
import { type Format, printJson, table } from './output.ts';

/** Passes stdio and signals through and ends with the program's own exit code. */
async function passThrough(child: ChildProcess, what: string): Promise<void> {
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  process.on('SIGTERM', forward).on('SIGINT', () => {}); // the terminal sends SIGINT to both; only the program's answer counts
  process.exitCode = await new Promise<number>((resolve, reject) => {
    child.on('error', (error) => reject(MeshError.from(error, `running ${what}`)));
    child.on('exit', (code, signal) =>
      resolve(code ?? 128 + (signal === 'SIGKILL' ? 9 : signal === 'SIGTERM' ? 15 : 1)),
    );
  });
  process.off('SIGTERM', forward);
}

export async function exec(instance: string, pod: string, command: readonly string[]): Promise<void> {
  await passThrough(await new LabClient(instance).spawnInPod(pod, command, 'inherit'), command.join(' '));
}

async function topologyOf(instance: string): Promise<Topology> {
  const { topology } = await new LabClient(instance).status();
  return topology ?? { clusters: [] };
}

export const dumpMapHelp = `maps: ${MAP_NAMES.join(', ')}`;

export const ETCD_ROLES = ['admin', 'local', 'node', 'remote', 'nobody'] as const;
export type EtcdRole = (typeof ETCD_ROLES)[number];

/** Certificate and key to show to the etcd of `cluster`, or none. */
export function etcdCredentials(
  instance: string,
  topology: Topology,
  clusterName: string,
  role: EtcdRole,
): readonly string[] {
  const cluster = findCluster(topology, clusterName);
  const { pki } = clusterPaths(instance, cluster.name);
  const pair = (cert: string, key: string) => [`--cert=${cert}`, `--key=${key}`];
  switch (role) {
    case 'nobody':
      return [];
    case 'admin':
    case 'local':
      return pair(join(pki, `${role}.crt`), join(pki, `${role}.key`));
    case 'node': {
      const node = nodePaths(instance, cluster.name, cluster.nodes[0]!.name);
      return pair(join(node.pki, 'node.crt'), join(node.pki, 'node.key'));
    }
    case 'remote':
      return pair(...remotePair(instance, topology, clusterName));
  }
}

/** The certificate that `cluster` signed for a peer is where that peer keeps it: its config directory, wire-contract §5.1. */
function remotePair(instance: string, topology: Topology, cluster: string): [string, string] {
  for (const peer of topology.clusters) {
    const file = join(clusterPaths(instance, peer.name).peers, cluster);
    if (peer.name === cluster || !existsSync(file)) continue;
    const config = parse(readFileSync(file, 'utf8')) as { 'cert-file'?: string; 'key-file'?: string };
    if (config['cert-file'] !== undefined && config['key-file'] !== undefined)
      return [config['cert-file'], config['key-file']];
  }
  throw new MeshError({
    code: 'not-found',
    message: `opening the etcd of ${cluster} as a peer: no other cluster has a certificate for it`,
    hint: `connect the clusters first: npm run clustermesh -- connect --context ${instance}/${cluster} --destination-context ${instance}/PEER`,
  });
}

export async function etcdctl(
  instance: string,
  cluster: string,
  role: EtcdRole,
  args: readonly string[],
): Promise<void> {
  const topology = await topologyOf(instance);
  const credentials = etcdCredentials(instance, topology, cluster, role);
  const ca = join(clusterPaths(instance, cluster).pki, 'ca.crt');
  const [command, ...rest] = inNamespace(controlPlaneNamespace(instance, cluster), [
    'etcdctl',
    '--endpoints=https://127.0.0.1:2379',
    `--cacert=${ca}`,
    ...credentials,
    ...args,
  ]);
  await passThrough(spawn(command!, rest, { stdio: 'inherit', env: { ...process.env, ETCDCTL_API: '3' } }), 'etcdctl');
}

export async function dumpMap(instance: string, path: string, map: string): Promise<Record<string, unknown>[]> {
  const [clusterName, nodeName, ...more] = path.split('/');
  if (clusterName === undefined || nodeName === undefined || more.length > 0) {
    throw new MeshError({
      code: 'invalid-argument',
      message: `reading a map of ${path}: expected CLUSTER/NODE, for example us/n1`,
    });
  }
  if (!MAP_NAMES.some((name) => name === map)) {
    throw new MeshError({
      code: 'invalid-argument',
      message: `reading map ${map} of ${path}: there is no such map`,
      hint: `maps: ${MAP_NAMES.join(', ')}`,
    });
  }
  const node = findNode(findCluster(await topologyOf(instance), clusterName), nodeName);
  const agent = dialRpc<AgentMethods>('agent', `unix://${nodePaths(instance, clusterName, node.name).socket}`);
  try {
    return JSON.parse((await agent.DumpMap({ map })).json) as Record<string, unknown>[];
  } finally {
    agent.close();
  }
}

export async function map(instance: string, path: string, name: string, output: Format): Promise<void> {
  const rows = await dumpMap(instance, path, name);
  if (output === 'json') return printJson(rows);
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value: unknown) =>
    value === null || value === undefined ? '-' : typeof value === 'object' ? JSON.stringify(value) : String(value);
  if (rows.length === 0) process.stdout.write(`${name} of ${path} is empty\n`);
  else
    process.stdout.write(
      table(
        columns.map((column) => column.toUpperCase()),
        rows.map((row) => columns.map((column) => cell(row[column]))),
      ),
    );
}

export interface LogsOptions {
  readonly follow?: boolean;
  readonly tail: string;
}

export async function logs(instance: string, target: string, options: LogsOptions): Promise<void> {
  const [cluster, kind, namespace, name] = target.split('/');
  const file =
    kind === 'pod' && cluster !== undefined && namespace !== undefined && name !== undefined
      ? podLogFile(instance, cluster, namespace, name)
      : daemonLogFile(instance, target);
  if (!existsSync(file)) {
    const { logs: dir } = instancePaths(instance);
    const known = existsSync(dir)
      ? readdirSync(dir)
          .map((entry) => entry.replace(/\.log$/, ''))
          .join(', ')
      : 'none, the instance is not up';
    throw new MeshError({
      code: 'not-found',
      message: `reading the log of ${target}: ${file} is not there`,
      hint: `targets are eu/apiserver, eu/agent/n1, eu/pod/default/client-0, labd; logs there are: ${known}`,
    });
  }
  await passThrough(
    spawn('tail', [...(options.follow === true ? ['-F'] : []), '-n', options.tail, file], { stdio: 'inherit' }),
    'tail',
  );
}
