/** What the leader does now and then. Users and roles are compared by bootstrap, mirrored keys by their writers, all the time. */
import type { Invites } from '../invites/index.ts';
import type { Operations } from './operations.ts';
import type { ScheduledTask } from './schedule.ts';

const MINUTE_MS = 60_000;

export function housekeeping(ports: {
  readonly invites: Pick<Invites, 'sweep'>;
  readonly operations: Pick<Operations, 'sweepPending'>;
  /** peer-renewal.ts */
  readonly renewPeers: () => Promise<string | undefined>;
  readonly renewPeersEveryMs: number;
  /** doctor/audit.ts */
  readonly audit: () => Promise<string | undefined>;
}): ScheduledTask[] {
  return [
    { name: 'audit', everyMs: 10 * MINUTE_MS, run: ports.audit },
    { name: 'renew-peers', everyMs: ports.renewPeersEveryMs, run: ports.renewPeers },
    {
      name: 'sweep-invites',
      everyMs: 10 * MINUTE_MS,
      run: async () => {
        const count = await ports.invites.sweep();
        return count === 0 ? undefined : `${count} invitations that ended a day ago were removed`;
      },
    },
    {
      name: 'sweep-pending',
      everyMs: 60 * MINUTE_MS,
      run: async () => {
        const peers = ports.operations.sweepPending();
        return peers.length === 0
          ? undefined
          : `keys for connects that nobody went on with were removed: ${peers.join(', ')}`;
      },
    },
  ];
}
