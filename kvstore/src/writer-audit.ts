import type { Etcd, KeyValue } from './types.ts';
import { type Actual, MAX_OPERATIONS } from './writer-plan.ts';

export interface ReadOptions {
  readonly etcd: Etcd;
  readonly owned: readonly string[];
  /** Keys outside of the owned prefixes, looked up one by one. */
  readonly others: readonly string[];
  readonly signal: AbortSignal;
}

/** Rows in pieces, all from one connection. `prefix`: the owned prefix that they lie under. */
export interface Piece {
  readonly kvs: readonly KeyValue[];
  readonly prefix: string | undefined;
  readonly connection: number;
}

/** All that is under the owned prefixes, and the others that are there. */
export async function* readPieces(
  options: ReadOptions & { readonly connection?: number | undefined },
): AsyncGenerator<Piece, void, void> {
  const { etcd, others, signal } = options;
  let { connection } = options;
  for (const prefix of options.owned) {
    for await (const { kvs, header } of etcd.pages(prefix, { signal, connection })) {
      ({ connection } = header);
      yield { kvs, prefix, connection };
    }
  }
  for (let i = 0; i < others.length; i += MAX_OPERATIONS) {
    const success = others.slice(i, i + MAX_OPERATIONS).map((key) => ({ get: key }));
    const { gets, header } = await etcd.txn({ success }, { signal, connection });
    ({ connection } = header);
    yield { kvs: gets.filter((kv) => kv !== undefined), prefix: undefined, connection };
  }
}

export interface AuditOptions extends ReadOptions {
  readonly connection: number | undefined;
  /** What the writer believes to be in etcd. */
  readonly applied: ReadonlyMap<string, Buffer>;
  /** Keys written since the audit began: which of both came first is not known. */
  readonly touched: ReadonlySet<string>;
  readonly leaseFits: (kv: KeyValue) => boolean;
}

export interface AuditResult {
  /** By key: what is there in place of what was believed; undefined: nothing. */
  readonly found: ReadonlyMap<string, Actual | undefined>;
  /** Per owned prefix the highest mod_revision. */
  readonly revisions: ReadonlyMap<string, number>;
}

/** Holds what a writer believes against a list, while the writer goes on. Values are compared and let go piece by piece. */
export async function auditWritten(options: AuditOptions): Promise<AuditResult> {
  const { applied, touched, leaseFits } = options;
  const found = new Map<string, Actual | undefined>();
  const revisions = new Map<string, number>();
  const seen = new Set<string>();
  for await (const { kvs, prefix } of readPieces(options)) {
    for (const kv of kvs) {
      seen.add(kv.key);
      if (prefix !== undefined) revisions.set(prefix, Math.max(revisions.get(prefix) ?? 0, kv.modRevision));
      const fits = leaseFits(kv);
      // The copy lets go of the page that the value is a part of.
      if (!fits || applied.get(kv.key)?.equals(kv.value) !== true)
        found.set(kv.key, { value: Buffer.from(kv.value), leaseFits: fits });
    }
  }
  for (const key of applied.keys()) if (!seen.has(key)) found.set(key, undefined);
  for (const key of touched) found.delete(key);
  return { found, revisions };
}
