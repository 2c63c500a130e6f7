/** The lab daemon: holds the instance's lock for its life, serves its commands on a unix socket as lines of JSON. */
import { spawn } from 'node:child_process';
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { type Log, systemClock } from '@clustermesh/runtime';
import { destination, pino, stdTimeFunctions } from 'pino';
import { cgroupMount, makeCgroup } from '../netns/cgroup.ts';
import { describeProcess, isPassing, sweep, takeInstance } from '../netns/instance.ts';
import { daemonCgroup, instancePaths } from '../netns/names.ts';
import type { LabMethod, ResponseLine } from './api.ts';
import { bundle } from './daemons.ts';
import { Lab } from './lab.ts';

export interface LabdOptions {
  readonly instance: string;
  /** The instance ends with the process at the other end of our stdin: for demonstrations and tests. */
  readonly tied: boolean;
}

const PASSING_HOLDER_MS = 15_000;

export async function runLabd(options: LabdOptions): Promise<void> {
  const { instance } = options;
  const paths = instancePaths(instance);
  const lock = await takePatiently(instance, options.tied ? `lab, tied to ${describeProcess(process.ppid)}` : 'lab');
  if ('heldBy' in lock) {
    throw new MeshError({
      code: 'locked',
      message: `starting instance ${instance}: it is in use by ${lock.heldBy}`,
      hint: `clustermesh-lab --instance ${instance} down ends it`,
    });
  }
  // Whatever is left of a run that died is ours to remove, now that the lock is ours.
  await sweep(instance);
  // From here on a teardown finds us: everything in this cgroup ends with the instance.
  writeFileSync(join(makeCgroup(daemonCgroup(instance, 'labd')), 'cgroup.procs'), String(process.pid));
  mkdirSync(paths.logs, { recursive: true });
  const log = pino(
    { name: 'labd', base: { pid: process.pid }, timestamp: stdTimeFunctions.isoTime },
    destination({ dest: join(paths.logs, 'labd.log'), sync: true }),
  );
  process.stderr.on('error', () => {}); // whoever started us may be gone
  for (const event of ['unhandledRejection', 'uncaughtException'] as const) {
    process.on(event, (error) => log.error({ err: error }, `broken invariant: ${event}`));
  }
  if (options.tied) endWithStarter(instance, log);
  const lab = new Lab({ instance, log, signal: new AbortController().signal });
  await serve(paths.socket, lab, log);
  log.info({ instance, tied: options.tied }, 'serving');
}

/** A teardown, or a look at who holds the lock, is over soon; anybody else is there to stay. */
async function takePatiently(instance: string, what: string): Promise<ReturnType<typeof takeInstance>> {
  const deadline = systemClock.nowMs() + PASSING_HOLDER_MS;
  for (;;) {
    const lock = takeInstance(instance, what);
    if (!('heldBy' in lock) || !isPassing(lock.heldBy) || systemClock.nowMs() > deadline) return lock;
    await systemClock.sleep(50);
  }
}

/** Our starter is gone, perhaps killed: have the instance removed by a process outside it, for we are part of what is to go. */
function endWithStarter(instance: string, log: Log): void {
  process.stdin.on('error', () => {});
  process.stdin.on('end', () => {
    log.info('starter is gone, taking the instance down');
    const script = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"';
    const args = [
      cgroupMount(),
      process.execPath,
      bundle('clustermesh-lab'),
      '--instance',
      instance,
      'down',
      '--of',
      String(process.pid),
    ];
    spawn('/bin/sh', ['-c', script, 'sh', ...args], { detached: true, stdio: 'ignore' }).unref();
  });
  process.stdin.resume();
}

async function serve(socket: string, lab: Lab, log: Log): Promise<void> {
  rmSync(socket, { force: true });
  const server = createServer({ requestTimeout: 0 }, (request, response) => {
    answer(lab, request, response).catch((error) => log.error({ err: error }, 'request failed'));
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(socket, resolve);
  });
  chmodSync(socket, 0o600);
}

async function answer(lab: Lab, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const send = (line: ResponseLine) => response.write(`${JSON.stringify(line)}\n`);
  try {
    const method = request.url?.slice(1) as LabMethod;
    const handler = HANDLERS.has(method)
      ? (lab[method] as (body: unknown, progress: (text: string) => void) => Promise<unknown>)
      : undefined;
    if (handler === undefined)
      throw new MeshError({ code: 'unsupported', message: `calling ${method}: the lab daemon has no such method` });
    send({
      result: await handler.call(lab, JSON.parse(Buffer.concat(chunks).toString() || '{}'), (progress) =>
        send({ progress }),
      ),
    });
  } catch (error) {
    const { code, message, hint } = MeshError.from(error, 'serving the call');
    send({ error: { code, message, hint } });
  }
  response.end();
}

const HANDLERS: ReadonlySet<LabMethod> = new Set<LabMethod>([
  'up',
  'status',
  'apply',
  'delete',
  'pods',
  'services',
  'control',
  'partition',
  'heal',
  'podEnvironment',
]);
