/** TypeScript's view of contract/proto/admin.proto. uint64 fields arrive as numbers (revisions stay far below 2^53). */
export interface HostAlias {
  readonly hostname: string;
  readonly ips: readonly string[];
}

export interface Diagnosis {
  /** This cluster's name, a node as cluster/node, or a peer's name. */
  readonly subject: string;
  readonly checks: readonly PreflightCheck[];
}

export interface Invitation {
  /** Secret. */
  readonly token: string;
  readonly id: string;
  readonly expiresUnixMs: number;
}

export interface RedeemInviteRequest {
  readonly token: string;
  readonly peer: ClusterInfo;
  /** The joiner's request for its client certificate at the cluster that invites. */
  readonly csrPem: string;
}

export interface RedeemInviteResponse {
  readonly cluster: ClusterInfo;
  /** The inviting cluster's request for its client certificate at the joiner. */
  readonly csrPem: string;
  readonly certificatePem: string;
}

/** From the cluster that is asked: does it read the peer, is it read by the peer, or both? */
export type ConnectDirection = 'both' | 'read' | 'serve';

/** What a reader of this cluster holds of its CAs; SHA-256 fingerprints, lower case hex. */
export interface HeldTrust {
  readonly trustedCas: readonly string[];
  /** The one that has signed the reader's own certificate; '' when none of them has. */
  readonly signedBy: string;
}

export interface ClusterInfo {
  readonly name: string;
  readonly id: number;
  readonly maxConnectedClusters: number;
  readonly region: string;
  /** etcd endpoints that peers connect to. */
  readonly endpoints: readonly string[];
  readonly hostAliases: readonly HostAlias[];
  /** All that are trusted, the one that signs first: two while a CA is replaced. */
  readonly caPem: string;
  readonly version: string;
  readonly podCidr: string;
  /** IPv6; '' when its pods have none. */
  readonly podCidrV6: string;
  /** `host:port` of the admin interface for peers. Default: they cannot reach it. */
  readonly adminEndpoints?: readonly string[];
}

export interface NodeFacts {
  readonly name: string;
  /** Where tunnels to it end. */
  readonly address: string;
  /** Its IPv6 address on the underlay; '' when none is known. */
  readonly addressV6: string;
  readonly podCidrs: readonly string[];
  /** Of the device that carries the tunnel; 0: not known. */
  readonly mtu: number;
  readonly routingMode: '' | 'tunnel' | 'native';
}

/** What another cluster needs to know to judge whether it can be connected with this one. */
export interface ClusterFacts {
  readonly cluster: ClusterInfo;
  readonly serviceCidr: string;
  readonly nodes: readonly NodeFacts[];
  readonly unixMs: number;
  /** It connects with nobody. */
  readonly meshDisabled: boolean;
}

export interface PreflightRequest {
  readonly peer: ClusterFacts;
  /** The peer's wall clock minus this side's, and by how much that may be wrong. */
  readonly clockOffsetMs: number;
  readonly clockErrorMs: number;
}

export interface PreflightCheck {
  readonly name: string;
  readonly state: 'ok' | 'warning' | 'failed';
  readonly what: string;
  readonly why: string;
  readonly fix: string;
  readonly code: string;
}

export interface OperationEvent {
  readonly id: string;
  readonly kind: string;
  readonly peer: string;
  readonly state: 'waiting' | 'active' | 'done' | 'failed';
  readonly step: string;
  readonly message: string;
  readonly certificateForPeerPem: string;
  readonly errorCode: string;
  readonly hint: string;
}

export interface OperationStep {
  readonly step: string;
  readonly state: 'pending' | 'waiting' | 'active' | 'done' | 'failed';
  readonly message: string;
  readonly attempts: number;
  /** 0: not yet. */
  readonly startedUnixMs: number;
  readonly endedUnixMs: number;
  readonly errorCode: string;
  readonly hint: string;
}

