import { existsSync, readFileSync } from 'node:fs';
import type { MirrorView, PeerDirectory } from '../ports.ts';
import type { KnownPeer } from './agreement.ts';

/** The configured peers, with what was agreed; for files that were not written by us, with what the mirror has seen. */
export async function knownPeers(directory: PeerDirectory, mirror: MirrorView): Promise<KnownPeer[]> {
  const statuses = new Map(mirror.peers().map((peer) => [peer.cluster, peer]));
  return (await directory.list()).map((peer) => ({
    name: peer.name,
    id: peer.agreed?.id ?? statuses.get(peer.name)?.clusterId ?? 0,
    podCidr: peer.agreed?.podCidr ?? '',
    podCidrV6: peer.agreed?.podCidrV6 ?? '',
    caPem: existsSync(peer.caFile) ? readFileSync(peer.caFile, 'utf8') : '',
  }));
}
