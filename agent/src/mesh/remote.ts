/**
 * One remote cluster whose etcd is read without a mirror: its connection and its handshake. What it publishes is followed by
 * `peer.ts`, once the handshake is accepted.
 *
 *   connecting ──heartbeat listed──► shaking-hands ──config accepted──► accepted
 *                                        ▲ │ asked again, 1 s … 10 s       │ config looked at again every 10 s
 *                                        └─┘                               ▼
 *                                                              accepted again under another id, or a complaint
 *
 * Nothing here withdraws a row: a cluster that cannot be reached, or is refused, keeps what it has.
 */
import {
  type ClusterConfig,
  clusterConfigKey,
  decodeClusterConfig,
  HEARTBEAT_KEY,
  type LocalClusterFacts,
  MeshError,
  messageOf,
  validatePeerConfig,
} from '@clustermesh/contract';
import { type Etcd, openEtcd, startReflector } from '@clustermesh/kvstore';
import { type Clock, type ClusterFile, type Log, startRunner } from '@clustermesh/runtime';

export interface RemoteOptions {
  readonly config: ClusterFile;
  readonly own: LocalClusterFacts;
  /** The cluster may be followed as it says. Returns why not, if it may not. Called again when its config changes. */
  readonly accept: (config: ClusterConfig, source: AcceptedSource) => string | undefined;
  /** What `status` says may have changed. */
  readonly onChange: () => void;
  readonly clock: Clock;
  readonly log: Log;
}

/** Where an accepted cluster is read. */
export interface AcceptedSource {
  readonly etcd: Etcd;
  /** When its heartbeat was received last, monotonic; undefined: never, or it is gone (its lease has ended). */
  readonly lastHeartbeatAt: () => number | undefined;
}

export interface RemoteStatus {
  readonly connected: boolean;
  readonly accepted: boolean;
  /** Why it is not connected or not accepted; also of an accepted cluster whose config went bad. */
  readonly problem: string | undefined;
  readonly quorumErrors: number;
}

export interface Remote {
  readonly config: ClusterFile;
  readonly etcd: Etcd;
  status(): RemoteStatus;
  /** The connection ends; whoever followed it must have been stopped. */
  close(): Promise<void>;
}

type State =
  | { readonly name: 'connecting' }
  | { readonly name: 'shaking-hands'; readonly refused: string | undefined }
  | { readonly name: 'accepted'; readonly text: string; readonly complaint: string | undefined };

const CHECK_MS = 10_000;
const RETRY_MS = 1_000;
/** Twice the interval in which a cluster's heart beats (wire-contract §1.1). */
const SILENT_AFTER_MS = 120_000;

