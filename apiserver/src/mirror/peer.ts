/**
 * One configured peer: its connection, its handshake, its families.
 *
 *   connecting ──heartbeat listed──► shaking-hands ──config accepted──► mirroring
 *                                       │    ▲                            │
 *                                       │    └── asked again every second │ config watched, and looked at every 10 s
 *                                       ▼                                 ▼
 *                                    (refused: why)                   replaced: the peer has another cluster id now;
 *                                                                     the supervisor drains and begins anew
 *
 * Nothing here removes mirrored data: a peer that cannot be reached, or is refused, keeps what it has.
 */
import {
  type Compression,
  canaryKey,
  clusterConfigKey,
  dataPrefix,
  HEARTBEAT_KEY,
  type MaxConnectedClusters,
  MeshError,
  messageOf,
  type PeerStatus,
  peerKey,
  WIRE_FAMILIES,
} from '@clustermesh/contract';
import { type Etcd, observedEtcd, openEtcd, startReflector, startWriter, type WriteRate } from '@clustermesh/kvstore';
import { type Clock, type Log, startRunner } from '@clustermesh/runtime';
import { countRuns, type KvstoreMetrics } from '../kvstore-metrics.ts';
import { oncePending } from '../once-pending.ts';
import type { PeerConfig, WriterView } from '../ports.ts';
import type { WriteRight } from '../write-right.ts';
import type { TakenCidr } from './addresses.ts';
import type { ClusterIds } from './cluster-ids.ts';
import { startFamilies, withoutTraffic } from './families.ts';
import { startFamilyMirror } from './family.ts';
import { watchKey } from './key-watch.ts';
import { trackPeerAddresses } from './peer-addresses.ts';
import { type PeerState, peerStatus, SILENT_AFTER_MS } from './peer-status.ts';
import type { PeerLimits } from './quota.ts';
import { type AcceptedConfig, acceptConfig } from './validate.ts';

export interface PeerOptions {
  readonly config: PeerConfig;
  readonly own: {
    readonly name: string;
    readonly id: number;
    readonly maxConnectedClusters: MaxConnectedClusters;
  };
  readonly local: Etcd;
  readonly ids: ClusterIds;
  /** Of this cluster's pods and services. */
  readonly ownCidrs: readonly TakenCidr[];
  /** All CIDRs of pods and services that are not this peer's. */
  readonly taken: () => readonly TakenCidr[];
  readonly right: WriteRight;
  readonly rate: WriteRate;
  readonly limits: PeerLimits & { readonly retryMs: number };
  readonly zstd: Compression;
  readonly metrics?: KvstoreMetrics | undefined;
  readonly log: Log;
  readonly clock: Clock;
  readonly onChange: () => void;
}

export interface PeerCounters {
  /** Connections lost, and when the last of them was. */
  readonly failures: number;
  readonly lastFailureAtWallMs: number;
  /** Objects quarantined. */
  readonly quarantined: number;
  readonly writer: WriterView;
  readonly keys: number;
  readonly bytes: number;
  /** Times that its heartbeat fell silent although its etcd answered. */
  readonly silences: number;
}

export interface Peer {
  readonly config: PeerConfig;
  status(): PeerStatus;
  /** Writes the status to this cluster's etcd, with the peer's own writer: after `close` nothing of it is written any more. */
  publish(status: PeerStatus): void;
  /** The peer's data here belongs to another cluster id: to be drained, and the peer begun anew. */
  isReplaced(): boolean;
  counters(): PeerCounters;
  /** What its objects are held against may have changed: looks now rather than at the next look. */
  refresh(): void;
  /** Keeps all mirrored data. */
  close(): Promise<void>;
}

const HANDSHAKE_RETRY_MS = 1_000;
const HANDSHAKE_CHECK_MS = 10_000;
const BACKOFF = { minMs: 100, maxMs: 2_000 };
/** One key; but it is listed without a slash, and what else begins like it is a stranger's to choose. */
const HEARTBEAT_LIMITS = { maxKeys: 16, maxBytes: 65_536, retryMs: 10_000 };
/** Every peer's copy is listed this often to find foreign changes: of many peers, that is most of what this etcd has to read. */
const AUDIT_MS = 300_000;

