/** The daemons of a cluster: what to run, where, and how to tell that it is up. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { AdminMethods, AgentMethods } from '@clustermesh/contract';
import { crlFile } from '@clustermesh/pki';
import { dialRpc, repoRoot } from '@clustermesh/runtime';
import {
  clusterPaths,
  controlPlaneNamespace,
  daemonCgroup,
  instancePaths,
  nodeNamespace,
  nodePaths,
} from '../netns/names.ts';
import type { ProcessSpec } from '../netns/process.ts';
import type { LabCluster } from '../topology.ts';
import { REDIS_PORT, redisFiles } from './cluster-files.ts';
import { daemonEnvironment } from './environment.ts';

export interface DaemonSpec {
  readonly process: ProcessSpec;
  /** Files that it reads only when it starts: it is restarted when one of them changes, as deploy/systemd does. */
  readonly readAtStart: readonly string[];
  /** Undefined when it is up, otherwise what is missing; daemons without an answer of their own are judged by those that use them. */
  readonly notReady: () => Promise<string | undefined>;
}

export function daemonLogFile(instance: string, name: string): string {
  return `${instancePaths(instance).logs}/${name.replaceAll('/', '-')}.log`;
}

export const bundle = (name: string): string => join(repoRoot(), 'dist', `${name}.mjs`);

export function daemonsOf(instance: string, cluster: LabCluster): DaemonSpec[] {
  const paths = clusterPaths(instance, cluster.name);
  const controlPlane = controlPlaneNamespace(instance, cluster.name);
  const spec = (what: string, namespace: string, command: readonly string[]): ProcessSpec => ({
    name: `${cluster.name}/${what}`,
    cgroup: daemonCgroup(instance, `${cluster.name}/${what}`),
    namespace,
    // Pods before daemons: on a small machine a starting agent would otherwise take the time of the very traffic that its
    // start must not disturb, and a stall would say more about the scheduler than about the datapath.
    command: ['nice', '-n', '5', ...command],
    env: daemonEnvironment(),
    cwd: paths.dir,
    logFile: daemonLogFile(instance, `${cluster.name}/${what}`),
    restart: () => true,
  });
  return [
    {
      process: spec('etcd', controlPlane, etcdCommand(cluster, paths.etcd, paths.pki)),
      // Certificate, key and revocations it reads at every handshake.
      readAtStart: [join(paths.pki, 'ca.crt')],
      notReady: async () => undefined,
    },
    {
      process: spec('redis', controlPlane, redisCommand(paths.redis, paths.pki)),
      readAtStart: [join(paths.pki, 'ca.crt'), join(paths.pki, 'server.crt')],
      notReady: async () => undefined,
    },
    {
      process: spec('gate', controlPlane, [process.execPath, bundle('clustermesh-gate'), '--config', paths.gateConfig]),
      readAtStart: [],
      notReady: async () => undefined,
    },
    {
      process: spec('apiserver', controlPlane, [
        process.execPath,
        bundle('clustermesh-apiserver'),
        '--config',
        paths.config,
      ]),
      readAtStart: [],
      notReady: () => apiserverNotReady(paths.socket),
    },
    ...cluster.nodes.map((node): DaemonSpec => {
      const { config, socket } = nodePaths(instance, cluster.name, node.name);
      const namespace = nodeNamespace(instance, cluster.name, node.name);
      return {
        process: spec(`agent/${node.name}`, namespace, [
          process.execPath,
          bundle('clustermesh-agent'),
          '--config',
          config,
        ]),
        readAtStart: [],
        notReady: () => agentNotReady(socket),
      };
    }),
  ];
}

function etcdCommand(cluster: LabCluster, dir: string, pki: string): string[] {
  return [
    // A new token at every start; it counts only where the data directory is new. A rebuilt etcd is then another one to its
    // readers, instead of the same one whose keys are all gone.
    ...['sh', '-c', 'exec etcd --initial-cluster-token="$(cat /proc/sys/kernel/random/uuid)" "$@"', 'etcd'],
    `--name=${cluster.name}`,
    `--data-dir=${dir}`,
    '--listen-client-urls=https://0.0.0.0:2379',
    `--advertise-client-urls=https://${cluster.controlPlaneIP}:2379`,
    '--listen-peer-urls=http://127.0.0.1:2380',
    '--initial-advertise-peer-urls=http://127.0.0.1:2380',
    `--initial-cluster=${cluster.name}=http://127.0.0.1:2380`,
    '--client-cert-auth',
    `--trusted-ca-file=${join(pki, 'ca.crt')}`,
    `--cert-file=${join(pki, 'server.crt')}`,
    `--key-file=${join(pki, 'server.key')}`,
    `--client-crl-file=${crlFile(pki)}`,
    // The JSON gateway would present the server's own certificate instead of the caller's.
    '--enable-grpc-gateway=false',
    '--auto-compaction-retention=1',
    '--unsafe-no-fsync',
    '--logger=zap',
    '--log-level=warn',
  ];
}

function redisCommand(dir: string, pki: string): string[] {
  const files = redisFiles(dir);
  const options = {
    dir,
    port: '0',
    bind: '127.0.0.1',
    'tls-port': String(REDIS_PORT),
    'tls-cert-file': join(pki, 'server.crt'),
    'tls-key-file': join(pki, 'server.key'),
    'tls-ca-cert-file': join(pki, 'ca.crt'),
    // The password says who it is.
    'tls-auth-clients': 'no',
    aclfile: files.acl,
    appendonly: 'yes',
    save: '',
    'maxmemory-policy': 'noeviction',
  };
  return ['redis-server', ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value])];
}

/** One call on a connection of its own: a kept one would sit out a back-off after the daemon's restart. */
export async function askAgent<K extends 'GetStatus' | 'EndpointList'>(
  socket: string,
  method: K,
): Promise<AgentMethods[K]['response']> {
  const client = dialRpc<AgentMethods>('agent', `unix://${socket}`);
  try {
    return (await client[method]({}, { timeoutMs: 2_000 })) as AgentMethods[K]['response'];
  } finally {
    client.close();
  }
}

export async function askApiserver(socket: string): Promise<AdminMethods['GetStatus']['response']> {
  const client = dialRpc<AdminMethods>('admin', `unix://${socket}`);
  try {
    return await client.GetStatus({}, { timeoutMs: 2_000 });
  } finally {
    client.close();
  }
}

async function apiserverNotReady(socket: string): Promise<string | undefined> {
  if (!existsSync(socket)) return 'no socket yet';
  const status = await askApiserver(socket);
  if (!status.etcdConnected) return `etcd: ${status.etcdError || 'not connected'}`;
  return status.redisConnected ? undefined : 'Redis: not connected';
}

async function agentNotReady(socket: string): Promise<string | undefined> {
  if (!existsSync(socket)) return 'no socket yet';
  const status = await askAgent(socket, 'GetStatus');
  if (!status.etcdConnected) return `etcd: ${status.etcdError || 'not connected'}`;
  return status.applied ? undefined : 'first state not applied yet';
}
