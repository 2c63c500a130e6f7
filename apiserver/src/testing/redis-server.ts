/** A real redis-server of one's own, in a temporary directory: on a unix socket, and with TLS and users where a test asks for them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { waitFor } from '@clustermesh/runtime';
import { type RedisConfig, redisSchema } from '../operations/redis-config.ts';

export interface RedisServer {
  /** Unix socket; everything is allowed there to whoever may open it, unless an ACL says otherwise. */
  readonly path: string;
  /** As an apiserver is told of it. */
  readonly config: RedisConfig;
  /** SIGKILL; data that was acknowledged stays. */
  kill(): Promise<void>;
  start(): Promise<void>;
  /** SIGSTOP: the kernel still accepts connections, nobody answers. */
  pause(): void;
  resume(): void;
  /** Ends the server and removes its directory. */
  stop(): Promise<void>;
}

/** Whether it has read its data: one that asks for a login is up as well. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => socket.write('PING\r\n'));
    socket.on('error', () => resolve(false));
    socket.on('close', () => resolve(false));
    socket.on('data', (answer) => {
      resolve(/PONG|NOAUTH/.test(answer.toString()));
      socket.destroy();
    });
  });
}

/** `extraArgs`: further options of redis-server. */
export async function startRedisServer(extraArgs: readonly string[] = []): Promise<RedisServer> {
  // Short: the path of a unix socket has at most 107 bytes.
  const dir = mkdtempSync(join(tmpdir(), 'cm-redis-'));
  const path = join(dir, 'r.sock');
  let child: ChildProcess | undefined;

  async function start(): Promise<void> {
    const started = spawn(
      'redis-server',
      [
        '--port',
        '0',
        '--unixsocket',
        path,
        '--dir',
        dir,
        '--appendonly',
        'yes',
        '--appendfsync',
        'always',
        '--save',
        '',
        ...extraArgs,
      ],
      { stdio: 'ignore' },
    );
    child = started;
    await waitFor(
      () => {
        if (started.exitCode !== null) throw new Error(`redis-server ended with ${started.exitCode}`);
        return answers(path);
      },
      { what: `redis-server at ${path}`, timeoutMs: 20_000, intervalMs: 10 },
    );
  }

  async function kill(): Promise<void> {
    const running = child;
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return;
    const ended = new Promise((resolve) => running.once('exit', resolve));
    running.kill('SIGKILL');
    await ended;
    rmSync(path, { force: true });
  }

  // A test run that dies must not leave servers behind.
  process.once('exit', () => {
    child?.kill('SIGKILL');
    rmSync(dir, { recursive: true, force: true });
  });
  await start();
  return {
    path,
    config: redisSchema.parse({ path }),
    kill,
    start,
    pause: () => void child?.kill('SIGSTOP'),
    resume: () => void child?.kill('SIGCONT'),
    stop: async () => {
      await kill();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
