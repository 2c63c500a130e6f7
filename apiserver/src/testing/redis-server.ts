/** A real redis-server of one's own, on a unix socket in a temporary directory. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { waitFor } from '@clustermesh/runtime';
import { Redis } from 'ioredis';

export interface RedisServer {
  readonly path: string;
  /** SIGKILL; data that was acknowledged stays. */
  kill(): Promise<void>;
  start(): Promise<void>;
  /** SIGSTOP: the kernel still accepts connections, nobody answers. */
  pause(): void;
  resume(): void;
  /** Ends the server and removes its directory. */
  stop(): Promise<void>;
}

export async function startRedisServer(): Promise<RedisServer> {
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
      ],
      { stdio: 'ignore' },
    );
    child = started;
    const probe = new Redis({ path, retryStrategy: () => 20, maxRetriesPerRequest: null });
    probe.on('error', () => {});
    try {
      await waitFor(
        () => {
          if (started.exitCode !== null) throw new Error(`redis-server ended with ${started.exitCode}`);
          return probe.status === 'ready';
        },
        { what: `redis-server at ${path}`, timeoutMs: 10_000, intervalMs: 10 },
      );
    } finally {
      probe.disconnect();
    }
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
