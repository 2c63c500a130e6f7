/** The rows of one node and of one address, and who owns an address (wire-contract §1.5–1.7). Pure. */
import {
  decodeIdentityEntry,
  EXTENSION_FIELD,
  encodeIpEntry,
  encodeNode,
  type MaxConnectedClusters,
  makeNode,
  type NamedPort,
  type NodeRecord,
} from '@clustermesh/contract';
import type { LocatedEndpoint } from '../sources/nodes/node-table.ts';

export interface ExportingCluster {
  readonly name: string;
  readonly id: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
}

const ZONE_LABEL = 'topology.kubernetes.io/zone';
const REGION_LABEL = 'topology.kubernetes.io/region';

/** Every node is exported: tunnels end there, and nothing private is in it. */
export function nodeRow(cluster: ExportingCluster, record: NodeRecord): string {
  const place = {
    ...(record.region === undefined ? {} : { region: record.region }),
    ...(record.zone === undefined ? {} : { zone: record.zone }),
  };
  const node = makeNode({
    name: record.name,
    cluster: cluster.name,
    clusterId: cluster.id,
    internalIp: record.internalIp,
    gatewayIp: record.gatewayIp,
    podCidr: record.podCidr,
    ipv6: record.ipv6,
    labels: {
      ...(record.region === undefined ? {} : { [REGION_LABEL]: record.region }),
      ...(record.zone === undefined ? {} : { [ZONE_LABEL]: record.zone }),
    },
  });
  return encodeNode({ ...node, [EXTENSION_FIELD]: place });
}

const toWire = ({ name, port, protocol }: NamedPort) => ({ Name: name, Port: port, Protocol: protocol });

/** One address of the endpoint that owns it. `host`: internal address of its node. */
export function ipRow(address: string, { record }: LocatedEndpoint, host: string): string {
  return encodeIpEntry({
    IP: address,
    Mask: null,
    HostIP: host,
    ID: record.identity,
    Key: 0,
    Metadata: '',
    K8sNamespace: record.namespace,
    K8sPodName: record.pod,
    ...(record.serviceAccount === undefined ? {} : { K8sServiceAccount: record.serviceAccount }),
    ...(record.namedPorts === undefined ? {} : { NamedPorts: record.namedPorts.map(toWire) }),
  });
}

export const addressesOf = ({ record: { ipv4, ipv6 } }: LocatedEndpoint): readonly string[] =>
  ipv6 === undefined ? [ipv4] : [ipv4, ipv6];

/** Names one endpoint for good: what the ownership rule remembers. */
export function refOf(endpoint: LocatedEndpoint): string {
  return `${endpoint.node}/${endpoint.record.id}`;
}

/** Whose record is older; of one transaction, by name. */
export const byAge = (a: LocatedEndpoint, b: LocatedEndpoint): number =>
  a.revision - b.revision || (refOf(a) < refOf(b) ? -1 : 1);

/** Of several claimants the owner so far; else the one whose record is oldest (§1.6: first owner stays, the next is promoted). */
export function chooseOwner(claimants: readonly LocatedEndpoint[], ownerBefore: string | undefined): LocatedEndpoint {
  return (
    claimants.find((claimant) => refOf(claimant) === ownerBefore) ?? ([...claimants].sort(byAge)[0] as LocatedEndpoint)
  );
}

/** Why peers would refuse this endpoint's identity; undefined if they take it. */
export function refusalOf(cluster: ExportingCluster, { record }: LocatedEndpoint): string | undefined {
  const expectation = {
    cluster: cluster.name,
    clusterId: cluster.id,
    maxConnectedClusters: cluster.maxConnectedClusters,
  };
  const identity = decodeIdentityEntry(String(record.identity), record.labels, expectation);
  return identity.ok ? undefined : identity.reason;
}
