/** `clustermesh preflight`: each side judges the other, before anything is changed. */
import type { ClusterFacts, MeshError, PreflightCheck } from '@clustermesh/contract';
import { checkTable, firstFailure, type Subject } from './findings.ts';
import { pathsCheck } from './paths.ts';
import type { Side } from './side.ts';
import type { Terminal } from './terminal.ts';

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
    const [judged, paths] = await Promise.all([
      side.call('Preflight', {
        peer: peer.facts,
        clockOffsetMs: Math.round(peer.facts.unixMs - peer.atMs - (own.facts.unixMs - own.atMs)),
        clockErrorMs: own.errorMs + peer.errorMs,
      }),
      pathsCheck(side, own.facts, peer.facts),
    ]);
    const checks = [...judged.checks, paths];
    const ok = checks.every((check) => check.state !== 'failed');
    return { cluster: own.facts.cluster.name, peer: peer.facts.cluster.name, ok, checks };
  };
  return Promise.all([look(source, a, b), look(destination, b, a)]);
}

const subjectsOf = (reports: readonly PreflightReport[]): Subject[] =>
  reports.map(({ cluster, peer, checks }) => ({ cells: [cluster, peer], name: cluster, checks }));

export function preflightTable(reports: readonly PreflightReport[], paint: Terminal['paint']): string {
  return checkTable(['CLUSTER', 'PEER'], subjectsOf(reports), paint);
}

export function warningsOf(reports: readonly PreflightReport[]): string[] {
  return reports.flatMap(({ cluster, checks }) =>
    checks
      .filter((check) => check.state === 'warning')
      .map((check) => `warning: ${cluster}: ${check.what}; ${check.fix}`),
  );
}

/** The first failed check as an error; undefined when nothing stands in the way. */
export function refusalOf(reports: readonly PreflightReport[]): MeshError | undefined {
  return firstFailure(subjectsOf(reports), 'clustermesh preflight shows all');
}
