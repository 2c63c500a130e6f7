/** What is left of a demonstration: the closing table, the commands to try, and the line of JSON for machines. */
import { release } from 'node:os';
import { version } from '@clustermesh/runtime';
import { table } from '../cli/output.ts';
import { capture } from '../netns/exec.ts';
import type { Topology } from '../topology.ts';
import { type StepResult, seconds } from './display.ts';
import type { FailoverFigures, RestartFigures } from './steps.ts';

export interface Report {
  readonly ok: boolean;
  readonly clusters: readonly {
    readonly name: string;
    readonly id: number;
    readonly region: string;
    readonly nodes: readonly string[];
  }[];
  readonly steps: readonly StepResult[];
  readonly failover: FailoverFigures | null;
  readonly restart: RestartFigures | null;
  readonly versions: Readonly<Record<string, string>>;
}

export function describeClusters(topology: Topology): Report['clusters'] {
  return topology.clusters.map(({ name, id, region, nodes }) => ({
    name,
    id,
    region,
    nodes: nodes.map((node) => node.name),
  }));
}

async function firstMatch(command: string, args: readonly string[], pattern: RegExp): Promise<string> {
  const output = await capture(command, args).catch(() => undefined);
  return pattern.exec(output?.stdout ?? '')?.[1] ?? 'unknown';
}

export async function versions(): Promise<Record<string, string>> {
  const [etcd, redis] = await Promise.all([
    firstMatch('etcd', ['--version'], /etcd Version: (\S+)/),
    firstMatch('redis-server', ['--version'], /v=(\S+)/),
  ]);
  return { clustermesh: version(), node: process.versions.node, kernel: release(), etcd, redis };
}

export function closingTable(report: Report): string {
  const rows = report.steps.flatMap((step) => {
    const [first = '', ...more] = step.detail.split('\n');
    return [[step.ok ? 'ok' : 'FAILED', step.name, seconds(step.ms), first], ...more.map((line) => ['', '', '', line])];
  });
  const { failover, restart } = report;
  const figures = [
    ...(failover === null
      ? []
      : [
          ['requests during the failover', String(failover.requests)],
          ['of these failed', String(failover.failed)],
          ['last failure started, after the kill', `${failover.lastFailureMs} ms`],
          ['recovered, after the kill', `${failover.recoveredMs} ms`],
        ]),
    ...(restart === null
      ? []
      : [
          ['bytes lost in the agent restart', String(restart.bytesLost)],
          ['longest stall in the agent restart', `${restart.throughputDipMs} ms`],
        ]),
  ];
  return `${table(['', 'STEP', 'TIME', 'WHAT WAS SHOWN'], rows)}\n${figures.length === 0 ? '' : table(['FIGURE', 'VALUE'], figures)}`;
}

export function commandsToTry(instance: string): string {
  const lab = `npm run lab -- --instance ${instance}`;
  return `The lab stays up. In another terminal:

  ${lab} status
  ${lab} services
  ${lab} exec us/default/client-0 -- curl -s http://10.97.0.10/
  ${lab} kill 'us/pod/default/shop-*'          (then curl again: region eu answers)
  ${lab} start 'us/pod/default/shop-*'
  ${lab} map us/n1 ipcache
  ${lab} etcdctl eu --as remote -- get --prefix --keys-only cilium/state/
  npm run clustermesh -- status --context ${instance}/us

Ctrl-C ends it and leaves nothing behind.`;
}
