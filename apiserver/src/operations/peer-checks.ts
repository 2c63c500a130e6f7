/** Who may become a peer: pure checks, made before anything is changed, each refusal naming both sides of the conflict. */
import {
  type ClusterInfo,
  clusterIdProblem,
  clusterNameProblem,
  ipv4RangesOverlap,
  type MaxConnectedClusters,
  MeshError,
} from '@clustermesh/contract';

export interface OwnCluster {
  readonly name: string;
  readonly id: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly podCidr: string;
}

/** A peer that is configured already. Id 0: not known (a file that was not written by us, never connected so far). */
export interface KnownPeer {
  readonly name: string;
  readonly id: number;
  readonly podCidr: string;
  /** Its CA as PEM; '' when it cannot be read. */
  readonly caPem: string;
}

/** Throws the first reason why `peer` must not be connected. Connecting the same peer again is fine. */
export function checkPeer(own: OwnCluster, peer: ClusterInfo, known: readonly KnownPeer[]): void {
  const attempted = `connecting cluster ${own.name} (id ${own.id}) with cluster ${peer.name || '(unnamed)'} (id ${peer.id})`;
  const refuse = (code: 'conflict' | 'invalid-argument', why: string, hint: string) =>
    new MeshError({ code, message: `${attempted}: ${why}`, hint });

  const invalid = clusterNameProblem(peer.name) ?? clusterIdProblem(peer.id, own.maxConnectedClusters);
  if (peer.name === own.name) {
    throw refuse(
      'conflict',
      `both clusters are named ${own.name}`,
      'cluster names must be unique in a mesh: rename one of them, or name two different contexts',
    );
  }
  if (peer.maxConnectedClusters !== own.maxConnectedClusters) {
    throw refuse(
      'conflict',
      `${own.name} has maxConnectedClusters ${own.maxConnectedClusters}, ${peer.name} has ${peer.maxConnectedClusters}`,
      'all clusters of a mesh must agree on maxConnectedClusters, because it decides how identities are numbered',
    );
  }
  if (invalid !== undefined)
    throw refuse('invalid-argument', invalid, `correct the configuration of ${peer.name || 'the peer'}`);
  if (peer.id === own.id) {
    throw refuse(
      'conflict',
      `both clusters have cluster id ${own.id}`,
      'cluster ids must be unique in a mesh: give one of them another id',
    );
  }
  if (peer.endpoints.length === 0) {
    throw refuse(
      'invalid-argument',
      `${peer.name} advertises no etcd endpoint`,
      `set advertise.endpoints in the configuration of ${peer.name}'s apiserver`,
    );
  }
  if (ipv4RangesOverlap(own.podCidr, peer.podCidr)) {
    throw refuse(
      'conflict',
      `the pod CIDRs ${own.podCidr} of ${own.name} and ${peer.podCidr} of ${peer.name} overlap`,
      'give the clusters disjoint pod CIDRs',
    );
  }

  for (const other of known) {
    if (other.name === peer.name) {
      if (other.id !== 0 && other.id !== peer.id) {
        throw refuse(
          'conflict',
          `a cluster ${other.name} with id ${other.id} is connected already`,
          `cluster names must be unique; if it is the same cluster, disconnect ${other.name} first`,
        );
      }
      if (other.caPem !== '' && peer.caPem !== '' && other.caPem.trim() !== peer.caPem.trim()) {
        throw refuse(
          'conflict',
          `a cluster ${other.name} with id ${peer.id} but another CA is connected already`,
          `cluster names must be unique; if ${other.name} was rebuilt, disconnect it first and connect it anew`,
        );
      }
      continue;
    }
    if (other.id === peer.id) {
      throw refuse(
        'conflict',
        `cluster id ${peer.id} is already used by the connected cluster ${other.name}`,
        'cluster ids must be unique in a mesh: give one of them another id',
      );
    }
    if (ipv4RangesOverlap(other.podCidr, peer.podCidr)) {
      throw refuse(
        'conflict',
        `the pod CIDR ${peer.podCidr} of ${peer.name} overlaps ${other.podCidr} of the connected cluster ${other.name}`,
        'give the clusters disjoint pod CIDRs',
      );
    }
  }
}
