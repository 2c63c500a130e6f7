/** What the parts of the apiserver ask of each other. main.ts is the only place that builds the real ones. */
import type { AgentStatus, HostAlias, PeerStatus } from '@clustermesh/contract';
import type { Writer } from '@clustermesh/kvstore';

/** The users that may reach this cluster's etcd besides the fixed ones; `users.yaml` is their durable truth (wire-contract §1.12). */
export interface UserDirectory {
  /** Adds `remote-<peer>` to users.yaml and etcd. Idempotent. */
  addPeer(peer: string): Promise<void>;
  /** Removes the user from users.yaml and, when etcd answers, from etcd. Removing the missing is success. */
  removePeer(peer: string): Promise<void>;
}

/** One peer as the config directory of wire-contract §5.1 describes it (file name = cluster name). */
export interface PeerConfig {
  readonly name: string;
  readonly endpoints: readonly string[];
  readonly hostAliases: readonly HostAlias[];
  readonly caFile: string;
  readonly certFile: string;
  readonly keyFile: string;
  /** What was agreed at connect; undefined for a file that was not written by us. */
  readonly agreed?: AgreedPeer | undefined;
  /** `host:port` of its admin interface, where certificates are renewed; undefined when none was named. */
  readonly adminEndpoints?: readonly string[] | undefined;
  /** Its services are not to be used here any more; what is open goes on. */
  readonly draining?: boolean | undefined;
}

/** A peer's data is data from a stranger: it is held against this. */
export interface AgreedPeer {
  readonly id: number;
  /** '' when the peer named none. */
  readonly podCidr: string;
  /** The same of IPv6. */
  readonly podCidrV6: string;
}

/** The config directory: written by operations, watched by the mirror. */
export interface PeerDirectory {
  list(): Promise<readonly PeerConfig[]>;
  /** Files that the last `list` found and could not use: name → what is wrong. */
  unusable(): ReadonlyMap<string, string>;
  /** Writes certificate files first and the peer file last, so that a watcher never sees a half-configured peer. */
  write(peer: {
    readonly name: string;
    readonly endpoints: readonly string[];
    readonly hostAliases: readonly HostAlias[];
    readonly caPem: string;
    readonly certPem: string;
    readonly keyPem: string;
    readonly agreed: AgreedPeer;
    readonly adminEndpoints?: readonly string[] | undefined;
  }): Promise<void>;
  /** Replaces what is given, and nothing else; readers take it up at their next connection. False: there is no such peer. */
  renew(peer: string, files: { readonly caPem: string; readonly certPem?: string }): Promise<boolean>;
  /** Marks a peer as draining, until it is written again. False: there is no such peer. */
  drain(peer: string): Promise<boolean>;
  remove(peer: string): Promise<void>;
}

export interface MirrorView {
  /** Every configured peer, and removed ones whose data is still being drained. */
  peers(): readonly PeerStatus[];
  /** Reads the config directory again now rather than at the next notification. */
  refresh(): void;
}

export interface AgentView {
  /** Live agents (their status key is leased). */
  agents(): readonly AgentStatus[];
}

/** What of a writer is there to see. */
export type WriterView = Pick<Writer, 'status' | 'pendingKeys'>;

export interface LocalView {
  /** Readable problems of this cluster's own objects: manifests, annotations, nodes. */
  problems(): readonly string[];
  counts(): { readonly services: number; readonly globalServices: number; readonly endpoints: number };
}

export interface EtcdView {
  connected(): boolean;
  lastError(): string;
}
