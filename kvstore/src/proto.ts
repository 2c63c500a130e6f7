/**
 * etcd's wire messages. etcd3 (dormant since 2023) is used for its .proto files alone: its connection pool can neither re-read
 * certificates nor tell which etcd answered nor notice a dead connection, which are the things this room is for.
 * Its enum names are written `Put`, not `PUT` as in etcd's own files; the loader turns a name it does not know into 0 in silence.
 */

import { createRequire } from 'node:module';
import type { MethodDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { decodeBeside, decodeRange, decodeWatch } from './decode.ts';

export interface WireHeader {
  readonly cluster_id: string;
  readonly revision: string;
}

export interface WireKeyValue {
  readonly key: Buffer;
  readonly value: Buffer;
  readonly create_revision: string;
  readonly mod_revision: string;
  readonly version: string;
  readonly lease: string;
}

export interface WireRangeRequest {
  readonly key: Buffer;
  readonly range_end?: Buffer | undefined;
  readonly limit?: number | undefined;
  readonly revision?: number | undefined;
  readonly count_only?: boolean | undefined;
}

export interface WireRangeResponse {
  readonly header: WireHeader;
  readonly kvs: WireKeyValue[];
  readonly more: boolean;
  readonly count: string;
}

export interface WireCompare {
  readonly result: 'Equal';
  readonly target: 'Version' | 'Value' | 'Mod' | 'Create';
  readonly key: Buffer;
  readonly version?: number;
  readonly value?: Buffer;
  readonly mod_revision?: number;
  readonly create_revision?: number;
}

export type WireRequestOp =
  | { readonly request_put: { readonly key: Buffer; readonly value: Buffer; readonly lease?: string | undefined } }
  | { readonly request_delete_range: { readonly key: Buffer; readonly range_end?: Buffer } }
  | { readonly request_range: WireRangeRequest };

export interface WireTxnResponse {
  readonly header: WireHeader;
  readonly succeeded: boolean;
  readonly responses: { readonly response_range?: WireRangeResponse }[];
}

export interface WireWatchRequest {
  readonly create_request?: {
    readonly key: Buffer;
    readonly range_end?: Buffer | undefined;
    readonly start_revision: number;
    readonly watch_id: string;
    readonly fragment: boolean;
  };
  readonly cancel_request?: { readonly watch_id: string };
  readonly progress_request?: Record<string, never>;
}

export interface WirePermission {
  readonly permType: 'Read' | 'Write' | 'Readwrite';
  readonly key: Buffer;
  readonly range_end: Buffer;
}

// biome-ignore lint/suspicious/noExplicitAny: the loader knows the messages only at run time; callers name request and response.
type AnyMethod = MethodDefinition<any, any>;

let services: Map<string, AnyMethod> | undefined;

function loadServices(): Map<string, AnyMethod> {
  const file = createRequire(import.meta.url).resolve('etcd3/proto/rpc.proto');
  // Longs as strings: cluster and lease ids use all 64 bits.
  const definition = loadSync(file, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true });
  const methods = new Map<string, AnyMethod>();
  for (const [name, service] of Object.entries(definition)) {
    if ('format' in service) continue;
    for (const [method, entry] of Object.entries(service))
      methods.set(`${name.replace('etcdserverpb.', '')}.${method}`, entry);
  }
  for (const [name, of, decode] of [
    ['KV.Range', 'KV.Range', decodeRange],
    // A transaction that does nothing but read a key and a page.
    ['KV.RangeBeside', 'KV.Txn', decodeBeside],
    ['Watch.Watch', 'Watch.Watch', decodeWatch],
  ] as const) {
    methods.set(name, { ...methods.get(of)!, responseDeserialize: decode });
  }
  const userAdd = methods.get('Auth.UserAdd')!;
  methods.set('Auth.UserAdd', {
    ...userAdd,
    requestSerialize: (request) => withoutPassword(userAdd.requestSerialize(request)),
  });
  return methods;
}

/**
 * etcd3's .proto is older than `AuthUserAddRequest.options` (field 3) with `no_password` (its field 1), without which etcd refuses a
 * user that has no password. Protobuf fields may come in any order, so the option is appended: tag 3 length 2, tag 1 true.
 */
function withoutPassword(serialized: Buffer): Buffer {
  return Buffer.concat([serialized, Buffer.from([0x1a, 0x02, 0x08, 0x01])]);
}

/** `rpc('KV.Range')`. */
export function rpc(name: string): AnyMethod {
  services ??= loadServices();
  const method = services.get(name);
  if (method === undefined) throw new Error(`etcd's .proto has no method ${name}`);
  return method;
}
