/**
 * The only writer of `cilium/state/…`, of this cluster's own canaries and (config-keeper.ts) config, of the heartbeat, and of `clustermesh/local/…`.
 * Manifests are projected whole when they have changed, and the writers find the difference; of nodes and endpoints, which change all
 * the time, a pass projects what has changed (endpoint-projection.ts).
 */
import {
  type Compression,
  canaryKey,
  dataPrefix,
  decodeLocalService,
  HEARTBEAT_KEY,
  LOCAL_FAMILIES,
  localCanaryKey,
  localPrefix,
  type MaxConnectedClusters,
  messageOf,
  rfc3339,
  WIRE_FAMILIES,
  type WireFamily,
} from '@clustermesh/contract';
import { type Etcd, startWriter, type WriteRate, type Writer } from '@clustermesh/kvstore';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { countRuns, type KvstoreMetrics } from '../kvstore-metrics.ts';
import { oncePending } from '../once-pending.ts';
import type { WriterView } from '../ports.ts';
import type { ManifestSource } from '../sources/manifests/manifests.ts';
import { isGlobalNamespace, type ManifestSnapshot } from '../sources/manifests/snapshot.ts';
import type { NodeSource } from '../sources/nodes/nodes.ts';
import type { WriteRight } from '../write-right.ts';
import { ownClusterConfig, type SliceExport } from './cluster-config.ts';
import { keepClusterConfig } from './config-keeper.ts';
import { EndpointFamilies } from './endpoint-families.ts';
import { ENDPOINT_FAMILIES } from './endpoint-projection.ts';
import { exportEndpointSlices, SliceFrames } from './endpoint-slices.ts';
import { exportLocal } from './local.ts';
import { exportServices, fitServices } from './services.ts';
import { stampChanges } from './stamp.ts';