export function startPeer(options: PeerOptions): Peer {
  const { config, own, local, ids, clock, onChange } = options;
  const { name } = config;
  const log = options.log.child({ subsystem: 'mirror', peer: name });
  const stop = new AbortController();
  const { signal } = stop;
  let state: PeerState = { name: 'connecting' };
  let lastHeartbeatAt: number | undefined;
  /** It is under a lease, the shortest that its writer has: gone, the writer is dead or cut off from its etcd. */
  let hasHeartbeatEnded = false;
  let notConnectedSince: number | undefined = clock.nowMs();
  let lastReason = '';
  let localError = '';
  let failures = 0;
  let lastFailureAtWallMs = 0;
  let quarantined = 0;
  let silences = 0;
  let isSilent = false;

  const setState = (next: PeerState) => {
    const reasonOf = (s: PeerState) =>
      s.name === 'shaking-hands' ? s.refused : s.name === 'mirroring' ? s.complaint : undefined;
    const reason = reasonOf(next);
    if (next.name !== state.name) log.info({ from: state.name, to: next.name }, 'peer state');
    if (reason !== undefined && reason !== reasonOf(state)) log.warn({ reason }, 'handshake does not succeed');
    state = next;
    onChange();
  };

  const client = openEtcd({
    endpoints: config.endpoints,
    hostAliases: config.hostAliases,
    caFile: config.caFile,
    certFile: config.certFile,
    keyFile: config.keyFile,
    log,
    clock,
  });
  const { metrics } = options;
  const remote = metrics === undefined ? client : observedEtcd(client, metrics.observe, clock.nowMs);
  const stopListening = remote.onEvent((event) => {
    if (event.type === 'disconnected') {
      metrics?.lost('disconnected');
      noteDisconnected(event.reason);
    }
    onChange();
  });
  const noteDisconnected = (reason: string) => {
    if (notConnectedSince === undefined) {
      notConnectedSince = clock.nowMs();
      failures++;
      lastFailureAtWallMs = clock.wallMs();
    }
    lastReason = reason;
  };

  const writer = startWriter({
    etcd: local,
    owned: WIRE_FAMILIES.map((family) => dataPrefix(name, family, 'cache')),
    ...options.right,
    rate: options.rate,
    log,
    clock,
    signal,
    backoff: BACKOFF,
    auditIntervalMs: AUDIT_MS,
  });

  // The first thing that is read of a peer, and the proof of life that its writer gives (§1.1). Listed without a slash (§1.13).
  const heartbeat = startReflector({
    etcd: remote,
    prefix: HEARTBEAT_KEY,
    limits: HEARTBEAT_LIMITS,
    log,
    clock,
    signal,
    backoff: { minMs: 100, maxMs: 10_000 },
    sink: {
      apply({ upserts, removes }) {
        if (upserts.length > 0) {
          lastHeartbeatAt = clock.nowMs();
          isSilent = false;
          hasHeartbeatEnded = false;
        }
        if (removes.includes(HEARTBEAT_KEY)) hasHeartbeatEnded = true;
        onChange();
      },
      synced() {
        notConnectedSince = undefined;
        if (state.name === 'connecting') setState({ name: 'shaking-hands', refused: undefined });
        runner.trigger();
        onChange();
      },
    },
  });

  // The config is looked at every 10 s all the same: a watch is never the only carrier of a fact.
  const configWatch = watchKey({
    ...{ etcd: remote, key: clusterConfigKey(name), clock, signal },
    onChange: () => runner.trigger(),
  });

  const again = oncePending({ clock, signal, trigger: () => runner.trigger() });

  const handshake = async (): Promise<{ readonly accepted: AcceptedConfig } | { readonly refused: string }> => {
    try {
      const kv = await remote.get(clusterConfigKey(name), { signal });
      if (kv === undefined) return { refused: `cluster ${name} has not published its cluster config yet` };
      const result = acceptConfig(name, kv.value.toString('utf8'), own, config.agreed?.id);
      if (!result.ok) return { refused: result.reason };
      return { accepted: config.draining === true ? withoutTraffic(result.value) : result.value };
    } catch (error) {
      // A peer lets others read its own config only (§1.12).
      const isDenied = error instanceof MeshError && error.code === 'etcd-permission';
      const hint = isDenied ? `; is the cluster at ${config.endpoints.join(', ')} really called ${name}?` : '';
      return { refused: `reading the config of cluster ${name}: ${messageOf(error)}${hint}` };
    }
  };

  const addresses = trackPeerAddresses({
    agreed: config.agreed,
    ownCidrs: options.ownCidrs,
    taken: options.taken,
    families: () => families.current(),
  });

  /** Of its own: a handshake that is to be tried again in a second must not wait for this one. */
  const afterHalt = oncePending({ clock, signal, trigger: () => runner.trigger() });
  const families = startFamilies({
    cluster: name,
    makeFamily: (family, accepted, shared) =>
      startFamilyMirror({
        ...shared,
        family,
        peer: { cluster: name, clusterId: accepted.id, maxConnectedClusters: own.maxConnectedClusters },
        addresses: addresses.facts,
        hasCanaries: accepted.hasCanaries,
        lastHeartbeatAt: () => (hasHeartbeatEnded ? undefined : lastHeartbeatAt),
        remote,
        local,
        writer,
        zstd: options.zstd,
        log,
        clock,
        signal,
        onChange,
        onQuarantine: () => {
          quarantined++;
        },
        onObject: family === 'nodes' ? addresses.onNode : () => {},
        onMirrored: (action, seconds) => metrics?.event(`${family}/v1`, action, seconds),
        onListed: () => runner.trigger(),
      }),
    removeRows(family) {
      const rows = dataPrefix(name, family, 'cache');
      writer.delete(canaryKey(name, family, 'cache'));
      writer.replace(rows, new Map());
      writer.ready(rows);
    },
    remote,
    limits: options.limits,
    log,
    clock,
    signal,
    onHalted() {
      afterHalt(options.limits.retryMs + 1);
      onChange();
    },
  });

  const pass = async () => {
    if (!isSilent && lastHeartbeatAt !== undefined && clock.nowMs() - lastHeartbeatAt > SILENT_AFTER_MS) {
      isSilent = true;
      silences++;
      options.metrics?.lost('heartbeat');
    }
    // Also while the peer is away: what is mirrored of it already holds its id.
    await ids.seed(local, own.name, signal);
    if (!heartbeat.status().synced || state.name === 'replaced') return;
    const result = await handshake();
    if ('refused' in result) return complain(result.refused);

    const { accepted } = result;
    const heldId = ids.idOf(name);
    if (heldId !== undefined && heldId !== accepted.id) {
      log.warn({ from: heldId, to: accepted.id }, 'the peer has another cluster id: its data is drained first');
      return setState({ name: 'replaced', from: heldId, to: accepted.id });
    }
    const holder = ids.reserve(accepted.id, name);
    if (holder !== undefined)
      return complain(
        `cluster id ${accepted.id} of cluster ${name} is already used by cluster ${holder}, which stays undisturbed`,
      );

    // Before anything is withdrawn: a reader must not miss what its config still promises.
    writer.set(clusterConfigKey(name), accepted.cachedValue);
    const isChanged = await families.follow(accepted);
    await addresses.recheck();
    if (state.name !== 'mirroring' || state.complaint !== undefined || isChanged)
      setState({ name: 'mirroring', id: accepted.id, complaint: undefined });
    for (const [name, family] of families.current()) {
      await family.announce();
      // Before the nodes are known, what is at their addresses is in quarantine, and its last good version would be removed.
      if (name === 'nodes' && !family.listed()) break;
    }
    localError = '';
  };

  /** What is mirrored stays; what is not is not begun. */
  const complain = (reason: string) => {
    if (state.name === 'mirroring') setState({ ...state, complaint: reason });
    else setState({ name: 'shaking-hands', refused: reason });
    again(HANDSHAKE_RETRY_MS);
  };

  const runner = startRunner({
    run: countRuns(metrics, 'clustermesh-remote-cluster', pass),
    minIntervalMs: 0,
    retryMs: 200,
    maxIntervalMs: HANDSHAKE_CHECK_MS,
    signal,
    clock,
    onError: (error) => {
      if (signal.aborted) return;
      const message = `writing its data to this cluster's etcd: ${messageOf(error)}`;
      if (message !== localError) log.warn({ reason: message }, 'mirror waits');
      localError = message;
      onChange();
    },
  });

  runner.trigger();

  const isConnected = () => remote.connected && heartbeat.status().synced;

  return {
    config,
    refresh: runner.trigger,
    isReplaced: () => state.name === 'replaced',
    publish: (status) => writer.set(peerKey(name), JSON.stringify(status)),
    counters() {
      const { keys, bytes } = families.quota;
      return { failures, lastFailureAtWallMs, quarantined, silences, keys, bytes, writer };
    },
    status: () =>
      peerStatus({
        ...{ config, state, notConnectedSince, localError, lastHeartbeatAt, hasHeartbeatEnded },
        isConnected: isConnected(),
        connectionError: heartbeat.status().lastError ?? (lastReason || 'no answer yet'),
        families: families.current(),
        halted: families.halted(),
        writer: writer.status(),
        knownId: ids.idOf(name) ?? config.agreed?.id ?? 0,
        nowMs: clock.nowMs(),
        wallMs: clock.wallMs(),
      }),
    async close() {
      stop.abort();
      stopListening();
      await Promise.all([runner.ended, heartbeat.done, configWatch, writer.done, families.ended()]);
      await remote.close();
    },
  };
}
