/** Who may become a peer: pure checks, made before anything is changed, each refusal naming both sides of the conflict. */
import {
  type ClusterInfo,
  cidrsOverlap,
  clusterIdProblem,
  clusterNameProblem,
  type ErrorCode,
  type MaxConnectedClusters,
  MeshError,
  type PreflightCheck,
  parseCidr,
} from '@clustermesh/contract';
import { type Family, podRangeProblem } from '../pod-ranges.ts';
import { type Finding, passed, refused } from './check.ts';

export interface OwnCluster {
  readonly name: string;
  readonly id: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly podCidr: string;
  /** '' when its pods have no IPv6. */
  readonly podCidrV6: string;
  /** Of either family. */
  readonly serviceCidrs: readonly string[];
}

/** A peer that is configured already. Id 0: not known (a file that was not written by us, never connected so far). */
export interface KnownPeer {
  readonly name: string;
  readonly id: number;
  readonly podCidr: string;
  readonly podCidrV6: string;
  /** Its CA as PEM; '' when it cannot be read. */
  readonly caPem: string;
}

/** Throws the first reason why `peer` must not be connected. Connecting the same peer again is fine. */
export function checkPeer(own: OwnCluster, peer: ClusterInfo, known: readonly KnownPeer[]): void {
  const failed = agreementChecks(own, peer, known).find((check) => check.state === 'failed');
  if (failed === undefined) return;
  throw new MeshError({
    code: failed.code as ErrorCode,
    message: `connecting cluster ${own.name} (id ${own.id}) with cluster ${peer.name || '(unnamed)'} (id ${peer.id}): ${failed.what}`,
    hint: failed.fix,
  });
}

/** What two clusters must agree on, one check per subject. */
export function agreementChecks(own: OwnCluster, peer: ClusterInfo, known: readonly KnownPeer[]): PreflightCheck[] {
  const check = (name: string, good: string, finding: Finding | undefined) =>
    finding === undefined ? passed(name, good) : refused(name, finding);
  return [
    check('name', `${own.name} and ${peer.name} are two names`, nameFinding(own, peer)),
    check(
      'max-connected-clusters',
      `both have maxConnectedClusters ${own.maxConnectedClusters}`,
      maximumFinding(own, peer),
    ),
    check('id', `ids ${own.id} and ${peer.id} are two ids, in range and free`, idFinding(own, peer, known)),
    check('identity', `no other cluster is connected as ${peer.name}`, identityFinding(peer, known)),
    check(
      'endpoints',
      `${peer.name} advertises ${peer.endpoints.join(', ')}`,
      peer.endpoints.length > 0
        ? undefined
        : {
            code: 'invalid-argument',
            what: `${peer.name} advertises no etcd endpoint`,
            why: `this cluster reads the services of ${peer.name} from that etcd`,
            fix: `set advertise.endpoints in the configuration of ${peer.name}'s apiserver`,
          },
    ),
    check(
      'pod-cidr',
      `${[peer.podCidr, peer.podCidrV6].filter(Boolean).join(' and ') || 'no pod CIDR'} of ${peer.name} overlaps no connected cluster and no service CIDR of ${own.name}`,
      podCidrFinding(own, peer, known),
    ),
  ];
}

function nameFinding(own: OwnCluster, peer: ClusterInfo): Finding | undefined {
  const why = 'data, users and certificates of a cluster are told apart by its name';
  if (peer.name === own.name) {
    return {
      code: 'conflict',
      what: `both clusters are named ${own.name}`,
      why,
      fix: 'cluster names must be unique in a mesh: rename one of them, or name two different contexts',
    };
  }
  const invalid = clusterNameProblem(peer.name);
  if (invalid === undefined) return undefined;
  return {
    code: 'invalid-argument',
    what: invalid,
    why,
    fix: `correct the configuration of ${peer.name || 'the peer'}`,
  };
}

function maximumFinding(own: OwnCluster, peer: ClusterInfo): Finding | undefined {
  if (peer.maxConnectedClusters === own.maxConnectedClusters) return undefined;
  return {
    code: 'conflict',
    what: `${own.name} has maxConnectedClusters ${own.maxConnectedClusters}, ${peer.name} has ${peer.maxConnectedClusters}`,
    why: 'it decides which numbers are identities of which cluster: policies would take pods for others',
    fix: 'all clusters of a mesh must agree on maxConnectedClusters, because it decides how identities are numbered',
  };
}

