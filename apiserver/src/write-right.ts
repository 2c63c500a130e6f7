/** The right to write: one replica of several has it, and only in an etcd that has been bootstrapped. etcd checks it in every transaction. */
import { MeshError } from '@clustermesh/contract';
import type { Compare, Etcd, Leadership, TxnOp } from '@clustermesh/kvstore';

export interface WriteRight {
  /** What holds in every etcd that has been bootstrapped. */
  readonly fence: () => readonly Compare[];
  readonly leadership: Leadership;
}

/** All of it or nothing, and nothing unless this replica still leads. `attempted` reads: removing the data of cluster us. */
export async function fencedWrite(
  etcd: Etcd,
  right: WriteRight,
  success: readonly TxnOp[],
  options: { readonly attempted: string; readonly signal: AbortSignal },
): Promise<void> {
  const leading = right.leadership.fence();
  if (leading === undefined) throw refused(options.attempted, `${right.leadership.holder ?? 'nobody'} leads`);
  const compare = [...right.fence(), ...leading];
  const { succeeded } = await etcd.txn({ compare, success }, { signal: options.signal });
  if (!succeeded) throw refused(options.attempted, 'another replica has taken over, or this etcd is a new one');
}

function refused(attempted: string, why: string): MeshError {
  return new MeshError({ code: 'conflict', message: `${attempted}: not while standing by (${why})`, retryable: true });
}