export function startRemote(options: RemoteOptions): Remote {
  const { config, own, clock } = options;
  const { name } = config;
  const log = options.log.child({ peer: name });
  const stop = new AbortController();
  let state: State = { name: 'connecting' };
  let lastBeatAt: number | undefined;
  /** From when on silence is counted: the last beat, or the last time that the silence was acted on. */
  let silentSince: number | undefined;
  let quorumErrors = 0;
  let lastReason = 'not connected yet';

  function setState(next: State): void {
    const reasonOf = (s: State) =>
      s.name === 'shaking-hands' ? s.refused : s.name === 'accepted' ? s.complaint : undefined;
    const reason = reasonOf(next);
    if (next.name !== state.name) log.info({ from: state.name, to: next.name }, 'remote cluster');
    if (reason !== undefined && reason !== reasonOf(state)) log.warn({ reason }, 'handshake does not succeed');
    const isNews = next.name !== state.name || reason !== reasonOf(state);
    state = next;
    if (isNews) options.onChange();
  }

  const { endpoints, hostAliases, caFile, certFile, keyFile } = config;
  const etcd = openEtcd({ endpoints, hostAliases, caFile, certFile, keyFile, log, clock });
  const stopListening = etcd.onEvent((event) => {
    if (event.type === 'disconnected') lastReason = event.reason;
  });

  // The first thing that is read of a cluster (§1.1): listed, it is connected, even if there is none.
  const heartbeat = startReflector({
    etcd,
    prefix: HEARTBEAT_KEY,
    log,
    clock,
    signal: stop.signal,
    sink: {
      apply({ upserts, removes }) {
        if (removes.includes(HEARTBEAT_KEY)) lastBeatAt = undefined;
        if (upserts.length === 0) return;
        lastBeatAt = clock.nowMs();
        silentSince = lastBeatAt;
      },
      synced() {
        if (state.name === 'connecting') setState({ name: 'shaking-hands', refused: undefined });
        runner.trigger();
      },
    },
  });

  async function readConfig(): Promise<{ readonly text: string } | { readonly refused: string }> {
    try {
      const kv = await etcd.get(clusterConfigKey(name), { signal: stop.signal });
      if (kv === undefined) return { refused: `cluster ${name} has not published its cluster config yet` };
      return { text: kv.value.toString('utf8') };
    } catch (error) {
      // A cluster lets others read its own config only (§1.12).
      const isDenied = error instanceof MeshError && error.code === 'etcd-permission';
      const hint = isDenied ? `; is the cluster at ${endpoints.join(', ')} really called ${name}?` : '';
      return { refused: `reading the config of cluster ${name}: ${messageOf(error)}${hint}` };
    }
  }

  function judge(text: string): string | undefined {
    const decoded = decodeClusterConfig(text);
    if (!decoded.ok) return decoded.reason;
    const valid = validatePeerConfig(name, decoded.value, own);
    return valid.ok ? options.accept(valid.value, { etcd, lastHeartbeatAt: () => lastBeatAt }) : valid.reason;
  }

  async function pass(): Promise<void> {
    watchHeartbeat();
    if (!heartbeat.status().synced) return;
    const read = await readConfig();
    if (stop.signal.aborted) return;
    if ('text' in read && state.name === 'accepted' && read.text === state.text) {
      setState({ ...state, complaint: undefined });
      return;
    }
    const refused = 'text' in read ? judge(read.text) : read.refused;
    if (refused === undefined) {
      setState({ name: 'accepted', text: 'text' in read ? read.text : '', complaint: undefined });
      return;
    }
    // A cluster that is part of the mesh stays as it was; one that is not is asked again soon.
    if (state.name === 'accepted') setState({ ...state, complaint: refused });
    else setState({ name: 'shaking-hands', refused });
    if (state.name === 'shaking-hands') throw new MeshError({ code: 'conflict', message: refused, retryable: true });
  }

  /** A heart that has beaten and stopped: behind the connection there may be nobody who keeps that etcd. */
  function watchHeartbeat(): void {
    if (silentSince === undefined || clock.nowMs() - silentSince <= SILENT_AFTER_MS) return;
    quorumErrors++;
    silentSince = clock.nowMs();
    lastReason = `its heartbeat has been silent for ${SILENT_AFTER_MS / 1000} s`;
    log.warn({ reason: lastReason }, 'connecting anew');
    etcd.reconnect(lastReason);
  }

  const runner = startRunner({
    run: pass,
    minIntervalMs: 0,
    retryMs: RETRY_MS,
    maxIntervalMs: CHECK_MS,
    onError: (error, failures) => {
      if (failures === 1) log.debug({ reason: messageOf(error) }, 'asking again');
    },
    signal: stop.signal,
    clock,
  });

  return {
    config,
    etcd,
    status() {
      const connected = etcd.connected && heartbeat.status().synced;
      const ownProblem =
        state.name === 'shaking-hands' ? state.refused : state.name === 'accepted' ? state.complaint : undefined;
      return {
        connected,
        accepted: state.name === 'accepted',
        problem: connected ? ownProblem : `not connected: ${heartbeat.status().lastError ?? lastReason}`,
        quorumErrors,
      };
    },
    async close() {
      stop.abort();
      stopListening();
      await Promise.all([runner.ended, heartbeat.done]);
      await etcd.close();
    },
  };
}
