/**
 * Whether this cluster connects with others at all: `clustermesh enable` and `disable`. A key in its own etcd, so that all replicas know,
 * and a cluster whose etcd is made anew begins enabled.
 */
import { MESH_DISABLED_KEY, MeshError } from '@clustermesh/contract';
import type { Compare, Etcd } from '@clustermesh/kvstore';
import type { Invites } from '../invites/index.ts';
import type { MirrorView, PeerDirectory } from '../ports.ts';
import type { Operations } from './operations.ts';

export interface MeshSwitch {
  isDisabled(): Promise<boolean>;
  /** Throws when the cluster is disabled. */
  check(attempted: string): Promise<void>;
  /** Idempotent, as is its opposite. */
  set(isDisabled: boolean): Promise<void>;
}

export function createMeshSwitch(options: {
  readonly cluster: string;
  readonly etcd: Etcd;
  /** Holds only in an etcd that has been bootstrapped. */
  readonly fence: () => readonly Compare[];
}): MeshSwitch {
  const { cluster, etcd, fence } = options;
  const isDisabled = async () => (await etcd.get(MESH_DISABLED_KEY)) !== undefined;
  return {
    isDisabled,
    check: async (attempted) => {
      if (!(await isDisabled())) return;
      throw new MeshError({
        code: 'conflict',
        message: `${attempted}: clustermesh is disabled on ${cluster}`,
        hint: `clustermesh enable --context ${cluster}`,
      });
    },
    set: async (isToBeDisabled) => {
      const { succeeded } = await etcd.txn({
        compare: fence(),
        success: [
          isToBeDisabled ? { put: MESH_DISABLED_KEY, value: new Date().toISOString() } : { delete: MESH_DISABLED_KEY },
        ],
      });
      if (succeeded) return;
      throw new MeshError({
        code: 'etcd-unreachable',
        message: `${isToBeDisabled ? 'disabling' : 'enabling'} clustermesh on ${cluster}: its etcd is not set up yet`,
        hint: 'try again when clustermesh status shows etcd connected',
      });
    },
  };
}

export interface Parting {
  readonly peer: string;
  /** Its disconnect. */
  readonly id: string;
}

export interface DisablePorts {
  readonly mesh: MeshSwitch;
  readonly invites: Pick<Invites, 'list' | 'revoke'>;
  readonly operations: Pick<Operations, 'list' | 'startDisconnect'>;
  readonly directory: Pick<PeerDirectory, 'list'>;
  readonly mirror: Pick<MirrorView, 'peers'>;
  /** Peers that may read this cluster: one that is only served is known by nothing else. */
  readonly admitted: () => readonly string[];
}

/** Connects with nobody from now on, voids open invitations, and starts parting from every peer. Safe to be called again at any point. */
export async function disableMesh(ports: DisablePorts): Promise<Parting[]> {
  // First: nothing may begin behind our back.
  await ports.mesh.set(true);
  for (const { facts, state } of await ports.invites.list())
    if (state === 'open' || state === 'redeemed') await ports.invites.revoke(facts.id);
  const beginning = (await ports.operations.list()).filter(
    ({ kind, state }) => kind === 'connect' && (state === 'active' || state === 'waiting'),
  );
  const peers = new Set([
    ...(await ports.directory.list()).map(({ name }) => name),
    ...ports.mirror.peers().map(({ cluster }) => cluster),
    ...ports.admitted(),
    ...beginning.map(({ peer }) => peer),
  ]);
  const partings: Parting[] = [];
  for (const peer of [...peers].sort()) partings.push({ peer, id: await ports.operations.startDisconnect(peer) });
  return partings;
}
