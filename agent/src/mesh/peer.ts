/**
 * One remote cluster: four families, each behind its canary. From this cluster's etcd, as the mirror keeps them (cache layout), or
 * from the remote cluster's own (state layout).
 */
import {
  canaryKey,
  type Decoded,
  dataPrefix,
  decodeIdentityEntry,
  EXTENSION_FIELD,
  FAMILIES,
  type Family as FamilyName,
  type GlobalService,
  type IpEntry,
  type Layout,
  type MaxConnectedClusters,
  type MeshNode,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import { readIpEntry, readNode, readService } from './decode.ts';
import { type Family, type RowAction, startFamily } from './family.ts';

export interface PeerRef {
  readonly name: string;
  readonly id: number;
}

/** What a peer's rows are told to. Undefined: the row is gone. */
export interface PeerSink {
  peerNode(peer: PeerRef, name: string, node: MeshNode | undefined): void;
  peerService(peer: PeerRef, name: string, service: GlobalService | undefined): void;
  peerIp(peer: PeerRef, name: string, entry: IpEntry | undefined): void;
}

export interface PeerOptions {
  readonly etcd: Etcd;
  readonly layout: Layout;
  readonly hasCanaries: boolean;
  readonly peer: PeerRef;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly sink: PeerSink;
  /** The same cluster as it was read before, from elsewhere: its rows stay until this source has been heard out. */
  readonly successorOf?: Peer | undefined;
  /** A row changed; `changedAt` is what the source says about when (RFC3339), if it does. */
  readonly onArrival: (family: FamilyName, action: RowAction, changedAt: string | undefined) => void;
  readonly onBatch: (family: FamilyName) => void;
  readonly onSynced: (family: FamilyName) => void;
  readonly log: Log;
}

export interface Peer extends PeerRef {
  readonly families: Readonly<Record<FamilyName, Family>>;
  /** Ends the reflectors and withdraws every row: the cluster left the mesh. */
  drain(): void;
  /** Ends the reflectors and keeps the rows: the agent stops. */
  stop(): void;
}

export function startPeer(options: PeerOptions): Peer {
  const { peer, sink } = options;
  const stop = new AbortController();
  const expected = { cluster: peer.name, clusterId: peer.id, maxConnectedClusters: options.maxConnectedClusters };

  function family<T>(
    name: FamilyName,
    decode: (name: string, text: string) => Decoded<T>,
    onRow: (name: string, value: T | undefined) => void,
    changedAt: (value: T) => string | undefined,
  ): Family {
    return startFamily({
      etcd: options.etcd,
      prefix: dataPrefix(peer.name, name, options.layout),
      canaryKey: options.hasCanaries ? canaryKey(peer.name, name, options.layout) : undefined,
      inherited: options.successorOf?.families[name].names(),
      log: options.log.child({ peer: peer.name, family: name }),
      signal: stop.signal,
      decode,
      onRow,
      onArrival: (action, value) => options.onArrival(name, action, value === undefined ? undefined : changedAt(value)),
      onBatch: () => options.onBatch(name),
      onSynced: () => options.onSynced(name),
    });
  }

  const stamp = (value: Stamped): string | undefined => value[EXTENSION_FIELD]?.changedAt;

  const onNode = (name: string, node: MeshNode | undefined) => sink.peerNode(peer, name, node);
  const onService = (name: string, service: GlobalService | undefined) => sink.peerService(peer, name, service);
  const onIp = (name: string, entry: IpEntry | undefined) => sink.peerIp(peer, name, entry);

  const families: Record<FamilyName, Family> = {
    nodes: family('nodes', (name, text) => readNode(name, text, expected), onNode, stamp),
    services: family('services', (name, text) => readService(name, text, expected), onService, stamp),
    ip: family('ip', (name, text) => readIpEntry(name, text, expected), onIp, stamp),
    // Checked, counted and reported; no consumer before policy.
    identities: family(
      'identities',
      (name, text) => decodeIdentityEntry(name, text, expected),
      () => {},
      // A label string has no room for a time.
      () => undefined,
    ),
  };
  const withdraw: Record<FamilyName, (name: string) => void> = {
    nodes: (name) => onNode(name, undefined),
    services: (name) => onService(name, undefined),
    ip: (name) => onIp(name, undefined),
    identities: () => {},
  };

  return {
    ...peer,
    families,
    drain() {
      stop.abort();
      for (const name of FAMILIES) for (const row of families[name].names()) withdraw[name](row);
    },
    stop: () => stop.abort(),
  };
}

interface Stamped {
  readonly [EXTENSION_FIELD]?: { readonly changedAt?: string | undefined } | undefined;
}
