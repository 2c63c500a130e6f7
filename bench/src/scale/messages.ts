/** What the measured processes and the one that measures them say to each other, over node's IPC channel. */
import { readFileSync } from 'node:fs';
import type { fingerprint } from './load.ts';

export interface AgentSettings {
  readonly endpoint: string;
  readonly pki: { readonly caFile: string; readonly certFile: string; readonly keyFile: string };
  readonly stateDir: string;
  readonly bpffs: string;
  readonly cgroup: string;
}

export interface Sample {
  readonly rssMb: number;
  readonly heapMb: number;
  /** Microseconds of CPU since the start. */
  readonly cpuUs: number;
  /** Most rows that waited for the kernel at one time since the last sample. */
  readonly queue: number;
  readonly rowFailures: number;
  readonly repairs: number;
  readonly disconnects: number;
  /** Milliseconds by which the event loop was late, since the last sample. */
  readonly loopMaxMs: number;
}

/** A row that the kernel has taken; `text` undefined: it is gone from it. `atMs` on the system's monotonic clock. */
export interface AppliedRow {
  readonly table: 'ipcache' | 'nodes';
  readonly key: string;
  readonly text: string | undefined;
  readonly atMs: number;
}

export type FromAgent =
  | {
      readonly type: 'bootstrapped';
      readonly ms: number;
      readonly threadMs: number;
      readonly rowsWritten: number;
      readonly peakRssMb: number;
    }
  | { readonly type: 'sample'; readonly sample: Sample }
  | { readonly type: 'applied'; readonly rows: readonly AppliedRow[] }
  | {
      readonly type: 'kernel';
      readonly ipcache: ReturnType<typeof fingerprint>;
      readonly nodes: ReturnType<typeof fingerprint>;
      readonly metrics: string;
    };

export type ToAgent =
  | { readonly type: 'follow'; readonly on: boolean }
  | { readonly type: 'report-kernel' }
  | { readonly type: 'stop' };

export interface BaselineResult {
  readonly ms: number;
  readonly threadMs: number;
  readonly keys: number;
  readonly bytes: number;
  readonly pages: number;
}

/** CLOCK_MONOTONIC: the same for all processes of a machine. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6;

const MS_PER_TICK = 10;

/** CPU that this process's JavaScript has had, without garbage collectors and other threads beside it. Of proc(5), to a tick. */
export function threadCpuMs(): number {
  const stat = readFileSync(`/proc/self/task/${process.pid}/stat`, 'latin1');
  const [user, system] = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .slice(11, 13);
  return (Number(user) + Number(system)) * MS_PER_TICK;
}
