/** `clustermesh status`: what is missing, and how it reads. Pure. */
import { X509Certificate } from 'node:crypto';
import type { ClusterStatus, FamilyStatus, PeerInfo } from '@clustermesh/contract';
import { table } from '@clustermesh/runtime';
import { formatDuration } from './duration.ts';

/** What `-o json` and `-o yaml` print, per context. Fields are added, never renamed. */
export interface StatusReport extends Omit<ClusterStatus, 'cluster'> {
  readonly context: string;
  readonly cluster: Omit<ClusterStatus['cluster'], 'caPem'> & { readonly caFingerprint: string };
  /** Every peer is connected, synced for all families, and applied on every live node. */
  readonly ready: boolean;
  /** What is missing for that, as sentences. */
  readonly waitingFor: readonly string[];
}

export function report(context: string, status: ClusterStatus): StatusReport {
  const { caPem, ...cluster } = status.cluster;
  const waitingFor = whatIsMissing(status);
  return {
    context,
    ready: waitingFor.length === 0,
    waitingFor,
    ...status,
    cluster: { ...cluster, caFingerprint: fingerprint(caPem) },
  };
}

function fingerprint(pem: string): string {
  return pem === '' ? '' : new X509Certificate(pem).fingerprint256.replaceAll(':', '').toLowerCase();
}

export function whatIsMissing(status: ClusterStatus): string[] {
  const missing: string[] = [];
  const alive = status.nodes.filter((node) => node.alive).length;
  if (!status.etcdConnected)
    missing.push(
      `etcd of ${status.cluster.name} is not connected${status.etcdError === '' ? '' : ` (${status.etcdError})`}`,
    );
  if (alive === 0 && status.nodes.length > 0) missing.push('no agent of this cluster is alive');
  for (const peer of status.peers) {
    const why = missingOfPeer(peer, alive);
    if (why !== undefined) missing.push(`${peer.name}: ${why}`);
  }
  return missing;
}

/** Why a peer's data is not on every live node yet; undefined when it is. */
export function missingOfPeer(peer: PeerInfo, alive: number): string | undefined {
  if (!peer.connected) return `not connected${peer.error === '' ? '' : ` (${peer.error})`}`;
  const syncing = peer.families.filter((family) => !family.synced).map((family) => family.family);
  if (!peer.ready || syncing.length > 0) {
    return `not synced${syncing.length === 0 ? '' : `: ${syncing.join(', ')}`}${peer.error === '' ? '' : ` (${peer.error})`}`;
  }
  if (peer.nodesApplied < alive) {
    const behind = peer.families
      .filter((family) => family.nodesApplied < alive)
      .map((family) => `${family.family} ${family.nodesApplied}/${alive}`);
    return `applied on ${peer.nodesApplied} of ${alive} nodes${behind.length === 0 ? '' : ` (${behind.join(', ')})`}`;
  }
  return undefined;
}

/** Columns of families that are always shown; a peer may have more. */
const USUAL_FAMILIES = ['nodes', 'services', 'identities', 'ip'];

export function statusTable(status: ClusterStatus): string {
  const { cluster } = status;
  const alive = status.nodes.filter((node) => node.alive);
  const dead = status.nodes.filter((node) => !node.alive).map((node) => node.name);
  const ready = status.peers.filter((peer) => peer.ready && peer.connected).length;
  const lines = [
    `cluster ${cluster.name} (id ${cluster.id}${cluster.region === '' ? '' : `, ${cluster.region}`}), apiserver ${cluster.version}`,
    `  etcd    ${status.etcdConnected ? 'connected' : `not connected: ${status.etcdError || 'no answer yet'}`}`,
    `  redis   ${status.redisConnected ? 'connected' : 'unreachable: operations wait, traffic does not need it'}`,
    `  nodes   ${alive.length}/${status.nodes.length} alive${dead.length === 0 ? '' : `, no sign of ${dead.join(', ')}`}`,
    `  own     ${status.localServices} services (${status.globalServices} global), ${status.localEndpoints} endpoints`,
    `  mesh    ${status.meshDisabled ? 'disabled: connects with nobody' : `${ready}/${status.peers.length} remote clusters ready`}`,
  ];
  if (status.peers.length > 0) lines.push('', ...peerTable(status));
  const notes = notesOf(status);
  if (notes.length > 0) lines.push('', ...notes);
  return lines.join('\n');
}

export function peerTable(status: ClusterStatus): string[] {
  const alive = status.nodes.filter((node) => node.alive).length;
  const names = status.peers.flatMap((peer) => peer.families.map((family) => family.family));
  const families = [...USUAL_FAMILIES, ...new Set(names.filter((name) => !USUAL_FAMILIES.includes(name)))];
  return table(
    ['PEER', 'ID', 'STATE', 'LAST SEEN', ...families.map((family) => family.toUpperCase()), 'APPLIED'],
    status.peers.map((peer) => [
      peer.name,
      peer.id === 0 ? '-' : String(peer.id),
      stateOf(peer),
      peer.lastProofAgeMs < 0 ? 'never' : `${formatDuration(peer.lastProofAgeMs)} ago`,
      ...families.map((name) => familyCell(peer.families.find((family) => family.family === name))),
      `${peer.nodesApplied}/${alive} nodes`,
    ]),
  );
}

function stateOf(peer: PeerInfo): string {
  if (!peer.connected) return 'disconnected';
  return peer.ready ? 'ready' : 'syncing';
}

function familyCell(family: FamilyStatus | undefined): string {
  if (family === undefined) return '-';
  return family.synced ? String(family.count) : `${family.count} (syncing)`;
}

function notesOf(status: ClusterStatus): string[] {
  const notes: string[] = [];
  for (const peer of status.peers) {
    if (peer.error !== '') notes.push(`! ${peer.name}: ${peer.error}`);
    for (const family of peer.families) {
      if (family.quarantined > 0)
        notes.push(
          `! ${peer.name}: ${family.quarantined} of ${family.family} refused, the last: ${family.lastQuarantineReason}`,
        );
    }
  }
  for (const node of status.nodes) for (const problem of node.problems) notes.push(`! node ${node.name}: ${problem}`);
  for (const problem of status.problems) notes.push(`! ${problem}`);
  return notes;
}
