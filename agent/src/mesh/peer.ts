/**
 * One remote cluster: the families that it publishes, each behind its canary. From this cluster's etcd, as the mirror keeps them
 * (cache layout), or from the remote cluster's own (state layout).
 */
import {
  AGENT_FAMILIES,
  type AgentFamily,
  type ClusterEndpointSlice,
  type Compression,
  canaryKey,
  type Decoded,
  dataPrefix,
  decodeIdentityEntry,
  EXTENSION_FIELD,
  type GlobalService,
  type IdentityEntry,
  type Layout,
  type MaxConnectedClusters,
  type MeshNode,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import { type AddressEntry, readEndpointSlice, readIpEntry, readNode, readService } from './decode.ts';
import { type Family, type Room, type RowAction, startFamily } from './family.ts';

export interface PeerRef {
  readonly name: string;
  readonly id: number;
}

/** A cluster with what its config says that it publishes. */
export interface PublishedPeer extends PeerRef {
  readonly families: readonly AgentFamily[];
}

/** What a peer's rows are told to. Undefined: the row is gone. */
export interface PeerSink {
  peerNode(peer: PeerRef, name: string, node: MeshNode | undefined): void;
  peerService(peer: PeerRef, name: string, service: GlobalService | undefined): void;
  peerSlice(peer: PeerRef, name: string, slice: ClusterEndpointSlice | undefined): void;
  peerIp(peer: PeerRef, name: string, entry: AddressEntry | undefined): void;
  peerIdentity(peer: PeerRef, name: string, entry: IdentityEntry | undefined): void;
}

export interface PeerOptions {
  readonly etcd: Etcd;
  readonly layout: Layout;
  readonly hasCanaries: boolean;
  readonly lastHeartbeatAt?: (() => number | undefined) | undefined;
  readonly peer: PublishedPeer;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly zstd: Compression;
  readonly sink: PeerSink;
  /** The same cluster as it was read before, from elsewhere or in other families: its rows stay until this source has been heard out. */
  readonly successorOf?: Peer | undefined;
  /** A row changed; `changedAt` is what the source says about when (RFC3339), if it does. */
  readonly onArrival: (family: AgentFamily, action: RowAction, changedAt: string | undefined) => void;
  readonly onBatch: (family: AgentFamily) => void;
  readonly onSynced: (family: AgentFamily) => void;
  readonly room?: Room | undefined;
  readonly log: Log;
}

export interface Peer extends PeerRef {
  /** What is followed. */
  readonly families: ReadonlyMap<AgentFamily, Family>;
  /** Names of the rows of a family in force, also of one that is not followed any more. */
  names(family: AgentFamily): ReadonlySet<string>;
  /** All that there is to say of these families has been heard. */
  isSynced(...families: readonly AgentFamily[]): boolean;
  /** The cluster publishes slices, and all of them are known, from this source or the one before. */
  areSlicesHeard(): boolean;
  /** Ends the reflectors and withdraws every row: the cluster left the mesh. */
  drain(): void;
  /** Ends the reflectors and keeps the rows: the agent stops. */
  stop(): void;
}

const NONE: ReadonlySet<string> = new Set();

export function startPeer(options: PeerOptions): Peer {
  const { sink, zstd, successorOf } = options;
  const { name, id } = options.peer;
  const peer: PeerRef = { name, id };
  const stop = new AbortController();
  const expected = { cluster: name, clusterId: id, maxConnectedClusters: options.maxConnectedClusters };

  function follow<T>(
    family: AgentFamily,
    decode: (name: string, value: Buffer) => Decoded<T>,
    onRow: (name: string, value: T | undefined) => void,
    changedAt: (value: T) => string | undefined,
  ): Family {
    return startFamily({
      etcd: options.etcd,
      prefix: dataPrefix(name, family, options.layout),
      canaryKey: options.hasCanaries ? canaryKey(name, family, options.layout) : undefined,
      // Cilium's keys are leased: when its writer dies they go, and what they stand for need not.
      holdDeletes: options.lastHeartbeatAt && { lastHeartbeatAt: options.lastHeartbeatAt },
      inherited: successorOf?.names(family),
      log: options.log.child({ peer: name, family }),
      signal: stop.signal,
      decode,
      onRow,
      onArrival: (action, value) =>
        options.onArrival(family, action, value === undefined ? undefined : changedAt(value)),
      onBatch: () => options.onBatch(family),
      room: options.room,
      onSynced() {
        if (isSynced(...families.keys())) withdrawUnpublished();
        options.onSynced(family);
      },
    });
  }

  const stamp = (value: Stamped): string | undefined => value[EXTENSION_FIELD]?.changedAt;
  const noStamp = () => undefined;

  const onNode = (row: string, node: MeshNode | undefined) => sink.peerNode(peer, row, node);
  const onService = (row: string, service: GlobalService | undefined) => sink.peerService(peer, row, service);
  const onSlice = (row: string, slice: ClusterEndpointSlice | undefined) => sink.peerSlice(peer, row, slice);
  const onIdentity = (row: string, entry: IdentityEntry | undefined) => sink.peerIdentity(peer, row, entry);
  const onIp = (row: string, entry: AddressEntry | undefined) => sink.peerIp(peer, row, entry);

  const start: Record<AgentFamily, () => Family> = {
    nodes: () => follow('nodes', (row, value) => readNode(row, value.toString(), expected), onNode, stamp),
    services: () => follow('services', (row, value) => readService(row, value.toString(), expected), onService, stamp),
    ip: () => follow('ip', (row, value) => readIpEntry(row, value, expected), onIp, stamp),
    // A label string has no room for a time.
    identities: () =>
      follow('identities', (row, value) => decodeIdentityEntry(row, value.toString(), expected), onIdentity, noStamp),
    endpointslices: () =>
      follow('endpointslices', (row, value) => readEndpointSlice(row, value, expected, zstd), onSlice, noStamp),
  };
  const withdraw: Record<AgentFamily, (row: string) => void> = {
    nodes: (row) => onNode(row, undefined),
    services: (row) => onService(row, undefined),
    ip: (row) => onIp(row, undefined),
    identities: (row) => onIdentity(row, undefined),
    endpointslices: (row) => onSlice(row, undefined),
  };

  const wereSlicesHeard = successorOf?.areSlicesHeard() ?? false;
  const families = new Map<AgentFamily, Family>();
  /** Rows of families that the cluster publishes no more: they stay until what it publishes in their place has been heard. */
  const unpublished = new Map<AgentFamily, ReadonlySet<string>>();
  for (const family of AGENT_FAMILIES) {
    const inherited = successorOf?.names(family) ?? NONE;
    if (options.peer.families.includes(family)) families.set(family, start[family]());
    else if (inherited.size > 0) unpublished.set(family, new Set(inherited));
  }

  function withdrawUnpublished(): void {
    for (const [family, rows] of unpublished) for (const row of rows) withdraw[family](row);
    unpublished.clear();
  }

  const isSynced = (...asked: readonly AgentFamily[]) =>
    asked.every((family) => families.get(family)?.isSynced() ?? true);
  const namesOf = (family: AgentFamily) => families.get(family)?.names() ?? unpublished.get(family) ?? NONE;

  return {
    ...peer,
    families,
    names: namesOf,
    isSynced,
    areSlicesHeard: () => families.has('endpointslices') && (wereSlicesHeard || isSynced('endpointslices')),
    drain() {
      stop.abort();
      for (const family of AGENT_FAMILIES) for (const row of namesOf(family)) withdraw[family](row);
    },
    stop: () => stop.abort(),
  };
}

interface Stamped {
  readonly [EXTENSION_FIELD]?: { readonly changedAt?: string | undefined } | undefined;
}
