/** What the mesh tells to others, and what others may ask of it. */
import type {
  EndpointRecord,
  LocalNamespace,
  LocalPolicy,
  LocalService,
  LocalSlice,
  NodeRecord,
} from '@clustermesh/contract';
import type { PeerSink } from './peer.ts';
import type { Arrival, FamilyProgress, MeshChanges } from './progress.ts';

export interface MeshSink extends PeerSink {
  service(name: string, service: LocalService | undefined): void;
  slice(name: string, slice: LocalSlice | undefined): void;
  namespace(name: string, namespace: LocalNamespace | undefined): void;
  policy(name: string, policy: LocalPolicy | undefined): void;
  /** Another node of this cluster. */
  node(name: string, record: NodeRecord | undefined): void;
  nodeEndpoint(node: string, id: string, endpoint: EndpointRecord | undefined, record: NodeRecord | undefined): void;
  /** A source spoke or left: what `MeshView` answers about this cluster and family (default: about any) may have changed. */
  sourcesChanged(clusterId?: number, family?: string): void;
  /** Rows changed: ask for a pass. */
  changed(): void;
}

/** What has been heard since the start of this process. */
export interface MeshView {
  /** Everything that a cluster has to say in this family has been heard. Own cluster: its services and slices; the pods of its nodes. */
  isSettled(clusterId: number, family: 'services' | 'ip' | 'nodes' | 'identities'): boolean;
  /** This cluster's policies and namespaces are known. */
  arePoliciesHeard(): boolean;
  /** The cluster publishes endpoint slices, and all of them are known. */
  areSlicesHeard(clusterId: number): boolean;
  /** The cluster is known not to be in the mesh. */
  isGone(clusterId: number): boolean;
  /** The node of this cluster that has this address has said all, or is known not to be there. */
  isNodeSettled(ip: string): boolean;
}

/** A peer as it is followed. */
export interface RemoteState {
  readonly name: string;
  readonly source: 'mirror' | 'direct';
  /** Its etcd (or the one of its mirror) answers, and it has been heard out in all families. */
  readonly ready: boolean;
  readonly nodes: number;
  readonly services: number;
  readonly endpoints: number;
  /** Connections lost since it is followed from there. */
  readonly failures: number;
  readonly lastFailureWallMs: number | undefined;
  readonly quorumErrors: number;
}

export interface Mesh extends MeshView {
  /** One entry per (cluster, family), the own cluster under its own name. */
  progress(): FamilyProgress[];
  takeChanges(): MeshChanges;
  /** Changes of peers that `takeChanges` has not taken yet. */
  waiting(): readonly Arrival[];
  remotes(): RemoteState[];
  /** Every source known has synced; `missing` names those that have not. */
  isComplete(): boolean;
  missing(): string[];
  problems(): string[];
  /** To be called when no restored row is left: unless something is held here, all there is came from this store. */
  rememberStore(): void;
  close(): Promise<void>;
}
