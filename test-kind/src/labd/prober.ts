/** Readiness of a node's pods, judged from the node's namespace by a small process of its own (programs/prober.mjs). */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type Log, repoRoot } from '@clustermesh/runtime';
import { makeCgroup } from '../netns/cgroup.ts';
import { joinAndRun } from '../netns/process.ts';

export interface ProbeTarget {
  /** Changes with every start of the pod's process, so that an answer of the previous one is never taken for this one's. */
  readonly key: string;
  readonly ip: string;
  readonly ports: readonly number[];
}

export interface ProbeResult {
  readonly key: string;
  readonly ready: boolean;
  readonly reason: string;
}

export interface Prober {
  /** The complete list; what is no longer in it is no longer probed. */
  setTargets(targets: readonly ProbeTarget[]): void;
  close(): void;
}

export interface ProberOptions {
  readonly name: string;
  readonly namespace: string;
  readonly cgroup: string;
  readonly onResult: (result: ProbeResult) => void;
  readonly log: Log;
}

const RESTART_DELAY_MS = 500;

export function startProber(options: ProberOptions): Prober {
  const cgroup = makeCgroup(options.cgroup);
  let child: ChildProcess | undefined;
  let last = '[]';
  let closed = false;

  const startChild = () => {
    if (closed) return;
    const program = join(repoRoot(), 'test-kind', 'programs', 'prober.mjs');
    const [command, ...args] = joinAndRun(cgroup, options.namespace, [process.execPath, program]);
    const started = spawn(command!, args, { stdio: ['pipe', 'pipe', 'ignore'] });
    child = started;
    started.stdin.on('error', () => {}); // its end is reported by "exit"
    started.on('error', (error) =>
      options.log.error({ err: error, prober: options.name }, 'prober could not be started'),
    );
    createInterface({ input: started.stdout }).on('line', (line) => options.onResult(JSON.parse(line) as ProbeResult));
    started.on('exit', (code, signal) => {
      if (closed) return;
      options.log.warn({ prober: options.name, code, signal }, 'prober ended, starting it again');
      setTimeout(startChild, RESTART_DELAY_MS);
    });
    started.stdin.write(`${last}\n`);
  };
  startChild();

  return {
    setTargets(targets) {
      const next = JSON.stringify(targets);
      if (next === last) return;
      last = next;
      child?.stdin?.write(`${next}\n`);
    },
    close() {
      closed = true;
      child?.kill('SIGKILL');
    },
  };
}
