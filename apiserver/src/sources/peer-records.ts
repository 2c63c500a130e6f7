/** `clustermesh/peers/<C>`: what the replica that leads says of the peers. A replica that stands by shows these. */
import { decodePeerStatus, PEERS_PREFIX, type PeerStatus } from '@clustermesh/contract';
import { type Etcd, startReflector } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';

export interface PeerRecords {
  peers(): readonly PeerStatus[];
  readonly ended: Promise<void>;
}

export function startPeerRecords(options: {
  readonly etcd: Etcd;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock: Clock;
}): PeerRecords {
  const rows = new Map<string, PeerStatus>();
  const reflector = startReflector({
    ...options,
    prefix: PEERS_PREFIX,
    backoff: { minMs: 100, maxMs: 5_000 },
    sink: {
      apply({ upserts, removes }) {
        for (const key of removes) rows.delete(key);
        for (const { key, value } of upserts) {
          const decoded = decodePeerStatus(value.toString('utf8'));
          if (decoded.ok) rows.set(key, decoded.value);
        }
      },
    },
  });
  return { peers: () => [...rows.values()], ended: reflector.done };
}
