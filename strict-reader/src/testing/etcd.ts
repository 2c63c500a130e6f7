/** A real etcd for the tests of this tool, written to through its HTTP gateway: nothing is shared with the project's own client. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

export interface TestEtcd {
  readonly endpoint: string;
  put(key: string, value: string | Buffer): Promise<number>;
  delete(key: string): Promise<number>;
  compact(revision: number): Promise<void>;
  restart(): Promise<void>;
  /** Emptied; with another cluster id, or (as with equal flags) the same one. */
  wipe(identity: 'new' | 'same'): Promise<void>;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const base64 = (data: string | Buffer) => Buffer.from(data).toString('base64');

/** Every etcd of a test run listens for the end of the process. */
process.setMaxListeners(100);

export async function startEtcd(t: TestContext): Promise<TestEtcd> {
  const directory = mkdtempSync(join(tmpdir(), 'cm-strict-'));
  const endpoint = `http://127.0.0.1:${await freePort()}`;
  const peer = `http://127.0.0.1:${await freePort()}`;
  let token = randomBytes(8).toString('hex');
  let generation = 0;
  let child: ChildProcess | undefined;

  const start = async () => {
    const flags = ['--name', 'test', '--data-dir', join(directory, String(generation)), '--unsafe-no-fsync'];
    flags.push('--listen-client-urls', endpoint, '--advertise-client-urls', endpoint);
    flags.push('--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', `test=${peer}`);
    flags.push('--initial-cluster-token', token, '--log-level', 'error', '--logger', 'zap');
    flags.push('--heartbeat-interval', '50', '--election-timeout', '250');
    child = spawn('etcd', flags, { stdio: 'ignore' });
    const deadline = performance.now() + 15_000;
    while (
      !(await fetch(`${endpoint}/health`).then(
        (answer) => answer.ok,
        () => false,
      ))
    ) {
      if (performance.now() > deadline) throw new Error(`etcd at ${endpoint} does not answer`);
      await sleep(20);
    }
  };
  const end = async () => {
    const running = child;
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return;
    const ended = new Promise((resolve) => running.once('exit', resolve));
    running.kill('SIGKILL');
    await ended;
  };
  const call = async (path: string, body: object): Promise<number> => {
    const answer = await fetch(`${endpoint}/v3/kv/${path}`, { method: 'POST', body: JSON.stringify(body) });
    const json = (await answer.json()) as { header?: { revision?: string } };
    if (!answer.ok) throw new Error(`${path}: ${JSON.stringify(json)}`);
    return Number(json.header?.revision);
  };

  t.after(async () => {
    await end();
    rmSync(directory, { recursive: true, force: true });
  });
  process.once('exit', () => child?.kill('SIGKILL'));
  await start();
  return {
    endpoint,
    put: (key, value) => call('put', { key: base64(key), value: base64(value) }),
    delete: (key) => call('deleterange', { key: base64(key) }),
    compact: async (revision) => void (await call('compaction', { revision, physical: true })),
    async restart() {
      await end();
      await start();
    },
    async wipe(identity) {
      await end();
      generation++;
      if (identity === 'new') token = randomBytes(8).toString('hex');
      await start();
    },
  };
}
