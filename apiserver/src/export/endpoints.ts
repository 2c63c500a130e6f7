/** Nodes and endpoints of this cluster → `nodes`, `ip` and `identities` (wire-contract §1.5–1.7). Pure. */
import {
  decodeIdentityEntry,
  EXTENSION_FIELD,
  encodeIpEntry,
  encodeNode,
  identityKey,
  ipKey,
  type MaxConnectedClusters,
  makeNode,
  type NamedPort,
  nodeKey,
} from '@clustermesh/contract';
import type { LocatedEndpoint, NodesSnapshot } from '../sources/nodes/node-table.ts';

export interface EndpointExportInput {
  readonly cluster: { readonly name: string; readonly id: number; readonly maxConnectedClusters: MaxConnectedClusters };
  readonly nodes: NodesSnapshot;
  readonly isGlobalNamespace: (namespace: string) => boolean;
  /** Address → owner of the pass before. */
  readonly owners: ReadonlyMap<string, string>;
}

export interface EndpointExport {
  readonly nodes: ReadonlyMap<string, string>;
  readonly ip: ReadonlyMap<string, string>;
  readonly identities: ReadonlyMap<string, string>;
  readonly owners: ReadonlyMap<string, string>;
  readonly problems: readonly string[];
}

const ZONE_LABEL = 'topology.kubernetes.io/zone';
const REGION_LABEL = 'topology.kubernetes.io/region';

/** Every node is exported: tunnels end there, and nothing private is in it. */
function exportNodes(input: EndpointExportInput): Map<string, string> {
  const rows = new Map<string, string>();
  for (const record of input.nodes.nodes.values()) {
    const place = {
      ...(record.region === undefined ? {} : { region: record.region }),
      ...(record.zone === undefined ? {} : { zone: record.zone }),
    };
    const node = makeNode({
      name: record.name,
      cluster: input.cluster.name,
      clusterId: input.cluster.id,
      internalIp: record.internalIp,
      gatewayIp: record.gatewayIp,
      podCidr: record.podCidr,
      ipv6: record.ipv6,
      labels: {
        ...(record.region === undefined ? {} : { [REGION_LABEL]: record.region }),
        ...(record.zone === undefined ? {} : { [ZONE_LABEL]: record.zone }),
      },
    });
    rows.set(nodeKey(input.cluster.name, record.name), encodeNode({ ...node, [EXTENSION_FIELD]: place }));
  }
  return rows;
}

const toWire = ({ name, port, protocol }: NamedPort) => ({ Name: name, Port: port, Protocol: protocol });

/** Names one endpoint for good: what the ownership rule remembers. */
function refOf(endpoint: LocatedEndpoint): string {
  return `${endpoint.node}/${endpoint.record.id}`;
}

/** Of several claimants the owner so far; else the one whose record is oldest (§1.6: first owner stays, the next is promoted). */
function chooseOwner(claimants: readonly LocatedEndpoint[], ownerBefore: string | undefined): LocatedEndpoint {
  const sorted = [...claimants].sort((a, b) => a.revision - b.revision || (refOf(a) < refOf(b) ? -1 : 1));
  return sorted.find((claimant) => refOf(claimant) === ownerBefore) ?? (sorted[0] as LocatedEndpoint);
}

export function exportEndpoints(input: EndpointExportInput): EndpointExport {
  const { cluster } = input;
  const problems: string[] = [];
  const claims = new Map<string, LocatedEndpoint[]>();
  for (const endpoint of input.nodes.endpoints) {
    if (!input.isGlobalNamespace(endpoint.record.namespace)) continue;
    const expectation = {
      cluster: cluster.name,
      clusterId: cluster.id,
      maxConnectedClusters: cluster.maxConnectedClusters,
    };
    const identity = decodeIdentityEntry(String(endpoint.record.identity), endpoint.record.labels, expectation);
    if (!identity.ok) {
      problems.push(`endpoint ${refOf(endpoint)}: peers would refuse it: ${identity.reason}`);
      continue;
    }
    const { ipv4, ipv6 } = endpoint.record;
    for (const address of ipv6 === undefined ? [ipv4] : [ipv4, ipv6]) {
      const list = claims.get(address);
      if (list === undefined) claims.set(address, [endpoint]);
      else list.push(endpoint);
    }
  }

  const ip = new Map<string, string>();
  const identities = new Map<string, string>();
  const owners = new Map<string, string>();
  for (const [address, claimants] of [...claims].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const owner = chooseOwner(claimants, input.owners.get(address));
    owners.set(address, refOf(owner));
    for (const other of claimants) {
      if (other !== owner)
        problems.push(
          `address ${address} of endpoint ${refOf(other)} already belongs to ${refOf(owner)}, which stays its owner`,
        );
    }
    const { record } = owner;
    const host = input.nodes.nodes.get(owner.node)?.internalIp;
    if (host === undefined) {
      problems.push(`endpoint ${refOf(owner)}: its node has published no address, not exported`);
      continue;
    }
    ip.set(
      ipKey(cluster.name, address),
      encodeIpEntry({
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
      }),
    );
  }
  for (const endpoint of [...new Set([...claims.values()].flat())].sort((a, b) => a.revision - b.revision)) {
    const key = identityKey(cluster.name, endpoint.record.identity);
    const labels = identities.get(key);
    if (labels === undefined) identities.set(key, endpoint.record.labels);
    else if (labels !== endpoint.record.labels) {
      problems.push(
        `endpoint ${refOf(endpoint)}: identity ${endpoint.record.identity} already stands for ${labels}, not for ${endpoint.record.labels}`,
      );
    }
  }
  return { nodes: exportNodes(input), ip, identities, owners, problems };
}