function idFinding(own: OwnCluster, peer: ClusterInfo, known: readonly KnownPeer[]): Finding | undefined {
  const why = 'the id is part of every identity number: two clusters with one id would share identities';
  const invalid = clusterIdProblem(peer.id, own.maxConnectedClusters);
  if (invalid !== undefined)
    return { code: 'invalid-argument', what: invalid, why, fix: `correct the configuration of ${peer.name}` };
  const fix = 'cluster ids must be unique in a mesh: give one of them another id';
  if (peer.id === own.id) return { code: 'conflict', what: `both clusters have cluster id ${own.id}`, why, fix };
  const holder = known.find((other) => other.name !== peer.name && other.id === peer.id);
  if (holder === undefined) return undefined;
  return {
    code: 'conflict',
    what: `cluster id ${peer.id} is already used by the connected cluster ${holder.name}`,
    why,
    fix,
  };
}

/** Whether the cluster that is connected under this name is another one. */
function identityFinding(peer: ClusterInfo, known: readonly KnownPeer[]): Finding | undefined {
  const namesake = known.find((other) => other.name === peer.name);
  if (namesake === undefined) return undefined;
  const why = 'the data of one cluster would be taken for that of another';
  if (namesake.id !== 0 && namesake.id !== peer.id) {
    return {
      code: 'conflict',
      what: `a cluster ${namesake.name} with id ${namesake.id} is connected already`,
      why,
      fix: `cluster names must be unique; if it is the same cluster, disconnect ${namesake.name} first`,
    };
  }
  if (namesake.caPem !== '' && peer.caPem !== '' && namesake.caPem.trim() !== peer.caPem.trim()) {
    return {
      code: 'conflict',
      what: `a cluster ${namesake.name} with id ${peer.id} but another CA is connected already`,
      why,
      fix: `cluster names must be unique; if ${namesake.name} was rebuilt, disconnect it first and connect it anew`,
    };
  }
  return undefined;
}

/** Both families; a cluster without one of them has '' there, which overlaps nothing. */
function podCidrFinding(own: OwnCluster, peer: ClusterInfo, known: readonly KnownPeer[]): Finding | undefined {
  for (const family of [4, 6] as const) {
    const finding = familyFinding(family, own, peer, known);
    if (finding !== undefined) return finding;
  }
  return undefined;
}

const podCidrOf = (family: Family, of: { readonly podCidr: string; readonly podCidrV6: string }) =>
  family === 4 ? of.podCidr : of.podCidrV6;

function familyFinding(
  family: Family,
  own: OwnCluster,
  peer: ClusterInfo,
  known: readonly KnownPeer[],
): Finding | undefined {
  const theirs = podCidrOf(family, peer);
  if (theirs === '') return undefined;
  const cidr = parseCidr(theirs);
  const unfit = cidr === undefined ? `${JSON.stringify(theirs)} is no CIDR` : podRangeProblem(cidr, family);
  if (cidr === undefined || unfit !== undefined) {
    return {
      code: 'invalid-argument',
      what: `the pod CIDR of ${peer.name}: ${unfit}`,
      why: 'a peer may name any address of its pod CIDR as a pod of its own',
      fix: `correct cluster.${family === 4 ? 'podCIDR' : 'podCIDRv6'} in the configuration of ${peer.name}'s apiserver`,
    };
  }
  const why = 'a packet says only an address: of two pods with one address only one can be reached';
  const fix = 'give the clusters disjoint pod CIDRs';
  const overlaps = (text: string) => {
    const other = parseCidr(text);
    return other !== undefined && cidrsOverlap(other, cidr);
  };
  const ours = podCidrOf(family, own);
  if (overlaps(ours)) {
    const what = `the pod CIDRs ${ours} of ${own.name} and ${theirs} of ${peer.name} overlap`;
    return { code: 'conflict', what, why, fix };
  }
  const services = own.serviceCidrs.find(overlaps);
  if (services !== undefined) {
    return {
      code: 'conflict',
      what: `the pod CIDR ${theirs} of ${peer.name} overlaps the service CIDR ${services} of ${own.name}`,
      why: `in ${own.name}, what is sent to a service would be sent to a pod of ${peer.name}, or the other way round`,
      fix: 'give pods and services of the two clusters addresses of their own',
    };
  }
  const holder = known.find((other) => other.name !== peer.name && overlaps(podCidrOf(family, other)));
  if (holder === undefined) return undefined;
  const what = `the pod CIDR ${theirs} of ${peer.name} overlaps ${podCidrOf(family, holder)} of the connected cluster ${holder.name}`;
  return { code: 'conflict', what, why, fix };
}
