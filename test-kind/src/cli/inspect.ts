/** exec, etcdctl, map, logs: looking into a running instance. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { type AgentMethods, MAP_NAMES, MeshError } from '@clustermesh/contract';
import { dialRpc } from '@clustermesh/runtime';
import { LabClient } from '../client.ts';
import { daemonLogFile } from '../labd/daemons.ts';
import { type EtcdRole, etcdCredentials, etcdctlCommand } from '../labd/etcdctl.ts';
import { podLogFile } from '../labd/pod.ts';
import { instancePaths, nodePaths } from '../netns/names.ts';
import { findCluster, findNode, type Topology } from '../topology.ts';
import { type Format, printJson, tableText } from './output.ts';

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

export async function etcdctl(
  instance: string,
  cluster: string,
  role: EtcdRole,
  args: readonly string[],
): Promise<void> {
  const credentials = etcdCredentials(instance, await topologyOf(instance), cluster, role);
  const [command, ...rest] = etcdctlCommand(instance, cluster, credentials, args);
  await passThrough(spawn(command!, rest, { stdio: 'inherit' }), 'etcdctl');
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
      tableText(
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
