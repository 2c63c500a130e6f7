/** The transactions of a writer: fenced, and with the leases of their keys. */
import { MeshError } from '@clustermesh/contract';
import type { LeasePool } from './lease-pool.ts';
import type { Compare, Etcd } from './types.ts';
import type { Operation } from './writer-plan.ts';
import type { WriterOptions } from './writer-types.ts';

export interface TransactionOptions extends Pick<WriterOptions, 'fence' | 'leadership' | 'signal'> {
  readonly etcd: Etcd;
  /** Undefined: keys hang on no lease. */
  readonly pool: LeasePool | undefined;
}

export interface Written {
  readonly revision: number;
  /** The leases that the keys were put with. */
  readonly leases: ReadonlyMap<string, string | undefined> | undefined;
}

export interface Transactions {
  /** What has to hold in etcd for this writer to write; throws while somebody else leads. `keys`: how many wait, for people. */
  fence(keys: number): readonly Compare[];
  /** Everything or nothing, on `connection` only. Throws `conflict` when the fence does not hold. */
  send(batch: readonly Operation[], connection: number | undefined): Promise<Written>;
}

export function transactionsOf(options: TransactionOptions): Transactions {
  const { etcd, leadership, pool, signal } = options;

  function fence(keys: number): readonly Compare[] {
    const own = options.fence?.() ?? [];
    if (leadership === undefined) return own;
    const leading = leadership.fence();
    if (leading !== undefined) return [...own, ...leading];
    throw new MeshError({
      code: 'conflict',
      message: `writing ${keys} keys: standing by, ${leadership.holder ?? 'nobody'} leads`,
    });
  }

  async function send(batch: readonly Operation[], connection: number | undefined): Promise<Written> {
    const compare = fence(batch.length);
    const puts = batch.filter(({ value }) => value !== undefined).map(({ key }) => key);
    await pool?.assign(puts, signal);
    const leases = pool === undefined ? undefined : new Map(puts.map((key) => [key, pool.idOf(key)]));
    const success = batch.map(({ key, value }) =>
      value === undefined ? { delete: key } : { put: key, value, lease: leases?.get(key) },
    );
    const result = await etcd.txn({ compare, success }, { signal, connection });
    if (!result.succeeded) {
      throw new MeshError({
        code: 'conflict',
        message: `writing ${batch.length} keys: the fence (${compare.map((entry) => entry.key).join(', ')}) does not hold`,
        hint: 'another writer has taken over',
      });
    }
    return { revision: result.header.revision, leases };
  }

  return { fence, send };
}