export interface ExporterOptions {
  readonly etcd: Etcd;
  readonly cluster: {
    readonly name: string;
    readonly id: number;
    readonly maxConnectedClusters: MaxConnectedClusters;
    readonly region: string;
  };
  readonly manifests: Pick<ManifestSource, 'snapshot' | 'adopt'>;
  readonly nodes: Pick<NodeSource, 'follow'>;
  readonly sliceExport: SliceExport;
  /** What is published hangs on leases of this length; undefined: on none. */
  readonly leaseTtlSeconds?: number | undefined;
  readonly zstd: Compression;
  readonly right: WriteRight;
  readonly rate: WriteRate;
  readonly metrics?: KvstoreMetrics | undefined;
  readonly heartbeatMs: number;
  /** How long what is not published any more stays after the config has said so. */
  readonly withdrawWaitMs: number;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

export interface Exporter {
  /** A source has changed. */
  trigger(): void;
  problems(): readonly string[];
  counts(): { readonly services: number; readonly globalServices: number; readonly endpoints: number };
  /** Services too large for one value: peers that read no slices have an old version of them, or none. */
  outgrown(): number;
  /** Families whose complete first state is in etcd. */
  synced(): ReadonlySet<WireFamily>;
  /** Times that somebody else's cluster config was put right. */
  configRepairs(): number;
  writers(): readonly WriterView[];
  readonly ended: Promise<void>;
}

/** A dead apiserver's heartbeat goes by itself; three missed beats are enough to be sure. */
const heartbeatTtlSeconds = (heartbeatMs: number) => Math.max(30, Math.ceil((3 * heartbeatMs) / 1000));
const REFUSED_SHOWN = 10;
const BACKOFF = { minMs: 100, maxMs: 2_000 };

export function startExporter(options: ExporterOptions): Exporter {
  const { cluster, etcd, signal } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'export' });
  const prefix = (family: WireFamily) => dataPrefix(cluster.name, family, 'state');
  const shared = { etcd, ...options.right, rate: options.rate, log, clock, signal, backoff: BACKOFF };
  const local = startWriter({ ...shared, owned: LOCAL_FAMILIES.map(localPrefix) });
  const { leaseTtlSeconds: ttlSeconds } = options;
  const lease = ttlSeconds === undefined ? undefined : { ttlSeconds };
  const state = startWriter({ ...shared, owned: WIRE_FAMILIES.map(prefix), lease });
  const heartbeat = startWriter({
    ...shared,
    owned: [HEARTBEAT_KEY],
    lease: { ttlSeconds: heartbeatTtlSeconds(options.heartbeatMs) },
  });

  const config = keepClusterConfig({
    etcd,
    cluster: cluster.name,
    value: ownClusterConfig(cluster, options.sliceExport),
    right: options.right,
    metrics: options.metrics,
    log,
    clock,
    signal,
  });
  const hasSlices = options.sliceExport !== 'services';
  const hasServices = options.sliceExport !== 'endpointslices-only';
  const frames = new SliceFrames(options.zstd);

  const synced = new Set<WireFamily>();
  const announced = new Set<string>();
  const withdrawn = new Set<WireFamily>();
  let hasAdopted = false;
  let leavingSince: number | undefined;
  /** Values as they are in etcd or will be: what stamps are compared with. Undefined until etcd has been read once. */
  let stamped: Map<WireFamily, Map<string, string>> | undefined;
  /** The projection of the manifests, which change less often than the nodes. */
  let projected: Projection | undefined;
  let localWritten: ManifestSnapshot | undefined;
  const takeNodes = options.nodes.follow(signal);
  const endpoints = new EndpointFamilies({ cluster, writer: state, prefix, wallMs: clock.wallMs });
  let problems: () => readonly string[] = () => [];
  /** One sentence per service that is too large for one value. */
  let tooLarge: readonly string[] = [];
  let counts = { services: 0, globalServices: 0, endpoints: 0 };

  /** The desired set is whole from here on: leftovers go, and once everything is written the canary says so. */
  const announce = (writer: Writer, owned: string, canary: string, onFlushed: () => void) => {
    if (announced.has(canary)) return;
    announced.add(canary);
    writer.ready(owned);
    writer.canary(canary, () => rfc3339(clock.wallMs()));
    writer.flush().then(onFlushed, () => {}); // rejects only when the writer has ended
  };
  const announceFamily = (family: WireFamily) =>
    announce(state, prefix(family), canaryKey(cluster.name, family, 'state'), () => {
      synced.add(family);
      runner.trigger();
    });

  const writeLocal = (manifests: ManifestSnapshot) => {
    if (localWritten === manifests) return;
    localWritten = manifests;
    for (const [family, rows] of exportLocal(manifests)) {
      local.replace(localPrefix(family), rows);
      announce(local, localPrefix(family), localCanaryKey(family), () => {});
    }
  };

  const writeServices = (rows: ReadonlyMap<string, string>, previous: Map<WireFamily, Map<string, string>>) => {
    const before = previous.get('services') ?? new Map<string, string>();
    const wallMs = clock.wallMs();
    const { values, problems: tooLarge } = fitServices(stampChanges(rows, before, wallMs), before, {
      hasSlices,
      wallMs,
    });
    previous.set('services', values);
    state.replace(prefix('services'), values);
    announceFamily('services');
    return tooLarge;
  };

  /** What this cluster does not publish (any more) has no canary: an empty family under one would say that nothing exists. */
  const withdrawFamily = (family: WireFamily) => {
    if (withdrawn.has(family)) return;
    withdrawn.add(family);
    state.replace(prefix(family), new Map());
    state.ready(prefix(family));
    state.delete(canaryKey(cluster.name, family, 'state'));
    state.flush().then(
      () => synced.add(family),
      () => {}, // rejects only when the writer has ended
    );
  };

  /**
   * Services of before, where slices alone are published now. They stay, and stay right, until whoever reads this etcd itself can have
   * learnt from the config that there is another form, and has read that.
   */
  const areServicesLeaving = (before: ReadonlyMap<string, string>): boolean => {
    if (hasServices || withdrawn.has('services') || before.size === 0) return false;
    if (!synced.has('endpointslices') || !config.isWritten()) return true;
    leavingSince ??= clock.nowMs();
    const restMs = leavingSince + options.withdrawWaitMs - clock.nowMs();
    if (restMs > 0) again(restMs + 1);
    return restMs > 0;
  };

  const pass = async () => {
    if (!hasAdopted) options.manifests.adopt(await readClusterIps(etcd, signal));
    hasAdopted = true;
    const manifests = options.manifests.snapshot();
    // Which namespaces are closed is not known before the manifests have been read: nothing leaves until then.
    if (manifests === undefined) return;
    writeLocal(manifests);
    stamped ??= await readStamped(etcd, prefix, frames, signal);
    const current = projected?.manifests === manifests ? projected : project(options, manifests);
    const isNew = current !== projected;
    // Slices first: who reads both finds the backends of a service no later than the service.
    if (!hasSlices) withdrawFamily('endpointslices');
    else if (isNew) {
      state.replace(prefix('endpointslices'), frames.values(current.slices));
      announceFamily('endpointslices');
    }
    const isLegacyThere = hasServices || areServicesLeaving(stamped.get('services') ?? new Map());
    if (!isLegacyThere) withdrawFamily('services');
    if (!isLegacyThere) tooLarge = [];
    else if (isNew) tooLarge = writeServices(current.services, stamped);
    projected = current;
    announceFamily('serviceexports');

    const nodes = takeNodes();
    endpoints.write(nodes, (namespace) => isGlobalNamespace(manifests, namespace), stamped);
    if (nodes.complete) for (const family of ENDPOINT_FAMILIES) announceFamily(family);
    problems = () => [...tooLarge, ...nodes.problems, ...endpoints.problems()];
    const { services, globalServices } = current.counts;
    counts = { services, globalServices, endpoints: endpoints.size };
  };

  /** Keys that etcd does not take, in words; the first of them are enough to see what is wrong. */
  const refused = () =>
    [local, state]
      .flatMap((writer) => writer.status().errors)
      .slice(0, REFUSED_SHOWN)
      .map(({ key, reason }) => `etcd refuses ${key}: ${reason}`);

  /** What etcd takes none of at present: it has no space, or cannot be reached. Nothing is lost by it, but peers see none of it. */
  const waiting = () => {
    const held = [local, state].map((writer) => writer.status()).filter(({ lastError }) => lastError !== undefined);
    const keys = held.reduce((sum, { pending }) => sum + pending, 0);
    return keys === 0 ? [] : [`${keys} keys wait to be written to etcd: ${held[0]?.lastError}`];
  };

  const again = oncePending({ clock, signal, trigger: () => runner.trigger() });
  const beat = async () => heartbeat.set(HEARTBEAT_KEY, rfc3339(clock.wallMs()));
  const onError = (error: unknown, failures: number) => {
    if (failures === 1 && !signal.aborted) log.warn({ reason: messageOf(error) }, 'export waits');
  };
  const runner = startRunner({
    run: countRuns(options.metrics, 'export', pass),
    minIntervalMs: 20,
    retryMs: 200,
    maxIntervalMs: 10_000,
    signal,
    clock,
    onError,
  });
  const beats = startRunner({
    run: beat,
    minIntervalMs: 0,
    retryMs: 200,
    maxIntervalMs: options.heartbeatMs,
    signal,
    clock,
    onError,
  });
  runner.trigger();
  beats.trigger();

  return {
    trigger: runner.trigger,
    problems: () => [...config.problems(), ...problems(), ...refused(), ...waiting()],
    counts: () => counts,
    outgrown: () => tooLarge.length,
    synced: () => synced,
    configRepairs: config.repairs,
    writers: () => [local, state, heartbeat],
    ended: Promise.all([runner.ended, beats.ended, config.ended, local.done, state.done, heartbeat.done]).then(
      () => {},
    ),
  };
}

