/** Between etcd's wire messages and the shapes of types.ts: pure. */

import type { WireCompare, WireHeader, WireKeyValue, WireRequestOp } from './proto.ts';
import { prefixRange } from './ranges.ts';
import type { Compare, Header, KeyValue, TxnOp } from './types.ts';

/** What `call` adds to every answer. */
export interface Answer {
  readonly header: WireHeader;
  readonly connection: number;
}

export function toHeader({ header, connection }: Answer): Header {
  return { clusterId: header.cluster_id, revision: Number(header.revision), connection };
}

export function toKeyValue(kv: WireKeyValue): KeyValue {
  return {
    key: kv.key.toString(),
    value: kv.value,
    createRevision: Number(kv.create_revision),
    modRevision: Number(kv.mod_revision),
    version: Number(kv.version),
    lease: kv.lease,
  };
}

export function toWireCompare(compare: Compare): WireCompare {
  const key = Buffer.from(compare.key);
  if ('absent' in compare) return { result: 'Equal', target: 'Version', key, version: 0 };
  if ('value' in compare) return { result: 'Equal', target: 'Value', key, value: Buffer.from(compare.value) };
  if ('modRevision' in compare) return { result: 'Equal', target: 'Mod', key, mod_revision: compare.modRevision };
  return { result: 'Equal', target: 'Create', key, create_revision: compare.createRevision };
}

export function toWireOp(op: TxnOp): WireRequestOp {
  if ('put' in op) return { request_put: { key: Buffer.from(op.put), value: Buffer.from(op.value), lease: op.lease } };
  if ('delete' in op) return { request_delete_range: { key: Buffer.from(op.delete) } };
  if ('deletePrefix' in op) return { request_delete_range: prefixRange(op.deletePrefix) };
  return { request_range: { key: Buffer.from(op.get) } };
}

export function keyOf(op: TxnOp): string {
  if ('put' in op) return op.put;
  if ('delete' in op) return op.delete;
  return 'get' in op ? op.get : op.deletePrefix;
}
