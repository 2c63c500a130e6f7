/**
 * The mirror (what Cilium calls KVStoreMesh): the peers that the config directory names are mirrored into this cluster's etcd, and
 * what belongs to no such peer any more is drained. Level-triggered: every pass compares the directory, the running peers, and
 * what lies in the local etcd.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import {
  type Compression,
  clusterNameProblem,
  FAMILIES,
  type MaxConnectedClusters,
  messageOf,
  type PeerStatus,
  rfc3339,
} from '@clustermesh/contract';
import type { Etcd, WriteRate } from '@clustermesh/kvstore';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { countRuns, type KvstoreMetrics } from '../kvstore-metrics.ts';
import { oncePending } from '../once-pending.ts';
import type { AgentView, MirrorView, PeerConfig, PeerDirectory } from '../ports.ts';
import { watchedDirectory } from '../watched-dir.ts';
import type { WriteRight } from '../write-right.ts';
import { describeTaken, type TakenCidr, takenCidr } from './addresses.ts';
import { ClusterIds } from './cluster-ids.ts';
import { drainPeer, findMirrored } from './drain.ts';
import { type Peer, startPeer } from './peer.ts';
import type { PeerLimits } from './quota.ts';
import { startStatusLoop } from './status-loop.ts';

export interface MirrorOptions {
  readonly own: {
    readonly name: string;
    readonly id: number;
    readonly maxConnectedClusters: MaxConnectedClusters;
    readonly podCIDR: string;
    readonly podCIDRv6: string;
    readonly serviceCIDR: string;
    readonly serviceCIDRv6?: string | undefined;
  };
  readonly local: Etcd;
  readonly directory: PeerDirectory;
  readonly peersDir: string;
  readonly agents: AgentView & { synced(): boolean };
  readonly right: WriteRight;
  readonly rate: WriteRate;
  readonly limits: PeerLimits & { readonly retryMs: number };
  readonly zstd: Compression;
  readonly metrics?: KvstoreMetrics | undefined;
  readonly timers: { readonly peerStatusMs: number; readonly drainWaitMs: number; readonly foreignDrainWaitMs: number };
  /** Whether others than our agents read what is mirrored here. */
  readonly foreignReaders: boolean;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

export interface Mirror extends MirrorView {
  problems(): readonly string[];
  /** Milliseconds from the start to the first time that every peer was mirrored. */
  tookMs(): number | undefined;
  counters(): ReadonlyMap<string, ReturnType<Peer['counters']>>;
  readonly ended: Promise<void>;
}

interface Drain {
  step: string;
  readonly clusterId: number;
  readonly done: Promise<void>;
}

const RESCAN_MS = 5_000;
/** A file that is gone for less long is being replaced. */
const GONE_AFTER_MS = 300;

