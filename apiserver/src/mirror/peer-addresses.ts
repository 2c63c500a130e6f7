/** What is known of where one peer's addresses may lie, kept up to date: what was agreed, its nodes, and what is others'. */
import { decodeNode, type WireFamily } from '@clustermesh/contract';
import type { AgreedPeer } from '../ports.ts';
import { type AddressFacts, agreedRanges, describeTaken, NodeIps, type TakenCidr } from './addresses.ts';
import type { FamilyMirror } from './family.ts';

export interface PeerAddressesOptions {
  readonly agreed: AgreedPeer | undefined;
  /** Of this cluster's pods and services. */
  readonly ownCidrs: readonly TakenCidr[];
  /** All CIDRs of pods and services that are not this peer's. */
  readonly taken: () => readonly TakenCidr[];
  /** What is judged by these facts. */
  readonly families: () => ReadonlyMap<WireFamily, FamilyMirror>;
}

export interface PeerAddresses {
  facts(): AddressFacts;
  /** A node was taken over, or (undefined) is gone. */
  onNode(name: string, value: Buffer | undefined): void;
  /** Another peer may have been granted what this one has used so far: from then on it is that one's. Level-triggered. */
  recheck(): Promise<void>;
}

export function trackPeerAddresses(options: PeerAddressesOptions): PeerAddresses {
  const { families, taken } = options;
  const agreed = agreedRanges(options.agreed, options.ownCidrs);
  const nodeIps = new NodeIps();
  const takenNow = () => taken().map(describeTaken).join();
  /** What all that is mirrored is held against. */
  let heldAgainst = takenNow();
  let judging = false;

  return {
    facts: () => ({ agreed, nodeIps, taken: taken() }),

    /** Entries and backends may be at nodes, which may have been told later than they. Judged once per batch of nodes. */
    onNode(name, value) {
      const decoded = value === undefined ? undefined : decodeNode(value.toString('utf8'));
      if (!nodeIps.set(name, decoded?.ok ? decoded.value : undefined) || judging) return;
      judging = true;
      queueMicrotask(() => {
        judging = false;
        for (const [family, mirror] of families()) if (family !== 'nodes') mirror.judgeAgain();
      });
    },

    async recheck() {
      const now = takenNow();
      if (now === heldAgainst) return;
      let isNodeWithdrawn = false;
      for (const [family, mirror] of families()) {
        if (family === 'nodes') isNodeWithdrawn = await mirror.recheck();
        // Where pods may be was agreed, and nothing else matters to what is not a node.
        else if (agreed === undefined || isNodeWithdrawn) await mirror.recheck();
      }
      heldAgainst = now;
    },
  };
}
