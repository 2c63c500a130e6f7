import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { silentLog } from '@clustermesh/runtime';
import { openEtcd } from '../etcd.ts';
import type { Etcd, EtcdOptions } from '../types.ts';
import { freePorts } from './ports.ts';
import { startProxy, type TcpProxy } from './proxy.ts';

export { type MemorySink, memorySink } from './memory-sink.ts';
export { freePorts } from './ports.ts';
export { startProxy, type TcpProxy } from './proxy.ts';

export interface EtcdServerTls {
  readonly caFile: string;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface EtcdServerOptions {
  /** Serves https and asks for client certificates of this CA; without it, plain http. */
  readonly tls?: EtcdServerTls | undefined;
  readonly extraArgs?: readonly string[];
  /** Keeps its cluster id through `wipe`, as an etcd does that is rebuilt with equal flags. */
  readonly sameClusterId?: boolean;
}

export interface EtcdServer extends AsyncDisposable {
  /** `http(s)://127.0.0.1:port`. */
  readonly endpoint: string;
  readonly port: number;
  readonly pid: number | undefined;
  /** What etcd wrote to its log since it was started last. */
  log(): string;
  start(): Promise<void>;
  /** SIGTERM, and waits for the end. */
  stop(): Promise<void>;
  /** SIGKILL, and waits for the end. */
  kill(): Promise<void>;
  restart(): Promise<void>;
  /** Stopped, emptied and started again: another cluster id, revision 1. */
  wipe(): Promise<void>;
  /** Ends a lease with all its keys, as etcd does when nobody keeps it alive. Not over TLS. */
  expire(lease: string): Promise<void>;
  /** SIGSTOP: the kernel still accepts connections, nobody answers. */
  pause(): void;
  resume(): void;
  /** A proxy in front of this server, ended with it. */
  proxy(): Promise<TcpProxy & { readonly endpoint: string }>;
  /** A client of this server with short time-outs, closed with it. */
  client(options?: Partial<EtcdOptions>): Etcd;
  close(): Promise<void>;
}

const START_TIMEOUT_MS = 15_000;

/** Of servers that were not closed. One listener for all: a process may start many. */
const directories = new Set<string>();
process.once('exit', () => {
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});

/** A real etcd on free loopback ports in a directory of its own. Close it (or `await using`) when the test ends. */
export async function startEtcd(options: EtcdServerOptions = {}): Promise<EtcdServer> {
  // Nothing reserves a free port until etcd listens on it, so somebody else may have been quicker.
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnFreePorts(options);
    } catch (error) {
      if (attempt === 3 || !/address already in use/.test(messageOf(error))) throw error;
    }
  }
}

