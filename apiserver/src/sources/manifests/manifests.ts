/** The manifests source: watched directory → immutable snapshot, ClusterIPs persisted before anybody sees them. */
import { readFileSync } from 'node:fs';
import { messageOf, type PolicyContext } from '@clustermesh/contract';
import { atomicWrite, type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { z } from 'zod';
import { watchedDirectory } from '../../watched-dir.ts';
import { adoptPublished, type ClusterIps, type ServiceCidrs } from './addresses.ts';
import { ManifestFiles } from './files.ts';
import { buildSnapshot, type ManifestSnapshot } from './snapshot.ts';

export interface ManifestSourceOptions {
  readonly dir: string;
  readonly lastGoodDir: string;
  readonly clusterIpsFile: string;
  readonly serviceCidrs: ServiceCidrs;
  readonly defaultGlobalNamespace: boolean;
  readonly policies: PolicyContext;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  /** After every change of the snapshot. */
  readonly onChange: () => void;
}

export interface ManifestSource {
  /** Undefined until the directory has been read once, and between `adopt` and the next reading. */
  snapshot(): ManifestSnapshot | undefined;
  /** Addresses that services of this cluster have already, by whichever replica: they keep them. Followed by `onChange`. */
  adopt(published: ReadonlyMap<string, readonly string[]>): void;
  /** Problems of the snapshot, and of reading it. */
  problems(): readonly string[];
  readonly ended: Promise<void>;
}

/** inotify may drop events; a pass over unchanged files costs one stat each. */
const RESCAN_MS = 5_000;

const addresses = z.record(z.string(), z.string());
const stateSchema = z.object({ version: z.literal(1), assigned: addresses, assignedIpv6: addresses.default({}) });
const NONE: ClusterIps = { IPv4: new Map(), IPv6: new Map() };

export function loadClusterIps(file: string): {
  readonly assigned: ClusterIps;
  readonly problem?: string;
} {
  try {
    const { assigned, assignedIpv6 } = stateSchema.parse(JSON.parse(readFileSync(file, 'utf8')));
    return { assigned: { IPv4: new Map(Object.entries(assigned)), IPv6: new Map(Object.entries(assignedIpv6)) } };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { assigned: NONE };
    return {
      assigned: NONE,
      problem: `${file} is unreadable (${messageOf(error)}); ClusterIPs are allocated anew`,
    };
  }
}

function encodeClusterIps({ IPv4, IPv6 }: ClusterIps): string {
  const sorted = (map: ReadonlyMap<string, string>) =>
    Object.fromEntries([...map].sort(([a], [b]) => (a < b ? -1 : 1)));
  const state = { version: 1, assigned: sorted(IPv4), ...(IPv6.size === 0 ? {} : { assignedIpv6: sorted(IPv6) }) };
  return `${JSON.stringify(state, null, 2)}\n`;
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
  let isAdopting = false;
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
      serviceCidrs: options.serviceCidrs,
      previousIps: clusterIps,
    });
    const assigned = encodeClusterIps(result.clusterIps);
    const before = encodeClusterIps(clusterIps);
    if (assigned !== before || isAdopting) atomicWrite(options.clusterIpsFile, assigned);
    clusterIps = result.clusterIps;
    readError = undefined;
    isCurrent = true;
    const wasAdopting = isAdopting;
    isAdopting = false;

    const { namespaces, services, slices, policies, problems, notes } = result.snapshot;
    const now = JSON.stringify([[...namespaces], [...services], [...slices], [...policies], problems, notes]);
    if (now === fingerprint && snapshot !== undefined && !wasAdopting) return;
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
    snapshot: () => (isAdopting ? undefined : snapshot),
    adopt(published) {
      const adopted = adoptPublished(clusterIps, published);
      if (encodeClusterIps(adopted) === encodeClusterIps(clusterIps)) return;
      log.info('services keep the addresses under which they are published');
      clusterIps = adopted;
      isCurrent = false;
      isAdopting = true;
      runner.trigger();
    },
    problems: () => [
      ...(readError === undefined ? [] : [readError]),
      ...(loaded.problem === undefined ? [] : [loaded.problem]),
      ...(snapshot?.problems ?? []),
    ],
    ended: runner.ended,
  };
}
