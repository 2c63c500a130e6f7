/** The lab from outside: start an instance, talk to its daemon. What the `lab` command, the demonstration and the tests are made of. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { request } from 'node:http';
import { createInterface } from 'node:readline';
import { isErrorCode, MeshError, messageOf } from '@clustermesh/contract';
import { waitFor } from '@clustermesh/runtime';
import type { LabMethod, LabMethods, ObjectResult, PodStatus, ResponseLine } from './labd/api.ts';
import { bundle } from './labd/daemons.ts';
import { isOrphan, LOOKING, takeInstance, teardown } from './netns/instance.ts';
import { instancePaths } from './netns/names.ts';
import { joinAndRun } from './netns/process.ts';
import type { Topology } from './topology.ts';

export type Progress = (text: string) => void;

export class LabClient {
  readonly instance: string;
  readonly #socket: string;

  constructor(instance: string) {
    this.instance = instance;
    this.#socket = instancePaths(instance).socket;
  }

  /** One call to the lab daemon. */
  async call<K extends LabMethod>(
    method: K,
    body: LabMethods[K]['request'],
    progress: Progress = () => {},
  ): Promise<LabMethods[K]['response']> {
    if (!existsSync(this.#socket)) throw notUp(this.instance);
    return new Promise((resolve, reject) => {
      const call = request({ socketPath: this.#socket, path: `/${method}`, method: 'POST' }, (response) => {
        let done = false;
        createInterface({ input: response })
          .on('line', (text) => {
            const line = JSON.parse(text) as ResponseLine;
            if ('progress' in line) return progress(line.progress);
            done = true;
            if ('result' in line) return resolve(line.result as LabMethods[K]['response']);
            const { code, message, hint } = line.error;
            return reject(new MeshError({ code: isErrorCode(code) ? code : 'internal', message, hint }));
          })
          .on('error', () => {}) // the connection broke: "close" follows and says so
          .on('close', () => {
            if (!done)
              reject(
                new MeshError({
                  code: 'unreachable',
                  message: `calling ${method} of lab instance ${this.instance}: its daemon ended before it answered`,
                }),
              );
          });
      });
      call.on('error', (error: NodeJS.ErrnoException) => {
        const gone = error.code === 'ECONNREFUSED' || error.code === 'ENOENT';
        reject(
          gone
            ? notUp(this.instance)
            : MeshError.from(error, `calling ${method} of lab instance ${this.instance}`, 'unreachable'),
        );
      });
      call.end(JSON.stringify(body));
    });
  }

  status() {
    return this.call('status', {});
  }

  async pods(): Promise<readonly PodStatus[]> {
    return (await this.call('pods', {})).pods;
  }

  async services() {
    return (await this.call('services', {})).services;
  }

  /** Applies YAML and throws if any document was refused. */
  async apply(cluster: string, text: string, source = 'inline'): Promise<readonly ObjectResult[]> {
    const { results } = await this.call('apply', { cluster, text, source });
    const failed = results.filter((result) => result.action === 'failed');
    if (failed.length === 0) return results;
    throw new MeshError({
      code: 'invalid-manifest',
      message: `applying ${source} to ${cluster}:\n${failed.map((result) => `  ${result.object}: ${result.message}`).join('\n')}`,
    });
  }

  kill(...targets: string[]) {
    return this.call('control', { action: 'kill', targets });
  }

  start(...targets: string[]) {
    return this.call('control', { action: 'start', targets });
  }

  /** Resolves when every pod that `chosen` accepts is ready (and there is at least one). */
  async podsReady(chosen: (pod: PodStatus) => boolean = () => true, timeoutMs = 30_000): Promise<readonly PodStatus[]> {
    let waiting: readonly PodStatus[] = [];
    const check = async () => {
      const pods = (await this.pods()).filter(chosen);
      waiting = pods.filter((pod) => !pod.ready);
      return pods.length > 0 && waiting.length === 0 ? pods : undefined;
    };
    return waitFor(check, { what: 'pods to be ready', timeoutMs, intervalMs: 50 }).catch((error) => {
      const details = waiting
        .map((pod) => `  ${pod.cluster}/${pod.namespace}/${pod.name}: ${pod.phase} ${pod.reason}`)
        .join('\n');
      throw new MeshError({ code: 'timeout', message: `${messageOf(error)}; not ready:\n${details}`, cause: error });
    });
  }

  /** Runs a command inside a pod: its cgroup, its network namespace, its environment. */
  async spawnInPod(pod: string, command: readonly string[], stdio: 'inherit' | 'pipe'): Promise<ChildProcess> {
    const { cgroup, namespace, env } = await this.call('podEnvironment', { pod });
    const [program, ...args] = joinAndRun(cgroup, namespace, command);
    // With pipes nobody types into it: a session of its own, like the pod's other processes. With a terminal it stays in ours.
    return spawn(program!, args, { stdio, env: { ...process.env, ...env }, detached: stdio === 'pipe' });
  }
}

function notUp(instance: string): MeshError {
  return new MeshError({
    code: 'not-found',
    message: `reaching lab instance ${instance}: it is not up`,
    hint: `start it with: npm run lab -- ${instance === 'lab' ? '' : `--instance ${instance} `}up`,
  });
}

export interface StartOptions {
  readonly instance: string;
  readonly topology: Topology;
  /** End the instance when this process ends, however it ends. */
  readonly tied: boolean;
  readonly progress?: Progress;
  /** The instance is ours from here on: whoever interrupts this has something to take down. */
  readonly onHeld?: () => void;
}

/** Starts the lab daemon and brings the topology up. A failed start leaves nothing behind. */
export async function startLab(options: StartOptions): Promise<LabClient> {
  const { instance } = options;
  const client = new LabClient(instance);
  const holder = holderOf(instance);
  if (holder !== undefined && isOrphan(holder)) await teardown(instance);
  await startDaemon(instance, options.tied);
  options.onHeld?.();
  try {
    await client.call('up', { topology: options.topology }, options.progress);
    return client;
  } catch (error) {
    await teardown(instance);
    throw error;
  }
}

async function startDaemon(instance: string, tied: boolean): Promise<void> {
  const labd = spawn(
    process.execPath,
    [bundle('clustermesh-lab'), '--instance', instance, 'labd', ...(tied ? ['--tied'] : [])],
    {
      detached: true,
      stdio: [tied ? 'pipe' : 'ignore', 'ignore', 'pipe'],
    },
  );
  let complaint = '';
  labd.stderr?.on('data', (chunk: Buffer) => {
    complaint += chunk;
  });
  const hasEnded = () => labd.exitCode !== null || labd.signalCode !== null;
  // If the instance belongs to another daemon, that one answers: only our own child's answer counts.
  const answers = async () => hasEnded() || (await new LabClient(instance).status()).pid === labd.pid;
  await waitFor(answers, { what: `the daemon of lab instance ${instance}`, timeoutMs: 30_000, intervalMs: 20 });
  if (hasEnded()) {
    const [message = '', ...hints] = complaint
      .trim()
      .replace(/^error: /, '')
      .split('\n  hint: ');
    throw new MeshError({
      code: 'locked',
      message: message || `starting instance ${instance}: its daemon ended at once`,
      hint: hints[0],
    });
  }
  // It lives on by itself; our event loop need not wait for it.
  labd.stderr?.destroy();
  labd.unref();
  (labd.stdin as unknown as { unref?: () => void } | null)?.unref?.();
}

/** Who holds the instance, or undefined when it is free. */
export function holderOf(instance: string): string | undefined {
  if (!existsSync(instancePaths(instance).lock)) return undefined;
  const lock = takeInstance(instance, LOOKING);
  if ('heldBy' in lock) return lock.heldBy;
  lock.release();
  return undefined;
}
