/** The strict reader (strict-reader/, a program of its own), and what it said of an etcd. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { repoRoot } from '@clustermesh/runtime';
import type { TestCluster } from './control-plane.ts';

export interface Report {
  readonly config: { readonly capabilities: Readonly<Record<string, unknown>> } | null;
  readonly heartbeat: { readonly events: number };
  readonly families: Readonly<
    Record<
      string,
      {
        readonly expected: boolean;
        readonly synced: boolean;
        readonly count: number;
        readonly upserts: number;
        readonly deletes: number;
        readonly synthesisedDeletes: number;
      }
    >
  >;
  readonly violations: readonly { readonly rule: string; readonly where: string; readonly reason: string }[];
}

export interface RunningReader {
  /** How often everything was listed. */
  readonly listed: () => number;
  /** Ends the following, if it has not ended by itself. */
  end(): Promise<Report>;
  readonly ended: Promise<Report>;
}

/** Reads `cluster` out of `from`'s etcd as the user of the given name. */
export async function startReader(
  t: TestContext,
  from: TestCluster,
  as: string,
  cluster: string,
  layout: 'state' | 'cache',
  more: readonly string[] = [],
): Promise<RunningReader> {
  await from.clientAs(as); // leaves the files there
  const client = join(from.root, 'clients', as);
  const args = ['--endpoint', from.server.endpoint, '--cluster', cluster, '--layout', layout, '-o', 'json'];
  args.push(
    '--ca',
    join(from.root, 'pki', 'ca.crt'),
    '--cert',
    join(client, 'tls.crt'),
    '--key',
    join(client, 'tls.key'),
  );
  const main = join(repoRoot(), 'strict-reader', 'src', 'main.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', main, ...args, ...more], {
    cwd: repoRoot(),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  let out = '';
  let err = '';
  child.stdout.on('data', (data) => (out += data));
  child.stderr.on('data', (data) => (err += data));
  const ended = new Promise<Report>((resolve, reject) => {
    child.once('close', (code) => {
      if (out === '') return reject(new Error(`the strict reader ended with ${code}: ${err}`));
      const report: Report = JSON.parse(out);
      assert.equal(code, report.violations.length > 0 ? 1 : 0);
      resolve(report);
    });
  });
  ended.catch(() => {}); // a test that fails earlier does not wait for it
  return {
    listed: () => err.split('everything is listed').length - 1,
    ended,
    end() {
      child.kill('SIGTERM');
      return ended;
    },
  };
}

export const counts = (report: Report) =>
  Object.fromEntries(Object.entries(report.families).map(([name, family]) => [name, family.count]));
export const removals = (report: Report) =>
  Object.values(report.families).reduce((sum, family) => sum + family.deletes + family.synthesisedDeletes, 0);

export function assertAccepted(report: Report): void {
  assert.deepEqual(report.violations, []);
  for (const [name, family] of Object.entries(report.families))
    if (family.expected) assert.ok(family.synced, `${name} was read`);
}
