import assert from 'node:assert/strict';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { startReflector } from '../reflector.ts';
import type { Etcd, EtcdOptions, Reflector, ReflectorOptions } from '../types.ts';
import { startWriter } from '../writer.ts';
import type { Writer, WriterOptions } from '../writer-types.ts';
import type { EtcdServer } from './etcd-server.ts';
import { type MemorySink, memorySink } from './memory-sink.ts';
import type { TcpProxy } from './proxy.ts';

export interface ReplicaOptions {
  readonly prefix: string;
  readonly writer?: Partial<WriterOptions>;
  readonly reader?: Partial<ReflectorOptions>;
  readonly client?: Partial<EtcdOptions>;
}

/** A writer and a reader with a proxy before each, and what must hold whatever happens between them. */
export interface Replica extends AsyncDisposable {
  readonly writer: Writer;
  readonly reflector: Reflector;
  readonly sink: MemorySink;
  readonly links: Readonly<Record<'writer' | 'reader', TcpProxy & { readonly endpoint: string }>>;
  /** The reader's client. */
  readonly etcd: Etcd;
  set(name: string, value: string): void;
  delete(name: string): void;
  /** Flushes and waits until the reader shows exactly what the writer wants and etcd has, and that nothing wanted was ever removed. */
  converged(timeoutMs?: number): Promise<void>;
  stopWriter(): Promise<void>;
}

export async function startReplica(server: EtcdServer, options: ReplicaOptions): Promise<Replica> {
  const { prefix } = options;
  const canaryKey = `synced/${prefix}`;
  const links = { writer: await server.proxy(), reader: await server.proxy() };
  const stop = { writer: new AbortController(), reader: new AbortController() };
  const client = (name: 'writer' | 'reader') => server.client({ endpoints: [links[name].endpoint], ...options.client });
  const [writing, reading] = [client('writer'), client('reader')];
  const common = { log: silentLog(), backoff: { minMs: 10, maxMs: 100 } };
  const wanted = new Map<string, string>();
  /** Since when the reader has had it, without a moment of not being wanted. */
  const due = new Set<string>();
  const violations: string[] = [];
  const sink = memorySink();
  const apply = sink.apply.bind(sink);
  sink.apply = (batch) => {
    for (const key of batch.removes) if (due.has(key)) violations.push(key);
    for (const { key, value } of batch.upserts) if (wanted.get(key) === value.toString()) due.add(key);
    apply(batch);
  };
  const writer = startWriter({
    ...common,
    ...{ etcd: writing, owned: [prefix], auditIntervalMs: 0, signal: stop.writer.signal },
    ...options.writer,
  });
  writer.ready(prefix);
  writer.canary(canaryKey, () => String(performance.now()));
  const reflector = startReflector({
    ...common,
    ...{ etcd: reading, prefix, canaryKey, sink, signal: stop.reader.signal },
    ...options.reader,
  });
  const stopWriter = async () => {
    stop.writer.abort();
    await writer.done;
  };
  const sorted = () => Object.fromEntries([...wanted].sort(([a], [b]) => (a < b ? -1 : 1)));

  return {
    ...{ writer, reflector, sink, links, etcd: reading, stopWriter },
    set(name, value) {
      wanted.set(prefix + name, value);
      writer.set(prefix + name, value);
    },
    delete(name) {
      due.delete(prefix + name);
      wanted.delete(prefix + name);
      writer.delete(prefix + name);
    },
    async converged(timeoutMs = 20_000) {
      let isFlushed = false;
      writer.flush().then(() => (isFlushed = true), assert.fail);
      const flushed = { what: `the writer, ${JSON.stringify(writer.status())}`, timeoutMs, intervalMs: 5 };
      await waitFor(() => isFlushed, flushed);
      const expected = JSON.stringify(sorted());
      await waitFor(() => reflector.status().synced && JSON.stringify(sink.contents()) === expected, {
        what: `the reader to have ${wanted.size} rows; it has ${sink.rows.size}, ${JSON.stringify(reflector.status())}`,
        timeoutMs,
        intervalMs: 10,
      });
      const { kvs } = await server.client().range(prefix);
      assert.deepEqual(Object.fromEntries(kvs.map((kv) => [kv.key, kv.value.toString()])), sorted());
      assert.deepEqual(violations, [], 'rows that were wanted all along were removed');
    },
    async [Symbol.asyncDispose]() {
      stop.reader.abort();
      await Promise.all([stopWriter(), reflector.done]);
      await Promise.all([writing.close(), reading.close(), links.writer.close(), links.reader.close()]);
    },
  };
}
