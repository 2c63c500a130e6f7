import { MeshError } from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { createAuth } from './auth.ts';
import type { Connection, ConnectionSettings } from './connection.ts';
import { Connections } from './connections.ts';
import { type Answer, keyOf, toHeader, toKeyValue, toWireCompare, toWireOp } from './convert.ts';
import type { BesideAnswer, RangeAnswer } from './decode.ts';
import { resolveTargets } from './endpoints.ts';
import { openLease } from './leases.ts';
import type { WireHeader, WireTxnResponse } from './proto.ts';
import { FIRST_PAGE, nextPageSize, prefixRange, successor } from './ranges.ts';
import { abortable } from './signals.ts';
import type { CallOptions, Etcd, EtcdOptions, Header, KeyValue, PagesOptions, RangePage, TxnResult } from './types.ts';
import { WatchStream } from './watch-stream.ts';

const DEFAULT_REQUEST_TIMEOUT_MS = 10_000;
const DEFAULT_CONNECT_TIMEOUT_MS = 5_000;
const DEFAULT_KEEPALIVE = { timeMs: 15_000, timeoutMs: 10_000 };
const DEFAULT_PROGRESS_INTERVAL_MS = 5_000;

/** Opens nothing yet: the first request connects. */
export function openEtcd(options: EtcdOptions): Etcd {
  const clock = options.clock ?? systemClock;
  const targets = resolveTargets(options.endpoints, options.hostAliases ?? []);
  if (targets.some((target) => target.secure) && options.caFile === undefined) {
    throw new MeshError({
      code: 'invalid-config',
      message: `opening etcd ${options.endpoints.join(', ')}: https endpoints need caFile, certFile and keyFile`,
    });
  }
  const settings: ConnectionSettings = {
    caFile: options.caFile,
    certFile: options.certFile,
    keyFile: options.keyFile,
    connectTimeoutMs: options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS,
    requestTimeoutMs: options.requestTimeoutMs ?? DEFAULT_REQUEST_TIMEOUT_MS,
    keepalive: options.keepalive ?? DEFAULT_KEEPALIVE,
    clock,
  };
  const connections = new Connections({ ...settings, targets, log: options.log });
  const streams = new WeakMap<Connection, WatchStream>();
  const closed = new AbortController();
  let lastProofOfLifeAt: number | undefined;

  function observe(connection: Connection, header: WireHeader, linearizable: boolean): void {
    lastProofOfLifeAt = clock.nowMs();
    connections.observe(connection, header, linearizable);
  }

  async function acquire(attempted: string, wanted: CallOptions = {}): Promise<Connection> {
    const connection = await abortable(connections.acquire(), wanted.signal, attempted);
    if (wanted.connection === undefined || wanted.connection === connection.number) return connection;
    throw new MeshError({
      code: 'etcd-unreachable',
      message: `${attempted}: the connection that this belongs to was lost`,
    });
  }

  async function call<Response extends { readonly header: WireHeader }>(
    method: string,
    request: object,
    attempted: string,
    callOptions?: CallOptions,
  ): Promise<Response & Answer> {
    const connection = await acquire(attempted, callOptions);
    const response = await connection.unary<Response>(method, request, attempted, callOptions);
    observe(connection, response.header, method.startsWith('KV.'));
    return Object.assign(response, { connection: connection.number });
  }

  function streamOf(connection: Connection): WatchStream {
    const existing = streams.get(connection);
    if (existing !== undefined && !existing.ended) return existing;
    const stream = new WatchStream({
      connection,
      clock,
      progressIntervalMs: options.progressIntervalMs ?? DEFAULT_PROGRESS_INTERVAL_MS,
      observe: (header) => observe(connection, header, false),
    });
    streams.set(connection, stream);
    return stream;
  }

  async function getWithHeader(key: string, callOptions?: CallOptions) {
    const request = { key: Buffer.from(key), revision: callOptions?.revision ?? 0 };
    const response = await call<RangeAnswer>('KV.Range', request, `reading ${key}`, callOptions);
    return { kv: response.kvs[0], header: toHeader(response) };
  }

  async function* pages(prefix: string, callOptions?: PagesOptions): AsyncGenerator<RangePage, void, void> {
    const range = prefixRange(prefix);
    let largest = Number.POSITIVE_INFINITY;
    let header: Header | undefined;

    type Fetched = { readonly response: (RangeAnswer | BesideAnswer) & Answer; readonly limit: number };
    async function fetch(key: Buffer, wanted: number, beside?: string): Promise<Fetched> {
      const pinned = { ...callOptions, connection: header?.connection ?? callOptions?.connection };
      for (let limit = Math.min(wanted, largest); ; largest = limit) {
        const request = {
          key,
          range_end: range.range_end,
          limit,
          revision: header?.revision ?? callOptions?.revision ?? 0,
        };
        try {
          const attempted = `listing ${prefix}`;
          if (beside === undefined)
            return { response: await call<RangeAnswer>('KV.Range', request, attempted, pinned), limit };
          const success = [{ request_range: { key: Buffer.from(beside) } }, { request_range: request }];
          return { response: await call<BesideAnswer>('KV.RangeBeside', { success }, attempted, pinned), limit };
        } catch (error) {
          // The values outgrew the guess. This ends at 1: a single value always fits, etcd takes 1.5 MiB at most.
          if (!(error instanceof MeshError) || error.code !== 'etcd-too-large' || limit === 1) throw error;
          limit = Math.ceil(limit / 4);
        }
      }
    }

    let from = range.key;
    let next = fetch(from, FIRST_PAGE, callOptions?.beside);
    for (;;) {
      const { response, limit } = await next;
      header ??= toHeader(response);
      const { kvs, lastKey } = response;
      const isLast = !response.more || lastKey === undefined;
      if (!isLast) {
        // A server that goes round in circles would be listed for ever.
        if (lastKey.compare(from) < 0)
          throw new MeshError({ code: 'invalid-object', message: `listing ${prefix}: the keys come out of order` });
        from = successor(lastKey);
        const bytes = kvs.reduce((sum, kv) => sum + kv.key.length + kv.value.length + 48, 0);
        // etcd collects the next page while this one is being taken in.
        next = fetch(from, nextPageSize(limit, kvs.length, bytes));
        next.catch(() => {}); // Who stops here does not ask for it.
      }
      yield 'beside' in response ? { kvs, header, beside: response.beside } : { kvs, header };
      if (isLast) return;
    }
  }

  async function txn(request: Parameters<Etcd['txn']>[0], callOptions?: CallOptions): Promise<TxnResult> {
    const wire = {
      compare: (request.compare ?? []).map(toWireCompare),
      success: request.success.map(toWireOp),
      failure: (request.failure ?? []).map(toWireOp),
    };
    const first = request.success[0] ?? request.failure?.[0];
    const attempted = `a transaction of ${request.success.length} operations (first: ${first === undefined ? 'nothing' : keyOf(first)})`;
    const response = await call<WireTxnResponse>('KV.Txn', wire, attempted, callOptions);
    const ran = response.succeeded ? request.success : (request.failure ?? []);
    const gets = ran.flatMap((op, index) => {
      if (!('get' in op)) return [];
      const kv = response.responses[index]?.response_range?.kvs[0];
      return [kv && toKeyValue(kv)];
    });
    return { succeeded: response.succeeded, header: toHeader(response), gets };
  }

  return {
    endpoints: options.endpoints,
    get clusterId() {
      return connections.clusterId;
    },
    get epoch() {
      return connections.epoch;
    },
    get connected() {
      return connections.answering;
    },
    get connection() {
      return connections.answering ? connections.current?.number : undefined;
    },
    get lastProofOfLifeAt() {
      return lastProofOfLifeAt;
    },
    auth: createAuth(call),

    async get(key, callOptions) {
      return (await getWithHeader(key, callOptions)).kv;
    },
    getWithHeader,
    pages,
    async range(prefix, callOptions) {
      const kvs: KeyValue[] = [];
      let header: Header | undefined;
      for await (const page of pages(prefix, callOptions)) {
        for (const kv of page.kvs) kvs.push(kv);
        header = page.header;
      }
      return { kvs, header: header! };
    },
    async count(prefix, callOptions) {
      const request = { ...prefixRange(prefix), count_only: true };
      return (await call<RangeAnswer>('KV.Range', request, `counting ${prefix}`, callOptions)).count;
    },
    async put(key, value, callOptions) {
      const request = { key: Buffer.from(key), value: Buffer.from(value), lease: callOptions?.lease ?? '0' };
      return toHeader(await call<{ header: WireHeader }>('KV.Put', request, `writing ${key}`, callOptions));
    },
    async delete(key, callOptions) {
      const response = await call<{ header: WireHeader; deleted: string }>(
        'KV.DeleteRange',
        { key: Buffer.from(key) },
        `deleting ${key}`,
        callOptions,
      );
      return response.deleted !== '0';
    },
    async deletePrefix(prefix, callOptions) {
      const response = await call<{ header: WireHeader; deleted: string }>(
        'KV.DeleteRange',
        prefixRange(prefix),
        `deleting everything under ${prefix}`,
        callOptions,
      );
      return Number(response.deleted);
    },
    txn,
    async createOnly(entries, callOptions) {
      const keys = [...entries.keys()];
      const result = await txn(
        {
          compare: keys.map((key) => ({ key, absent: true as const })),
          success: [...entries].map(([key, value]) => ({ put: key, value })),
          failure: keys.map((key) => ({ get: key })),
        },
        callOptions,
      );
      return { created: result.succeeded, existing: result.gets };
    },
    lease: (request, callOptions) =>
      openLease(
        { acquire: () => connections.acquire(), call, log: options.log, clock, closed: closed.signal },
        request,
        callOptions,
      ),
    async watch(request) {
      let connection: Connection;
      try {
        connection = await acquire(`watching ${request.prefix}`, request);
      } catch (error) {
        if (request.signal.aborted) return;
        throw error;
      }
      await streamOf(connection).watch(request);
    },
    async compact(revision) {
      await call('KV.Compact', { revision, physical: true }, `compacting etcd up to revision ${revision}`);
    },
    async status(callOptions) {
      type Status = { header: WireHeader; version: string; dbSize: string };
      const response = await call<Status>('Maintenance.Status', {}, 'asking etcd for its status', callOptions);
      const endpoint = connections.current?.target.label ?? options.endpoints.join(', ');
      return { endpoint, version: response.version, dbSizeBytes: Number(response.dbSize), ...toHeader(response) };
    },
    onEvent: (listener) => connections.onEvent(listener),
    reconnect(reason) {
      connections.current?.fail(new MeshError({ code: 'etcd-unreachable', message: `talking to etcd: ${reason}` }));
    },
    async close() {
      closed.abort();
      connections.close();
    },
  };
}
