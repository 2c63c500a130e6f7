/** Partitions between clusters, as nftables rules of the router between them. Pure. */
import { findCluster, type LabCluster, type Topology } from '../topology.ts';

export type Plane = 'control' | 'data';

/** Packets from cluster `from` to cluster `to` of this plane are dropped; a full cut is one of each in both directions. */
export interface Partition {
  readonly from: string;
  readonly to: string;
  readonly plane: Plane;
}

export function cut(a: string, b: string, planes: readonly Plane[], oneWay: boolean): Partition[] {
  return planes.flatMap((plane) => [{ from: a, to: b, plane }, ...(oneWay ? [] : [{ from: b, to: a, plane }])]);
}

export function add(present: readonly Partition[], more: readonly Partition[]): Partition[] {
  const rest = more.filter(
    (part) => !present.some((other) => other.from === part.from && other.to === part.to && other.plane === part.plane),
  );
  return [...present, ...rest];
}

/** Without what lies between the two, in either direction. */
export function heal(present: readonly Partition[], a: string, b: string): Partition[] {
  return present.filter((part) => !((part.from === a && part.to === b) || (part.from === b && part.to === a)));
}

const set = (addresses: readonly string[]) => `{ ${addresses.join(', ')} }`;
const nodes = (cluster: LabCluster) => set(cluster.nodes.map((node) => node.ip));
const ipv6Nodes = (cluster: LabCluster) => set(cluster.nodes.flatMap((node) => node.ipv6?.ip ?? []));

/** Whole table in one file: nft applies it as one transaction, so no packet meets half of it. */
export function partitionRules(topology: Topology, partitions: readonly Partition[]): string {
  const rules = partitions.flatMap((partition) => {
    const [from, to] = [findCluster(topology, partition.from), findCluster(topology, partition.to)];
    // The data plane is node to node (the tunnel); whatever touches a control plane's host is control.
    if (partition.plane === 'data') {
      const rule = `ip saddr ${nodes(from)} ip daddr ${nodes(to)} counter drop`;
      if (from.ipv6 === undefined || to.ipv6 === undefined) return [rule];
      return [rule, `ip6 saddr ${ipv6Nodes(from)} ip6 daddr ${ipv6Nodes(to)} counter drop`];
    }
    return [
      `ip saddr ${from.controlPlaneIP} ip daddr ${to.controlPlaneIP} counter drop`,
      `ip saddr ${from.controlPlaneIP} ip daddr ${nodes(to)} counter drop`,
      `ip saddr ${nodes(from)} ip daddr ${to.controlPlaneIP} counter drop`,
    ];
  });
  return [
    'table inet cm_lab',
    'delete table inet cm_lab',
    'table inet cm_lab {',
    '  chain forward {',
    '    type filter hook forward priority 0; policy accept;',
    ...rules.map((rule) => `    ${rule}`),
    '  }',
    '}',
    '',
  ].join('\n');
}