export function startMirror(options: MirrorOptions): Mirror {
  const { own, local, signal } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'mirror' });
  const ids = new ClusterIds();
  const running = new Map<string, Peer>();
  const draining = new Map<string, Drain>();
  const goneSince = new Map<string, number>();
  /** Configured peers that cannot even be tried, with the reason. */
  const unusable = new Map<string, string>();
  /** Files that are no configuration of a peer, with the reason. */
  let malformed: ReadonlyMap<string, string> = new Map();
  const ownCidrs = [
    ...[own.podCIDR, own.podCIDRv6].flatMap((text) => takenCidr(text, 'this cluster')),
    ...[own.serviceCIDR, own.serviceCIDRv6 ?? ''].flatMap((text) => takenCidr(text, "this cluster's services")),
  ];
  let agreedCidrs: readonly (TakenCidr & { readonly cluster: string })[] = [];
  let problems: readonly string[] = [];
  /** Why the directory cannot be read; all that runs goes on meanwhile. */
  let readProblem: string | undefined;
  const startedAt = clock.nowMs();
  let tookMs: number | undefined;
  let hasPassed = false;

  const onChange = () => statusLoop.trigger();
  const noteBootstrap = () => {
    if (tookMs !== undefined || !hasPassed || unusable.size > 0) return;
    if ([...running.values()].every((peer) => peer.status().ready)) tookMs = clock.nowMs() - startedAt;
  };
  const { right, rate, limits, zstd, metrics } = options;
  const shared = { own, local, ids, right, rate, limits, zstd, metrics, clock, onChange };
  const again = oncePending({ clock, signal, trigger: () => runner.trigger() });

  /** One peer's unusable file must not keep the others from being mirrored. */
  const start = (config: PeerConfig) => {
    try {
      const taken = () => [...ownCidrs, ...agreedCidrs.filter((agreed) => agreed.cluster !== config.name)];
      const peer = startPeer({ ...shared, config, ownCidrs, taken, log: options.log });
      running.set(config.name, peer);
      unusable.delete(config.name);
    } catch (error) {
      const reason = messageOf(error);
      if (unusable.get(config.name) !== reason) log.error({ peer: config.name, reason }, 'peer file is not usable');
      unusable.set(config.name, reason);
    }
    onChange();
  };

  /** `closing`: the end of the peer that has written the data so far. From this call on, the cluster counts as draining. */
  const startDrain = (cluster: string, closing: Promise<void> = Promise.resolve()) => {
    const drain: Drain = { step: 'beginning', clusterId: ids.idOf(cluster) ?? 0, done: Promise.resolve() };
    const finished = new AbortController();
    const drainRunner = startRunner({
      run: async () => {
        await closing;
        await drainPeer({
          cluster,
          local,
          right,
          agents: () => options.agents.agents(),
          waitMs: options.timers.drainWaitMs,
          foreignWaitMs: options.foreignReaders ? options.timers.foreignDrainWaitMs : 0,
          status: () => JSON.stringify(drainingStatus(cluster, drain, clock.wallMs())),
          clock,
          log,
          signal,
          onStep: (step) => {
            if (drain.step === step) return;
            drain.step = step;
            onChange();
          },
        });
        ids.release(cluster);
        draining.delete(cluster);
        finished.abort();
        onChange();
        runner.trigger();
      },
      minIntervalMs: 0,
      retryMs: 200,
      maxIntervalMs: 2_000,
      signal: AbortSignal.any([signal, finished.signal]),
      clock,
      onError: (error, failures) => {
        if (failures === 1 && !signal.aborted) log.warn({ cluster, reason: messageOf(error) }, 'drain waits');
        drain.step = `waiting for this cluster's etcd (${messageOf(error)})`;
      },
    });
    draining.set(cluster, Object.assign(drain, { done: Promise.all([closing, drainRunner.ended]).then(() => {}) }));
    drainRunner.trigger();
    onChange();
  };

  const fileOf = (cluster: string) => join(options.peersDir, cluster);
  /** Present in the directory, however malformed: only an absent file means that the peer was removed. */
  const hasFile = (cluster: string) => existsSync(fileOf(cluster));

  /** True once a peer's file has been gone for long enough to believe it. */
  const isGone = (cluster: string): boolean => {
    if (hasFile(cluster)) {
      goneSince.delete(cluster);
      return false;
    }
    const since = goneSince.get(cluster) ?? clock.nowMs();
    goneSince.set(cluster, since);
    const rest = since + GONE_AFTER_MS - clock.nowMs();
    if (rest <= 0) return true;
    again(rest + 1);
    return false;
  };

  const closeAndDrain = (cluster: string, peer: Peer) => {
    const closing = peer
      .close()
      .catch((error) => log.error({ cluster, reason: messageOf(error) }, 'peer not closed cleanly'));
    startDrain(cluster, closing);
    running.delete(cluster);
  };

  const readDirectory = async () => {
    try {
      directoryWatch.arm();
      const configs = await options.directory.list();
      readProblem = undefined;
      malformed = options.directory.unusable();
      return configs;
    } catch (error) {
      readProblem = `reading the peers in ${options.peersDir}: ${messageOf(error)}`;
      throw error;
    }
  };

  const pass = async () => {
    const configs = new Map(
      (await readDirectory()).filter((peer) => peer.name !== own.name).map((peer) => [peer.name, peer]),
    );
    // A running peer whose file is malformed now is held to its last good one.
    const inForce = new Map([...[...running].map(([name, peer]) => [name, peer.config] as const), ...configs]);
    const before = agreedCidrs.map(describeTaken).join();
    agreedCidrs = [...inForce.values()].flatMap(({ name, agreed }) =>
      [agreed?.podCidr ?? '', agreed?.podCidrV6 ?? '']
        .flatMap((text) => takenCidr(text, `cluster ${name}`))
        .map((range) => ({ ...range, cluster: name })),
    );
    if (agreedCidrs.map(describeTaken).join() !== before) for (const peer of running.values()) peer.refresh();
    for (const name of [...unusable.keys()]) if (!configs.has(name)) unusable.delete(name);
    for (const [name, reason] of malformed)
      if (!running.has(name) && clusterNameProblem(name) === undefined) unusable.set(name, reason);

    for (const [name, peer] of [...running]) {
      const config = configs.get(name);
      if (peer.isReplaced()) closeAndDrain(name, peer);
      else if (config === undefined) {
        if (isGone(name)) closeAndDrain(name, peer);
      } else if (JSON.stringify(config) !== JSON.stringify(peer.config)) {
        log.info({ peer: name }, 'peer file changed: connecting anew');
        // It is shown until its successor is: whoever waits for the end of a drain must not take the gap for it.
        await peer.close();
        running.delete(name);
      }
    }
    for (const [name, config] of configs) {
      goneSince.delete(name);
      if (!running.has(name) && !draining.has(name)) start(config);
    }
    const kept = [...running.keys()].filter((name) => !configs.has(name) && hasFile(name));
    const reasonOf = (name: string) => malformed.get(name) ?? 'it says no endpoints';
    problems = [
      ...kept.map(
        (name) => `peer file ${fileOf(name)} is malformed (${reasonOf(name)}); the last good version stays in force`,
      ),
      ...[...new Map([...malformed, ...unusable])]
        .filter(([name]) => !kept.includes(name))
        .map(([name, reason]) => `peer file ${fileOf(name)} is not usable: ${reason}`),
    ];
    hasPassed = true;
    noteBootstrap();
    await drainLeftovers(configs);
  };

  /** Of peers that were removed while this process was not running, or whose drain it did not finish. */
  const drainLeftovers = async (configs: ReadonlyMap<string, PeerConfig>) => {
    // Whether agents have let go can be told only once they are known.
    if (!options.agents.synced()) return again(200);
    await ids.seed(local, own.name, signal);
    for (const cluster of await findMirrored(local, own.name, signal)) {
      if (configs.has(cluster) || running.has(cluster) || draining.has(cluster) || !isGone(cluster)) continue;
      log.info({ cluster }, 'mirrored data of a cluster that is no peer any more: draining');
      startDrain(cluster);
    }
  };

  const statuses = (): readonly PeerStatus[] => [
    ...[...running.values()].map((peer) => peer.status()),
    ...[...unusable].map(([cluster, reason]) => absentStatus(cluster, ids.idOf(cluster) ?? 0, reason, clock.wallMs())),
    ...[...draining].map(([cluster, drain]) => drainingStatus(cluster, drain, clock.wallMs())),
  ];

  const statusLoop = startStatusLoop({
    peers: () => running.values(),
    afterPass: noteBootstrap,
    intervalMs: options.timers.peerStatusMs,
    log,
    clock,
    signal,
  });
  const runner = startRunner({
    run: countRuns(metrics, 'mirror', pass),
    minIntervalMs: 50,
    retryMs: 200,
    maxIntervalMs: RESCAN_MS,
    signal,
    clock,
    onError: (error, failures) => {
      if (failures === 1 && !signal.aborted) log.warn({ reason: messageOf(error) }, 'mirror waits');
    },
  });
  const directoryWatch = watchedDirectory(options.peersDir, runner.trigger, signal);
  runner.trigger();

  const end = async () => {
    await runner.ended;
    await Promise.all([
      statusLoop.ended,
      ...[...running.values()].map((peer) => peer.close()),
      ...[...draining.values()].map((drain) => drain.done),
    ]);
  };

  return {
    peers: statuses,
    refresh: runner.trigger,
    problems: () => (readProblem === undefined ? problems : [readProblem, ...problems]),
    tookMs: () => tookMs,
    counters: () => new Map([...running].map(([name, peer]) => [name, peer.counters()])),
    ended: end(),
  };
}

function drainingStatus(cluster: string, drain: Drain, wallMs: number): PeerStatus {
  return absentStatus(cluster, drain.clusterId, `removed; draining: ${drain.step}`, wallMs);
}

/** Of a cluster that is not being mirrored. */
function absentStatus(cluster: string, clusterId: number, error: string, wallMs: number): PeerStatus {
  const family = { synced: false, count: 0, revision: 0, quarantined: 0 };
  return {
    ...{ cluster, clusterId, error },
    connected: false,
    ready: false,
    lastProofAgeMs: null,
    updatedAt: rfc3339(wallMs),
    families: Object.fromEntries(FAMILIES.map((name) => [name, family])),
  };
}
