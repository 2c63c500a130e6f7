/** One remote cluster, as the mirror keeps it in this cluster's etcd: four families in the cache layout, each behind its canary. */
import {
  canaryKey,
  type Decoded,
  dataPrefix,
  decodeGlobalService,
  decodeIdentityEntry,
  decodeIpEntry,
  decodeNode,
  FAMILIES,
  type Family as FamilyName,
  type GlobalService,
  type IpEntry,
  type MaxConnectedClusters,
  type MeshNode,
  validateGlobalService,
  validateIpEntry,
  validateNode,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import { type Family, startFamily } from './family.ts';

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
  readonly peer: PeerRef;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly sink: PeerSink;
  readonly onBatch: () => void;
  readonly onSynced: () => void;
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
  ): Family {
    return startFamily({
      etcd: options.etcd,
      prefix: dataPrefix(peer.name, name, 'cache'),
      canaryKey: canaryKey(peer.name, name, 'cache'),
      log: options.log.child({ peer: peer.name, family: name }),
      signal: stop.signal,
      decode,
      onRow,
      onBatch: options.onBatch,
      onSynced: options.onSynced,
    });
  }

  const onNode = (name: string, node: MeshNode | undefined) => sink.peerNode(peer, name, node);
  const onService = (name: string, service: GlobalService | undefined) => sink.peerService(peer, name, service);
  const onIp = (name: string, entry: IpEntry | undefined) => sink.peerIp(peer, name, entry);

  const families: Record<FamilyName, Family> = {
    nodes: family(
      'nodes',
      (name, text) => then(decodeNode(text), (node) => validateNode(node, { ...expected, name })),
      onNode,
    ),
    services: family(
      'services',
      (name, text) =>
        then(decodeGlobalService(text), (service) => validateGlobalService(service, { ...expected, name })),
      onService,
    ),
    ip: family(
      'ip',
      (name, text) => then(decodeIpEntry(text), (entry) => validateIpEntry(entry, { ...expected, name })),
      onIp,
    ),
    // Checked, counted and reported; no consumer before policy.
    identities: family(
      'identities',
      (name, text) => decodeIdentityEntry(name, text, expected),
      () => {},
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

function then<A, B>(decoded: Decoded<A>, next: (value: A) => Decoded<B>): Decoded<B> {
  return decoded.ok ? next(decoded.value) : decoded;
}
