/** A whole control plane for tests: etcd with mutual TLS, Redis, and the apiserver as a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AdminMethods } from '@clustermesh/contract';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { ensureClusterPki } from '@clustermesh/pki';
import { dialRpc, repoRoot, waitFor } from '@clustermesh/runtime';
import { stringify } from 'yaml';
import { type RedisServer, startRedisServer } from './redis-server.ts';

export interface TestCluster {
  readonly name: string;
  readonly dir: string;
  /** Handle file: a context for the CLI. */
  readonly context: string;
  readonly etcd: EtcdServer;
  readonly redis: RedisServer;
  /** Standard output of the apiserver since the start of the test. */
  log(): string;
  /** Called with each line that the apiserver logs from now on. Returns the function that stops it. */
  onLog(listener: (line: string) => void): () => void;
  /** With other advertised endpoints, for example; resolves when it answers. */
  startApiserver(advertise?: readonly string[]): Promise<void>;
  killApiserver(): Promise<void>;
  /** Of the apiserver that runs. */
  pid(): number | undefined;
  close(): Promise<void>;
}

/** `config`: further sections of apiserver.yaml. `wrapper`: a command that runs the apiserver as its arguments say. */
export async function startTestCluster(
  name: string,
  id: number,
  config: Readonly<Record<string, unknown>> = {},
  wrapper: readonly string[] = [],
): Promise<TestCluster> {
  const dir = mkdtempSync(join(tmpdir(), `cm-${name}-`));
  const pkiDir = join(dir, 'pki');
  await ensureClusterPki({ dir: pkiDir, cluster: name });
  const file = (cert: string) => join(pkiDir, cert);
  const [etcd, redis] = await Promise.all([
    startEtcd({ tls: { caFile: file('ca.crt'), certFile: file('server.crt'), keyFile: file('server.key') } }),
    startRedisServer(),
  ]);
  for (const sub of ['manifests', 'clustermesh', 'state']) mkdirSync(join(dir, sub));
  const socket = join(dir, 'apiserver.sock');
  const adminPort = await freePort();
  const context = join(dir, `${name}.yaml`);
  writeFileSync(context, stringify({ name, id, apiserver: `unix://${socket}`, agents: {} }));
  let child: ChildProcess | undefined;
  let output = '';
  let rest = '';
  const listeners = new Set<(line: string) => void>();
  const onOutput = (data: Buffer) => {
    output += data.toString();
    const lines = (rest + data.toString()).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) for (const listener of listeners) listener(line);
  };

  const cluster: TestCluster = {
    name,
    dir,
    context,
    etcd,
    redis,
    log: () => output,
    pid: () => child?.pid,
    onLog: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    startApiserver: async (advertise = [`https://${name}.mesh.cilium.io:${etcd.port}`]) => {
      const configFile = join(dir, 'apiserver.yaml');
      writeFileSync(
        configFile,
        stringify({
          cluster: { name, id, region: `${name}-1`, serviceCIDR: '10.96.0.0/16', podCIDR: `10.${id}.0.0/16` },
          etcd: {
            endpoints: [etcd.endpoint],
            caFile: file('ca.crt'),
            certFile: file('admin.crt'),
            keyFile: file('admin.key'),
          },
          advertise: {
            endpoints: advertise,
            hostAliases: [{ hostname: `${name}.mesh.cilium.io`, ips: ['127.0.0.1'] }],
            admin: [`127.0.0.1:${adminPort}`],
          },
          pki: { dir: pkiDir },
          manifestsDir: join(dir, 'manifests'),
          peersDir: join(dir, 'clustermesh'),
          usersFile: join(dir, 'users.yaml'),
          stateDir: join(dir, 'state'),
          redis: { path: redis.path },
          admin: { socket, listen: { host: '127.0.0.1', port: adminPort } },
          http: { port: 0 },
          timers: { nodeGraceMs: 0, drainWaitMs: 200 },
          ...config,
        }),
      );
      const main = join(repoRoot(), 'apiserver/src/main.ts');
      const [command, ...args] = [...wrapper, process.execPath, '--import', 'tsx', main, '--config', configFile];
      const started = spawn(command!, args, {
        cwd: repoRoot(),
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      child = started;
      rest = '';
      started.stdout!.on('data', onOutput);
      await waitFor(
        async () => {
          if (started.exitCode !== null) throw new Error(`it ended with ${started.exitCode}: ${output}`);
          // A new one each time: gRPC waits ever longer before it tries a connection again.
          const client = dialRpc<AdminMethods>('admin', `unix://${socket}`);
          return client.GetCluster({}, { timeoutMs: 2000 }).finally(() => client.close());
        },
        { what: `the apiserver of ${name}`, timeoutMs: 60_000 },
      );
    },
    killApiserver: async () => {
      const running = child;
      if (running === undefined || running.exitCode !== null || running.signalCode !== null) return;
      const ended = new Promise((resolve) => running.once('exit', resolve));
      running.kill('SIGKILL');
      await ended;
    },
    close: async () => {
      await cluster.killApiserver();
      await Promise.all([etcd.close(), redis.stop()]);
      rmSync(dir, { recursive: true, force: true });
    },
  };
  process.once('exit', () => child?.kill('SIGKILL'));
  return cluster;
}

/** Free when asked; the apiserver takes it again after every restart. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}

export interface CommandResult {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs the CLI as a process; `onText` sees what it says as it says it. */
export async function runCli(
  args: readonly string[],
  onText: (text: string) => void = () => {},
): Promise<CommandResult> {
  const main = join(repoRoot(), 'cli/src/main.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', main, ...args], {
    cwd: repoRoot(),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let out = '';
  let err = '';
  child.stdout.on('data', (data: Buffer) => {
    out += data.toString();
    onText(data.toString());
  });
  child.stderr.on('data', (data: Buffer) => {
    err += data.toString();
    onText(data.toString());
  });
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { code, out, err };
}
