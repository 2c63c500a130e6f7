import type { ClusterFacts, ClusterInfo, HostAlias, NodeRecord } from '@clustermesh/contract';
import { certificatesIn, loadCa, loadCaBundle } from '@clustermesh/pki';
import { version } from '@clustermesh/runtime';
import type { OwnCluster } from '../preflight/agreement.ts';

/** What peers are told of this cluster. The CA's certificate is public; its key stays in `pkiDir`. */
export function readClusterInfo(options: {
  readonly own: OwnCluster;
  readonly region: string;
  readonly advertise: {
    readonly endpoints: readonly string[];
    readonly hostAliases: readonly HostAlias[];
    readonly admin: readonly string[];
  };
  readonly pkiDir: string;
}): ClusterInfo {
  return {
    name: options.own.name,
    id: options.own.id,
    maxConnectedClusters: options.own.maxConnectedClusters,
    region: options.region,
    endpoints: options.advertise.endpoints,
    hostAliases: options.advertise.hostAliases,
    caPem: signingCaFirst(options.pkiDir),
    version: version(),
    podCidr: options.own.podCidr,
    podCidrV6: options.own.podCidrV6,
    adminEndpoints: options.advertise.admin,
  };
}

/** So that a peer sees by which one its next certificate would be signed. */
function signingCaFirst(pkiDir: string): string {
  const signing = loadCa(pkiDir).certPem.trim();
  const others = certificatesIn(loadCaBundle(pkiDir))
    .map((pem) => pem.trim())
    .filter((pem) => pem !== signing);
  return `${[signing, ...others].join('\n')}\n`;
}

/** For a preflight: also what this cluster's network looks like, as far as its nodes tell. */
export function readClusterFacts(options: {
  readonly cluster: ClusterInfo;
  readonly serviceCidr: string;
  readonly nodes: Iterable<NodeRecord>;
  readonly unixMs: number;
  readonly meshDisabled: boolean;
}): ClusterFacts {
  return {
    cluster: options.cluster,
    serviceCidr: options.serviceCidr,
    unixMs: options.unixMs,
    meshDisabled: options.meshDisabled,
    nodes: [...options.nodes].map((node) => ({
      name: node.name,
      address: node.internalIp,
      addressV6: node.ipv6?.internalIp ?? '',
      podCidrs: [node.podCidr, ...(node.ipv6 === undefined ? [] : [node.ipv6.podCidr])],
      mtu: node.mtu ?? 0,
      routingMode: node.routingMode ?? '',
    })),
  };
}
