/** Traffic from inside pods: the open-loop load and the long transfer, with what came of them. */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { MeshError } from '@clustermesh/contract';
import { repoRoot } from '@clustermesh/runtime';
import type { LabClient } from './client.ts';

export interface RequestResult {
  /** Wall clock, milliseconds, of its start. */
  readonly at: number;
  readonly ms: number;
  readonly cluster?: string;
  readonly pod?: string;
  readonly error?: string;
}

export interface Load {
  /** Grows while it runs; in the order in which requests ended. */
  readonly results: readonly RequestResult[];
  /** Starts no more requests and resolves with all results, in the order of their start. */
  stop(): Promise<readonly RequestResult[]>;
  /** Resolves when the given number of requests is through. */
  readonly finished: Promise<readonly RequestResult[]>;
}

export interface LoadOptions {
  readonly intervalMs?: number;
  readonly timeoutMs?: number;
  readonly count?: number;
}

const program = (name: string) => join(repoRoot(), 'test-kind', 'programs', name);

/** The program's lines as they come; rejects with what it said on stderr when it fails. */
function follow(child: ChildProcess, what: string, onLine: (line: string) => void): Promise<number> {
  let complaint = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    complaint += chunk;
  });
  child.stdin?.on('error', () => {}); // it may end first
  const lines = createInterface({ input: child.stdout! }).on('line', onLine);
  const ended = new Promise<void>((resolve) => lines.on('close', resolve));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code, signal) => {
      void ended.then(() => {
        if (code === null || complaint !== '') {
          reject(
            new MeshError({
              code: 'internal',
              message: `${what}: ended with ${signal ?? `exit code ${code}`}: ${complaint.trim()}`,
            }),
          );
        } else resolve(code);
      });
    });
  });
}

export async function startLoad(lab: LabClient, pod: string, url: string, options: LoadOptions = {}): Promise<Load> {
  const { intervalMs = 20, timeoutMs = 1000, count } = options;
  const args = [
    '--interval',
    String(intervalMs),
    '--timeout',
    String(timeoutMs),
    ...(count === undefined ? [] : ['--count', String(count)]),
  ];
  const child = await lab.spawnInPod(pod, [process.execPath, program('load.mjs'), url, ...args], 'pipe');
  const results: RequestResult[] = [];
  const exited = follow(child, `load from ${pod} to ${url}`, (line) => results.push(JSON.parse(line) as RequestResult));
  const finished = exited.then(() => results.toSorted((a, b) => a.at - b.at));
  finished.catch(() => {}); // whoever awaits it gets the error; nobody may be there yet
  return {
    results,
    finished,
    stop() {
      child.stdin?.end();
      return finished;
    },
  };
}

/** A fixed number of requests. */
export async function requests(
  lab: LabClient,
  pod: string,
  url: string,
  count: number,
  intervalMs = 5,
): Promise<readonly RequestResult[]> {
  return (await startLoad(lab, pod, url, { count, intervalMs, timeoutMs: 3000 })).finished;
}

export function countBy(
  results: readonly RequestResult[],
  key: (result: RequestResult) => string,
): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const result of results) counts[key(result)] = (counts[key(result)] ?? 0) + 1;
  return counts;
}

export const servedBy = (result: RequestResult): string =>
  result.error === undefined ? `${result.cluster}/${result.pod}` : `error ${result.error}`;
export const servingCluster = (result: RequestResult): string =>
  result.error === undefined ? (result.cluster ?? '?') : `error ${result.error}`;

export interface TransferResult {
  readonly bytes: number;
  readonly sentBytes: number;
  /** Length and SHA-256 are those of what was sent. */
  readonly intact: boolean;
  readonly ms: number;
  readonly longestStallMs: number;
  /** Wall clock, milliseconds, of the end of the longest stall. */
  readonly stallAt: number;
  readonly servedBy?: string;
  readonly error?: string;
}

export interface Transfer {
  bytesSoFar(): number;
  /** Lets the server end the stream and resolves with what came of it. */
  finish(): Promise<TransferResult>;
}

export async function startTransfer(lab: LabClient, pod: string, url: string): Promise<Transfer> {
  const child = await lab.spawnInPod(pod, [process.execPath, program('download.mjs'), url], 'pipe');
  let progress = 0;
  let result: TransferResult | undefined;
  const exited = follow(child, `transfer from ${url} to ${pod}`, (line) => {
    const value = JSON.parse(line) as { progress: number } | TransferResult;
    if ('progress' in value) progress = value.progress;
    else result = value;
  });
  exited.catch(() => {});
  return {
    bytesSoFar: () => progress,
    async finish() {
      child.stdin?.end();
      await exited;
      if (result === undefined)
        throw new MeshError({ code: 'internal', message: `transfer from ${url} to ${pod}: ended without a result` });
      return result;
    },
  };
}