export interface OperationInfo {
  readonly id: string;
  readonly kind: string;
  readonly peer: string;
  readonly state: 'waiting' | 'active' | 'done' | 'failed' | 'cancelled';
  readonly createdUnixMs: number;
  readonly steps: readonly OperationStep[];
}

export interface FamilyStatus {
  readonly family: string;
  readonly synced: boolean;
  readonly count: number;
  readonly revision: number;
  readonly quarantined: number;
  readonly lastQuarantineReason: string;
  readonly nodesApplied: number;
}

export interface PeerInfo {
  readonly name: string;
  readonly id: number;
  readonly connected: boolean;
  readonly ready: boolean;
  readonly lastProofAgeMs: number;
  readonly error: string;
  readonly families: readonly FamilyStatus[];
  /** Nodes that have applied the latest revision of every family of this peer. */
  readonly nodesApplied: number;
}

export interface NodeInfo {
  readonly name: string;
  readonly alive: boolean;
  readonly version: string;
  readonly problems: readonly string[];
}

export interface ClusterStatus {
  readonly cluster: ClusterInfo;
  readonly etcdConnected: boolean;
  readonly etcdError: string;
  readonly redisConnected: boolean;
  readonly peers: readonly PeerInfo[];
  readonly nodes: readonly NodeInfo[];
  readonly problems: readonly string[];
  readonly localServices: number;
  readonly globalServices: number;
  readonly localEndpoints: number;
  /** It connects with nobody. */
  readonly meshDisabled: boolean;
}

export interface IssuedCertificate {
  /** Path on the apiserver's host. */
  readonly file: string;
  /** Why it was issued. */
  readonly reason: string;
}

/** What starts an operation. */
export interface Repeatable {
  /** Names this start: repeated because its answer was lost, it starts nothing new. 8 to 32 hex digits; '': not repeatable. */
  readonly request?: string;
}

/** Method name → request and response; streams are marked. */
export interface AdminMethods {
  /** A peer tells what it holds. */
  GetCluster: { request: Partial<HeldTrust>; response: ClusterInfo };
  PrepareConnect: { request: { peer: string }; response: { csrPem: string } };
  StartConnect: {
    request: { peer: ClusterInfo; peerCsrPem: string; direction: '' | ConnectDirection } & Repeatable;
    response: { id: string };
  };
  SupplyCertificate: { request: { peer: string; certificatePem: string }; response: Record<string, never> };
  StartDisconnect: { request: { peer: string } & Repeatable; response: { id: string } };
  StartDrain: { request: { peer: string } & Repeatable; response: { id: string } };
  WatchOperation: { request: { id: string }; response: OperationEvent; stream: true };
  Diagnose: { request: { peer: string }; response: { diagnoses: readonly Diagnosis[] } };
  ListOperations: { request: Record<string, never>; response: { operations: readonly OperationInfo[] } };
  RetryOperation: { request: { id: string }; response: { id: string } };
  CancelOperation: { request: { id: string }; response: Record<string, never> };
  CreateInvite: { request: { ttlMs: number }; response: Invitation };
  Join: { request: { token: string } & Repeatable; response: { id: string } };
  RedeemInvite: { request: RedeemInviteRequest; response: RedeemInviteResponse };
  CompleteInvite: {
    request: { redeemed: RedeemInviteRequest; certificatePem: string };
    response: Record<string, never>;
  };
  RotateLeaves: { request: Record<string, never>; response: { issued: readonly IssuedCertificate[] } };
  RotateCa: {
    request: { overlapMs: number; without: readonly string[] } & Repeatable;
    response: { id: string };
  };
  RenewPeer: { request: { csrPem: string }; response: { certificatePem: string; caPem: string } };
  Disable: {
    request: Record<string, never>;
    response: { partings: readonly { readonly peer: string; readonly id: string }[] };
  };
  Enable: { request: Record<string, never>; response: Record<string, never> };
  GetStatus: { request: Record<string, never>; response: ClusterStatus };
  GetFacts: { request: Record<string, never>; response: ClusterFacts };
  Preflight: { request: PreflightRequest; response: { checks: readonly PreflightCheck[] } };
}