interface Projection {
  readonly manifests: ManifestSnapshot;
  readonly services: ReadonlyMap<string, string>;
  readonly slices: ReadonlyMap<string, Uint8Array>;
  readonly counts: { readonly services: number; readonly globalServices: number };
}

function project({ cluster, sliceExport }: ExporterOptions, manifests: ManifestSnapshot): Projection {
  const { services, slices, sliceMeta } = manifests;
  return {
    manifests,
    services: exportServices(cluster, services.values(), slices.values()),
    slices: sliceExport === 'services' ? new Map() : exportEndpointSlices(cluster, services, slices, sliceMeta),
    counts: {
      services: services.size,
      globalServices: [...services.values()].filter((service) => service.global).length,
    },
  };
}

/** The cluster addresses under which services are published now, by a process before this one or by the replica that led before. */
async function readClusterIps(etcd: Etcd, signal: AbortSignal): Promise<Map<string, readonly string[]>> {
  const published = new Map<string, readonly string[]>();
  for (const kv of (await etcd.range(localPrefix('services'), { signal })).kvs) {
    const service = decodeLocalService(kv.value.toString('utf8'));
    if (service.ok) published.set(`${service.value.namespace}/${service.value.name}`, service.value.clusterIPs);
  }
  return published;
}

/** What a process before this one wrote: unchanged values keep their stamps. */
async function readStamped(
  etcd: Etcd,
  prefix: (family: WireFamily) => string,
  frames: SliceFrames,
  signal: AbortSignal,
): Promise<Map<WireFamily, Map<string, string>>> {
  const families = new Map<WireFamily, Map<string, string>>();
  for (const family of ['services', 'nodes', 'ip'] as const) {
    const { kvs } = await etcd.range(prefix(family), { signal });
    families.set(family, new Map(kvs.map((kv) => [kv.key, kv.value.toString('utf8')])));
  }
  for (const kv of (await etcd.range(prefix('endpointslices'), { signal })).kvs) frames.adopt(kv.key, kv.value);
  return families;
}
