/** What of one peer is shown to people and to agents (`clustermesh/peers/<C>`). Pure. */
import { dataPrefix, FAMILIES, type PeerStatus, rfc3339, type WireFamily } from '@clustermesh/contract';
import type { WriterStatus } from '@clustermesh/kvstore';
import type { PeerConfig } from '../ports.ts';
import { TRAFFIC_FAMILIES } from './families.ts';
import type { FamilyMirror } from './family.ts';

export type PeerState =
  | { readonly name: 'connecting' }
  | { readonly name: 'shaking-hands'; readonly refused: string | undefined }
  | {
      readonly name: 'mirroring';
      readonly id: number;
      readonly complaint: string | undefined;
    }
  | { readonly name: 'replaced'; readonly from: number; readonly to: number };

/** Two of Cilium's heartbeat intervals: a slower peer is not writing any more, although its etcd answers. */
export const SILENT_AFTER_MS = 120_000;

/** Times are monotonic milliseconds, but for `wallMs`. */
export interface PeerFactsNow {
  readonly config: PeerConfig;
  readonly state: PeerState;
  readonly isConnected: boolean;
  /** Since when it has not been; undefined: it is. */
  readonly notConnectedSince: number | undefined;
  /** Why it is not connected. */
  readonly connectionError: string;
  /** Why this cluster's own etcd does not take its data; '' when it does. */
  readonly localError: string;
  readonly lastHeartbeatAt: number | undefined;
  readonly hasHeartbeatEnded: boolean;
  readonly families: ReadonlyMap<WireFamily, FamilyMirror>;
  /** Why it is not followed, if it is not. */
  readonly halted: string | undefined;
  readonly writer: WriterStatus;
  /** The id under which its data is mirrored; 0: none is known. */
  readonly knownId: number;
  readonly nowMs: number;
  readonly wallMs: number;
}

/** The first of all problems that is worth acting on. */
function problemOf(facts: PeerFactsNow): string | undefined {
  const { config, state, lastHeartbeatAt, nowMs } = facts;
  const { name } = config;
  const seconds = (since: number) => `${Math.round((nowMs - since) / 1000)} s`;
  if (!facts.isConnected) {
    const since = facts.notConnectedSince === undefined ? '' : ` for ${seconds(facts.notConnectedSince)}`;
    return `not connected${since}: ${facts.connectionError}`;
  }
  if (state.name === 'shaking-hands' && state.refused !== undefined) return state.refused;
  if (state.name === 'mirroring' && state.complaint !== undefined) return state.complaint;
  if (state.name === 'replaced')
    return `cluster ${name} changed its id from ${state.from} to ${state.to}; its data is being drained`;
  if (config.draining === true)
    return `${name} is being drained: its services are not used here; clustermesh connect takes it back, disconnect ends it`;
  if (facts.halted !== undefined) return `${facts.halted}: not followed any further, what is here stays`;
  if (facts.localError !== '') return facts.localError;
  const [refused] = facts.writer.errors;
  if (refused !== undefined)
    return `this cluster's etcd refuses ${facts.writer.errors.length} of its objects, as ${refused.key}: ${refused.reason}`;
  const { lastError, pending } = facts.writer;
  if (lastError !== undefined && pending > 0) return `${pending} of its objects wait to be written here: ${lastError}`;
  if (lastHeartbeatAt === undefined) return 'its etcd answers, but there is no heartbeat: is its apiserver running?';
  if (facts.hasHeartbeatEnded || nowMs - lastHeartbeatAt > SILENT_AFTER_MS)
    return `its etcd answers, but its heartbeat has been silent for ${seconds(lastHeartbeatAt)}: is its apiserver running?`;
  return undefined;
}

function familyStatus({ config, writer }: PeerFactsNow, family: WireFamily, mirror: FamilyMirror | undefined) {
  const reason = mirror?.lastQuarantineReason();
  return {
    synced: mirror?.synced() ?? false,
    count: mirror?.count() ?? 0,
    revision: writer.lastRevision.get(dataPrefix(config.name, family, 'cache')) ?? 0,
    quarantined: mirror?.quarantined() ?? 0,
    ...(reason === undefined ? {} : { lastQuarantineReason: reason }),
  };
}

function familyStatuses(facts: PeerFactsNow): PeerStatus['families'] {
  const { state, config, writer } = facts;
  if (state.name !== 'mirroring')
    return Object.fromEntries(FAMILIES.map((family) => [family, familyStatus(facts, family, undefined)]));
  const byFamily = Object.fromEntries(
    [...facts.families].map(([family, mirror]) => [family, familyStatus(facts, family, mirror)]),
  );
  if (config.draining === true) {
    // Of what traffic follows, nothing is to be here: complete as soon as it is gone.
    const isWithdrawn = writer.pending === 0;
    for (const family of TRAFFIC_FAMILIES)
      byFamily[family] = { ...familyStatus(facts, family, undefined), synced: isWithdrawn };
  }
  return byFamily;
}

export function peerStatus(facts: PeerFactsNow): PeerStatus {
  const { config, state, lastHeartbeatAt } = facts;
  const error = problemOf(facts);
  const families = familyStatuses(facts);
  return {
    cluster: config.name,
    clusterId: state.name === 'mirroring' ? state.id : facts.knownId,
    connected: facts.isConnected,
    ready: state.name === 'mirroring' && Object.values(families).every((family) => family.synced),
    lastProofAgeMs: lastHeartbeatAt === undefined ? null : Math.round(facts.nowMs - lastHeartbeatAt),
    updatedAt: rfc3339(facts.wallMs),
    ...(error === undefined ? {} : { error }),
    families,
  };
}
