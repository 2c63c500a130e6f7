/**
 * Joins whose inviting cluster has yet to be brought its certificate. On disk, 0600 and until then only, because each holds its
 * invitation: an apiserver that is killed meanwhile goes on with them.
 *
 *   <stateDir>/joins/<peer>.json
 */
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { clusterNameProblem, MeshError, type RedeemInviteRequest } from '@clustermesh/contract';
import { atomicWrite, removeAbandonedWrites } from '@clustermesh/runtime';
import { z } from 'zod';

export interface UnfinishedJoin {
  /** The cluster that invited. */
  readonly peer: string;
  /** This side's connect: it makes the certificate. */
  readonly operation: string;
  /** Word for word as it was redeemed: the invitation answers nothing else. */
  readonly redeemed: RedeemInviteRequest;
}

export interface UnfinishedJoins {
  list(): readonly UnfinishedJoin[];
  keep(join: UnfinishedJoin): void;
  /** Removing the missing is success. */
  clear(join: UnfinishedJoin): void;
}

const schema = z.object({
  peer: z.string(),
  operation: z.string(),
  redeemed: z.custom<RedeemInviteRequest>((value) => typeof (value as RedeemInviteRequest | null)?.token === 'string'),
});

export function openUnfinishedJoins(stateDir: string): UnfinishedJoins {
  const dir = join(stateDir, 'joins');
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  removeAbandonedWrites(dir);

  function fileOf(peer: string): string {
    const problem = clusterNameProblem(peer);
    if (problem !== undefined) throw new MeshError({ code: 'invalid-argument', message: `naming a peer: ${problem}` });
    return join(dir, `${peer}.json`);
  }
  /** Undefined when there is none, or it is not one of this release. */
  function read(file: string): UnfinishedJoin | undefined {
    try {
      return schema.parse(JSON.parse(readFileSync(file, 'utf8')));
    } catch {
      return undefined;
    }
  }

  return {
    list: () =>
      readdirSync(dir)
        .filter((name) => name.endsWith('.json'))
        .flatMap((name) => read(join(dir, name)) ?? []),
    keep: (unfinished) => atomicWrite(fileOf(unfinished.peer), JSON.stringify(unfinished), 0o600),
    clear: ({ peer, operation }) => {
      const file = fileOf(peer);
      // A later join of the same cluster has a record of its own.
      if (read(file)?.operation === operation) rmSync(file, { force: true });
    },
  };
}
