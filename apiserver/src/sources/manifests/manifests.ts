/** The manifests source: watched directory → immutable snapshot, ClusterIPs persisted before anybody sees them. */
import { readFileSync } from 'node:fs';
import { messageOf, type PolicyContext } from '@clustermesh/contract';
import { atomicWrite, type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { z } from 'zod';
import { watchedDirectory } from '../../watched-dir.ts';
import { ManifestFiles } from './files.ts';
import { buildSnapshot, type ManifestSnapshot } from './snapshot.ts';

export interface ManifestSourceOptions {
  readonly dir: string;
  readonly lastGoodDir: string;
  readonly clusterIpsFile: string;
  readonly serviceCidr: string;
  readonly defaultGlobalNamespace: boolean;
  readonly policies: PolicyContext;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  /** After every change of the snapshot. */
  readonly onChange: () => void;
}

export interface ManifestSource {
  /** Undefined until the directory has been read once. */
  snapshot(): ManifestSnapshot | undefined;
  /** Problems of the snapshot, and of reading it. */
  problems(): readonly string[];
  readonly ended: Promise<void>;
}

/** inotify may drop events; a pass over unchanged files costs one stat each. */
const RESCAN_MS = 5_000;

const stateSchema = z.object({ version: z.literal(1), assigned: z.record(z.string(), z.string()) });

export function loadClusterIps(file: string): {
  readonly assigned: ReadonlyMap<string, string>;
  readonly problem?: string;
} {
  try {
    return { assigned: new Map(Object.entries(stateSchema.parse(JSON.parse(readFileSync(file, 'utf8'))).assigned)) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { assigned: new Map() };
    return {
      assigned: new Map(),
      problem: `${file} is unreadable (${messageOf(error)}); ClusterIPs are allocated anew`,
    };
  }
}

function encodeClusterIps(assigned: ReadonlyMap<string, string>): string {
  const sorted = [...assigned].sort(([a], [b]) => (a < b ? -1 : 1));
  return `${JSON.stringify({ version: 1, assigned: Object.fromEntries(sorted) }, null, 2)}\n`;
}

export function startManifestSource(options: ManifestSourceOptions): ManifestSource {
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'manifests' });
  const files = new ManifestFiles(options.dir, options.lastGoodDir);
  const loaded = loadClusterIps(options.clusterIpsFile);
  if (loaded.problem !== undefined) log.error(loaded.problem);

  let clusterIps = loaded.assigned;
  let snapshot: ManifestSnapshot | undefined;
  let fingerprint = '';
  /** False from the moment a change was seen until it is in the snapshot: a failed pass is done again whole. */
  let isCurrent = false;
  let readError: string | undefined;
  const reported = new Set<string>();

  const reportNew = (current: ManifestSnapshot) => {
    for (const [level, sentences] of [
      ['warn', current.problems],
      ['info', current.notes],
    ] as const) {
      for (const sentence of sentences) if (!reported.has(sentence)) log[level](sentence);
    }
    const now = [...current.problems, ...current.notes];
    reported.clear();
    for (const sentence of now) reported.add(sentence);
  };

  const run = async () => {
    directory.arm();
    const inForce = files.read(clock.wallMs());
    if (inForce.againInMs !== undefined)
      void clock.sleep(inForce.againInMs, options.signal).then(() => runner.trigger());
    if (inForce.isUnchanged && isCurrent) {
      readError = undefined;
      return;
    }
    isCurrent = false;
    const result = buildSnapshot({
      ...inForce,
      defaultGlobalNamespace: options.defaultGlobalNamespace,
      policies: options.policies,
      serviceCidr: options.serviceCidr,
      previousIps: clusterIps,
    });
    const assigned = encodeClusterIps(result.clusterIps);
    const before = encodeClusterIps(clusterIps);
    if (assigned !== before) atomicWrite(options.clusterIpsFile, assigned);
    clusterIps = result.clusterIps;
    readError = undefined;
    isCurrent = true;

    const { namespaces, services, slices, policies, problems, notes } = result.snapshot;
    const now = JSON.stringify([[...namespaces], [...services], [...slices], [...policies], problems, notes]);
    if (now === fingerprint && snapshot !== undefined) return;
    fingerprint = now;
    snapshot = result.snapshot;
    reportNew(snapshot);
    options.onChange();
  };

  const runner = startRunner({
    run,
    minIntervalMs: 20,
    retryMs: 250,
    maxIntervalMs: RESCAN_MS,
    signal: options.signal,
    clock,
    onError: (error, failures) => {
      readError = `reading manifests in ${options.dir}: ${messageOf(error)}`;
      if (failures === 1) log.error({ err: error }, readError);
    },
  });
  const directory = watchedDirectory(options.dir, runner.trigger, options.signal);
  runner.trigger();

  return {
    snapshot: () => snapshot,
    problems: () => [
      ...(readError === undefined ? [] : [readError]),
      ...(loaded.problem === undefined ? [] : [loaded.problem]),
      ...(snapshot?.problems ?? []),
    ],
    ended: runner.ended,
  };
}