async function startOnFreePorts(options: EtcdServerOptions): Promise<EtcdServer> {
  const directory = mkdtempSync(join(tmpdir(), 'cm-etcd-'));
  const [port, peerPort] = (await freePorts(2)) as [number, number];
  const scheme = options.tls === undefined ? 'http' : 'https';
  const endpoint = `${scheme}://127.0.0.1:${port}`;
  const closers: (() => Promise<void>)[] = [];
  let child: ChildProcess | undefined;
  let exited: Promise<void> = Promise.resolve();
  let output = '';
  let generation = 0;
  const firstToken = randomBytes(8).toString('hex');

  function args(): string[] {
    const peer = `http://127.0.0.1:${peerPort}`;
    const tls = options.tls;
    return [
      ...['--name', 'test', '--data-dir', join(directory, `data-${generation}`)],
      ...['--listen-client-urls', endpoint, '--advertise-client-urls', endpoint],
      ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', `test=${peer}`],
      // Random: with equal flags a rebuilt etcd would have the same cluster id.
      ...['--initial-cluster-token', options.sameClusterId === true ? firstToken : randomBytes(8).toString('hex')],
      ...[
        '--unsafe-no-fsync',
        '--heartbeat-interval',
        '50',
        '--election-timeout',
        '250',
        '--log-level',
        'warn',
        '--logger',
        'zap',
      ],
      ...(tls === undefined
        ? []
        : [
            '--client-cert-auth',
            '--trusted-ca-file',
            tls.caFile,
            '--cert-file',
            tls.certFile,
            '--key-file',
            tls.keyFile,
          ]),
      ...(options.extraArgs ?? []),
    ];
  }

  /** Over TLS a bare TCP connection that etcd accepts must do: not every test has a certificate of its own here. */
  async function waitServing(process: ChildProcess): Promise<void> {
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (performance.now() < deadline) {
      if (process.exitCode !== null)
        throw new MeshError({
          code: 'internal',
          message: `starting etcd at ${endpoint}: it ended with status ${process.exitCode}:\n${output}`,
        });
      if (await serving()) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new MeshError({
      code: 'timeout',
      message: `starting etcd at ${endpoint}: not ready after ${START_TIMEOUT_MS} ms:\n${output}`,
    });
  }

  async function serving(): Promise<boolean> {
    if (options.tls !== undefined) {
      const { connect } = await import('node:net');
      return await new Promise((resolve) => {
        const socket = connect(port, '127.0.0.1', () => resolve(true)).on('error', () => resolve(false));
        socket.on('connect', () => socket.destroy());
      });
    }
    return await fetch(`${endpoint}/health`).then(
      (response) => response.ok,
      () => false,
    );
  }

  async function end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    if (child === undefined) return;
    child.kill('SIGCONT');
    child.kill(signal);
    await exited;
    child = undefined;
  }

  const server: EtcdServer = {
    endpoint,
    port,
    get pid() {
      return child?.pid;
    },
    log: () => output,
    async start() {
      if (child !== undefined) return;
      output = '';
      // The kernel ends the server with a test process that dies without cleaning up.
      const started = spawn('setpriv', ['--pdeathsig', 'KILL', 'etcd', ...args()], {
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      child = started;
      exited = new Promise((resolve) => started.once('close', () => resolve()));
      started.once('error', (error) => {
        output += String(error);
      });
      const collect = (data: Buffer) => {
        output = (output + data.toString()).slice(-64 * 1024);
      };
      started.stdout!.on('data', collect);
      started.stderr!.on('data', collect);
      await waitServing(started);
    },
    stop: () => end('SIGTERM'),
    kill: () => end('SIGKILL'),
    async restart() {
      await end('SIGKILL');
      await server.start();
    },
    async wipe() {
      await end('SIGKILL');
      generation++;
      await server.start();
    },
    async expire(lease) {
      const body = JSON.stringify({ ID: lease });
      const response = await fetch(`${endpoint}/v3/lease/revoke`, { method: 'POST', body });
      if (!response.ok)
        throw new MeshError({ code: 'internal', message: `ending lease ${lease}: ${await response.text()}` });
    },
    pause: () => void child?.kill('SIGSTOP'),
    resume: () => void child?.kill('SIGCONT'),
    async proxy() {
      const proxy = await startProxy({ host: '127.0.0.1', port });
      closers.push(() => proxy.close());
      return Object.defineProperty(proxy, 'endpoint', { value: `${scheme}://127.0.0.1:${proxy.port}` }) as TcpProxy & {
        readonly endpoint: string;
      };
    },
    client(overrides = {}) {
      const client = openEtcd({
        endpoints: [endpoint],
        log: silentLog(),
        requestTimeoutMs: 5000,
        connectTimeoutMs: 1000,
        progressIntervalMs: 500,
        ...overrides,
      });
      closers.push(() => client.close());
      return client;
    },
    async close() {
      for (const close of closers.splice(0).reverse()) await close();
      await end('SIGKILL');
      rmSync(directory, { recursive: true, force: true });
      directories.delete(directory);
    },
    [Symbol.asyncDispose]: () => server.close(),
  };
  directories.add(directory);
  try {
    await server.start();
  } catch (error) {
    await server.close();
    throw error;
  }
  return server;
}
