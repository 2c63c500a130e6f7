/** `clustermesh preflight`: each side judges the other, before anything is changed. */
import { type ClusterFacts, type ErrorCode, MeshError, type PreflightCheck } from '@clustermesh/contract';
import { table } from '@clustermesh/runtime';
import type { Side } from './side.ts';

/** What `-o json` prints per direction. Fields are added, never renamed. */
export interface PreflightReport {
  /** The cluster that looked. */
  readonly cluster: string;
  readonly peer: string;
  readonly ok: boolean;
  readonly checks: readonly PreflightCheck[];
}

interface Heard {
  readonly facts: ClusterFacts;
  /** This process' wall clock in the middle of the call, and half of the time that it took. */
  readonly atMs: number;
  readonly errorMs: number;
}

async function hear(side: Side): Promise<Heard> {
  const before = Date.now();
  const facts = await side.call('GetFacts', {});
  const tookMs = Date.now() - before;
  return { facts, atMs: before + tookMs / 2, errorMs: Math.ceil(tookMs / 2) };
}

/** Both directions; both sides are asked at the same time. */
export async function preflight(source: Side, destination: Side): Promise<[PreflightReport, PreflightReport]> {
  const [a, b] = await Promise.all([hear(source), hear(destination)]);
  const look = async (side: Side, own: Heard, peer: Heard): Promise<PreflightReport> => {
    const { checks } = await side.call('Preflight', {
      peer: peer.facts,
      clockOffsetMs: Math.round(peer.facts.unixMs - peer.atMs - (own.facts.unixMs - own.atMs)),
      clockErrorMs: own.errorMs + peer.errorMs,
    });
    const ok = checks.every((check) => check.state !== 'failed');
    return { cluster: own.facts.cluster.name, peer: peer.facts.cluster.name, ok, checks };
  };
  return Promise.all([look(source, a, b), look(destination, b, a)]);
}

export function preflightTable(reports: readonly PreflightReport[]): string {
  const lines = table(
    ['CLUSTER', 'PEER', 'CHECK', 'RESULT', 'FOUND'],
    reports.flatMap(({ cluster, peer, checks }) =>
      checks.map((check) => [cluster, peer, check.name, check.state, check.what]),
    ),
  );
  return [...lines, ...advice(reports)].join('\n');
}

/** Why each finding matters and what to do. */
function advice(reports: readonly PreflightReport[]): string[] {
  const lines: string[] = [];
  for (const { cluster, check } of findings(reports)) {
    lines.push('', `${check.state === 'failed' ? 'failed' : 'warning'}: ${cluster}: ${check.what}`);
    lines.push(`   why: ${check.why}`, `   fix: ${check.fix}`);
  }
  return lines;
}

export function warningsOf(reports: readonly PreflightReport[]): string[] {
  return findings(reports)
    .filter(({ check }) => check.state === 'warning')
    .map(({ cluster, check }) => `warning: ${cluster}: ${check.what}; ${check.fix}`);
}

function findings(reports: readonly PreflightReport[]): { readonly cluster: string; readonly check: PreflightCheck }[] {
  return reports.flatMap(({ cluster, checks }) =>
    checks.filter((check) => check.state !== 'ok').map((check) => ({ cluster, check })),
  );
}

/** The first failed check as an error; undefined when nothing stands in the way. */
export function refusalOf(reports: readonly PreflightReport[]): MeshError | undefined {
  const failed = findings(reports).filter(({ check }) => check.state === 'failed');
  const [first] = failed;
  if (first === undefined) return undefined;
  const more = failed.length === 1 ? '' : ` (and ${failed.length - 1} more: clustermesh preflight shows all)`;
  return new MeshError({
    code: (first.check.code || 'conflict') as ErrorCode,
    message: `${first.cluster}: ${first.check.what}${more}`,
    hint: first.check.fix,
  });
}
