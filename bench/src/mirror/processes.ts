/** The processes that are measured, and what the kernel says of them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot } from '@clustermesh/runtime';

export interface Usage {
  /** Seconds of CPU, user and system. */
  readonly cpuSeconds: number;
  readonly rssMb: number;
  readonly peakRssMb: number;
}

export interface Measured {
  usage(): Usage;
  /** Rejects when the process ends by itself. */
  readonly ended: Promise<never>;
  stop(): Promise<void>;
}

/** USER_HZ, which is 100 on every Linux that Node runs on. */
const TICKS_A_SECOND = 100;

function usageOf(pid: number): Usage {
  // Fields 14 and 15; the name in field 2 may hold spaces.
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const mb = (field: string) => (Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)?.[1]) * 1024) / 1e6;
  return {
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND,
    rssMb: mb('VmRSS'),
    peakRssMb: mb('VmHWM'),
  };
}

/** A script of dist/, in a process of its own that ends with this one. */
export function startMeasured(options: {
  readonly script: string;
  readonly args: readonly string[];
  readonly nodeFlags: readonly string[];
}): Measured & { readonly child: ChildProcess } {
  const script = join(repoRoot(), 'dist', `${options.script}.mjs`);
  const command = ['--pdeathsig', 'KILL', process.execPath, ...options.nodeFlags, script, ...options.args];
  // Its log goes where progress goes; stdout is for the results.
  const child = spawn('setpriv', command, {
    stdio: ['ignore', process.stderr, process.stderr, 'ipc'],
    env: { CM_LOG_LEVEL: 'warn', ...process.env },
  });
  let isStopping = false;
  const exited = once(child, 'exit');
  const ended = exited.then(([code]) => {
    if (isStopping) return new Promise<never>(() => {});
    throw new Error(`${options.script} ended early, with status ${code}`);
  });
  ended.catch(() => {});
  return {
    child,
    ended,
    usage: () => usageOf(child.pid!),
    async stop() {
      isStopping = true;
      child.kill('SIGTERM');
      await exited;
    },
  };
}
