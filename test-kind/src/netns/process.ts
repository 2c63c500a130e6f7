/**
 * One supervised process: spawned into its cgroup and network namespace, restarted when it ends by itself, left dead when it
 * was killed on purpose.
 *
 *   stopped ──start──▶ running ──ends by itself──▶ waiting ──delay──▶ running
 *      ▲                 │  ▲                         │
 *      └──────kill───────┘  └── pause / resume        └──kill──▶ stopped
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { waitFor } from '@clustermesh/runtime';
import { freezeCgroup, isPopulated, killCgroup, makeCgroup, processesOf } from './cgroup.ts';
import { inNamespace } from './exec.ts';

export interface ProcessSpec {
  /** As the lab's commands name it: `eu/etcd`, `eu/agent/n1`, `eu/pod/default/client-0`. */
  readonly name: string;
  readonly cgroup: string;
  readonly namespace: string;
  readonly command: readonly string[];
  /** The whole environment: nothing is inherited. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly logFile: string;
  /** Whether it is started again when it ends by itself with this exit code. */
  readonly restart: (exitCode: number) => boolean;
}

export type ProcessState = 'running' | 'paused' | 'waiting' | 'stopped' | 'finished';

export interface ProcessStatus {
  readonly name: string;
  readonly state: ProcessState;
  readonly pid: number | undefined;
  readonly restarts: number;
  /** How it ended last, as a phrase. */
  readonly lastExit: string | undefined;
}

/**
 * Joins the cgroup before anything else of the program runs: socket load balancing sees only sockets that were created after
 * the process joined.
 */
export function joinAndRun(cgroup: string, namespace: string, command: readonly string[]): string[] {
  const script = 'echo $$ >"$1/cgroup.procs" || exit 125; shift; exec "$@"';
  return ['/bin/sh', '-c', script, 'sh', cgroup, ...inNamespace(namespace, command)];
}

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 10_000;
/** A run at least this long counts as good: the next delay is the first again. */
const GOOD_RUN_MS = 10_000;

export class SupervisedProcess {
  readonly spec: ProcessSpec;
  readonly #onChange: () => void;
  #state: ProcessState = 'stopped';
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #restarts = 0;
  #failures = 0;
  #lastExit: string | undefined;
  #cgroup: string;

  /** `onChange` is called, synchronously, after every change of state. */
  constructor(spec: ProcessSpec, onChange: () => void) {
    this.spec = spec;
    this.#onChange = onChange;
    this.#cgroup = makeCgroup(spec.cgroup);
  }

  status(): ProcessStatus {
    return {
      name: this.spec.name,
      state: this.#state,
      pid: this.#child?.pid,
      restarts: this.#restarts,
      lastExit: this.#lastExit,
    };
  }

  get cgroupPath(): string {
    return this.#cgroup;
  }

  isAlive(): boolean {
    return this.#state === 'running' || this.#state === 'paused';
  }

  start(): void {
    if (this.isAlive()) return;
    clearTimeout(this.#timer);
    this.#spawn();
  }

  /** SIGKILL to it and all that it started; stays dead until `start`. Resolves when the kernel has ended them. */
  async kill(): Promise<void> {
    clearTimeout(this.#timer);
    this.#setState('stopped');
    killCgroup(this.#cgroup);
    await waitFor(() => !isPopulated(this.#cgroup), {
      what: `${this.spec.name} to end`,
      timeoutMs: 10_000,
      intervalMs: 5,
    });
  }

  /** SIGTERM to all of its processes, SIGKILL after the grace period; stays dead. */
  async terminate(graceMs: number): Promise<void> {
    clearTimeout(this.#timer);
    this.#setState('stopped');
    for (const pid of processesOf(this.#cgroup)) {
      try {
        process.kill(pid, 'SIGTERM');
      } catch {
        // ended by itself meanwhile
      }
    }
    await waitFor(() => !isPopulated(this.#cgroup), {
      what: `${this.spec.name} to end`,
      timeoutMs: graceMs,
      intervalMs: 10,
    }).catch(() => {});
    await this.kill();
  }

  pause(): void {
    if (!this.isAlive()) throw notPossible('pausing', this.spec.name, this.#state);
    freezeCgroup(this.#cgroup, true);
    this.#setState('paused');
  }

  resume(): void {
    if (!this.isAlive()) throw notPossible('resuming', this.spec.name, this.#state);
    freezeCgroup(this.#cgroup, false);
    this.#setState('running');
  }

  #spawn(): void {
    const { spec } = this;
    mkdirSync(dirname(spec.logFile), { recursive: true });
    const log = openSync(spec.logFile, 'a');
    const startedAt = performance.now();
    try {
      freezeCgroup(this.#cgroup, false); // it may have been killed while it was paused
      const [command, ...args] = joinAndRun(this.#cgroup, spec.namespace, spec.command);
      const child = spawn(command!, args, {
        cwd: spec.cwd,
        env: spec.env,
        stdio: ['ignore', log, log],
        // A session of its own is a share of the processors of its own where the kernel groups by session
        // (sched_autogroup): a daemon that starts takes time from nobody's pod, as with containers.
        detached: true,
      });
      this.#child = child;
      child.on('error', () => this.#ended(child, 'could not be started', 127, startedAt));
      child.on('exit', (code, signal) =>
        this.#ended(child, signal === null ? `exit code ${code}` : signal, code ?? 128, startedAt),
      );
    } finally {
      closeSync(log);
    }
    this.#setState('running');
  }

  #ended(child: ChildProcess, how: string, code: number, startedAt: number): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    this.#lastExit = how;
    // What it started ends with it, as in a container.
    if (isPopulated(this.#cgroup)) killCgroup(this.#cgroup);
    if (this.#state === 'stopped') {
      this.#onChange();
      return;
    }
    if (!this.spec.restart(code)) {
      this.#setState('finished');
      return;
    }
    this.#failures = performance.now() - startedAt >= GOOD_RUN_MS ? 0 : this.#failures + 1;
    const delayMs = Math.min(FIRST_DELAY_MS * 2 ** Math.max(0, this.#failures - 1), LONGEST_DELAY_MS);
    this.#timer = setTimeout(() => {
      this.#restarts++;
      this.#spawn();
    }, delayMs);
    this.#setState('waiting');
  }

  #setState(state: ProcessState): void {
    this.#state = state;
    this.#onChange();
  }
}

function notPossible(attempted: string, name: string, state: ProcessState): MeshError {
  return new MeshError({ code: 'conflict', message: `${attempted} ${name}: it is ${state}` });
}
