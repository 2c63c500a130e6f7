/** The two calls that a remote reader makes, straight on gRPC. Every answer is held against the answers before it. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import {
  Client,
  type ClientDuplexStream,
  credentials,
  Metadata,
  type MethodDefinition,
  type ServiceError,
} from '@grpc/grpc-js';
import { loadSync, type ServiceDefinition } from '@grpc/proto-loader';
import type { Report } from './report.ts';

export interface Header {
  readonly clusterId: string;
  readonly revision: number;
}

export interface KeyValue {
  readonly key: string;
  readonly value: Buffer;
  readonly createRevision: number;
  readonly modRevision: number;
}

export interface Page {
  readonly header: Header;
  readonly kvs: readonly KeyValue[];
  readonly more: boolean;
}

export interface WatchAnswer {
  readonly header: Header;
  readonly created: boolean;
  readonly canceled: boolean;
  readonly compactRevision: number;
  readonly reason: string;
  readonly fragment: boolean;
  readonly events: readonly { readonly type: 'PUT' | 'DELETE'; readonly kv: KeyValue }[];
}

export interface ConnectOptions {
  readonly endpoint: string;
  readonly caFile?: string | undefined;
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  /** The name in the server's certificate, where the endpoint is an address. */
  readonly serverName?: string | undefined;
}

export interface EtcdClient {
  range(request: { key: string; end?: string; limit?: number; revision?: number }): Promise<Page>;
  /** Ends with the answer that says why, or with the stream's error. `onAnswer` returning false ends it too. */
  watch(
    request: { key: string; end: string; startRevision: number; signal: AbortSignal },
    onAnswer: (answer: WatchAnswer) => boolean,
  ): Promise<void>;
  /** Changes when another etcd answered than the one before: whatever was read is void. */
  readonly epoch: number;
  readonly clusterId: string | undefined;
  close(): void;
}

/** Another etcd answered than the one that the session belongs to. */
export class ClusterChanged extends Error {}

// biome-ignore lint/suspicious/noExplicitAny: the loader knows the messages only at run time; they are converted right here.
type Wire = any;

const definition = loadSync(fileURLToPath(new URL('../proto/etcd.proto', import.meta.url)), {
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
});
const method = (service: string, name: string) =>
  (definition[`etcdserverpb.${service}`] as ServiceDefinition)[name] as MethodDefinition<Wire, Wire>;
const RANGE = method('KV', 'Range');
const WATCH = method('Watch', 'Watch');

const REQUEST_TIMEOUT_MS = 10_000;

function fromWire(kv: Wire): KeyValue {
  return {
    key: kv.key.toString('utf8'),
    value: kv.value,
    createRevision: Number(kv.create_revision),
    modRevision: Number(kv.mod_revision),
  };
}

export function connect(options: ConnectOptions, report: Report): EtcdClient {
  const url = new URL(options.endpoint);
  const read = (file: string | undefined) => (file === undefined ? null : readFileSync(file));
  const secure = url.protocol === 'https:';
  const client = new Client(
    url.host,
    secure
      ? credentials.createSsl(read(options.caFile), read(options.keyFile), read(options.certFile))
      : credentials.createInsecure(),
    {
      // Go's etcd client takes answers of any size; a page may hold 256 values of up to 1.5 MiB.
      'grpc.max_receive_message_length': -1,
      'grpc.initial_reconnect_backoff_ms': 50,
      'grpc.max_reconnect_backoff_ms': 2_000,
      'grpc.keepalive_time_ms': 15_000,
      'grpc.keepalive_timeout_ms': 25_000,
      ...(options.serverName === undefined ? {} : { 'grpc.ssl_target_name_override': options.serverName }),
    },
  );
  let clusterId: string | undefined;
  let epoch = 0;
  let highest = 0;

  /** `atLeast`: what had been seen when the question was asked; a linearizable read cannot answer from before it. */
  const checkHeader = (wire: Wire, asked: { epoch: number; atLeast: number }, what: string): Header => {
    const header = { clusterId: String(wire.cluster_id), revision: Number(wire.revision) };
    if (header.clusterId === '0') report.violation('header', what, 'answer without a cluster id');
    if (clusterId !== undefined && header.clusterId !== clusterId) {
      report.restart(what, `etcd cluster id changed from ${clusterId} to ${header.clusterId}`);
      epoch++;
      highest = 0;
    }
    clusterId = header.clusterId;
    if (asked.epoch !== epoch) throw new ClusterChanged(`another etcd answered (${what})`);
    if (header.revision < asked.atLeast) {
      report.violation(
        'revision',
        what,
        `etcd ${clusterId} answers at revision ${header.revision} after ${asked.atLeast}: it went backwards under the same cluster id`,
      );
      // As after any rebuilt store: what was read before is void.
      epoch++;
      highest = header.revision;
      throw new ClusterChanged(`the revision went backwards (${what})`);
    }
    highest = Math.max(highest, header.revision);
    return header;
  };

  return {
    get epoch() {
      return epoch;
    },
    get clusterId() {
      return clusterId;
    },
    range({ key, end, limit = 0, revision = 0 }) {
      // An empty range_end that is there at all means "every key from this one on" to etcd, so it must not be there.
      const range_end = end === undefined ? undefined : Buffer.from(end);
      const request = { key: Buffer.from(key), range_end, limit, revision };
      const asked = { epoch, atLeast: highest };
      return new Promise((resolve, reject) => {
        client.makeUnaryRequest(
          RANGE.path,
          RANGE.requestSerialize,
          RANGE.responseDeserialize,
          request,
          new Metadata(),
          { deadline: Date.now() + REQUEST_TIMEOUT_MS },
          (error: ServiceError | null, answer?: Wire) => {
            if (error !== null) return reject(error);
            try {
              const header = checkHeader(answer.header, asked, `range ${key}`);
              resolve({ header, kvs: answer.kvs.map(fromWire), more: answer.more });
            } catch (problem) {
              reject(problem);
            }
          },
        );
      });
    },
    watch({ key, end, startRevision, signal }, onAnswer) {
      const metadata = new Metadata();
      // Without it a member that was cut off from its leader keeps a silent stream open.
      metadata.set('hasleader', 'true');
      const asked = { epoch, atLeast: 0 };
      return new Promise((resolve, reject) => {
        const stream: ClientDuplexStream<Wire, Wire> = client.makeBidiStreamRequest(
          WATCH.path,
          WATCH.requestSerialize,
          WATCH.responseDeserialize,
          metadata,
        );
        const finish = (settle: () => void) => {
          signal.removeEventListener('abort', abort);
          stream.cancel();
          settle();
        };
        const abort = () => finish(resolve);
        signal.addEventListener('abort', abort, { once: true });
        stream.on('error', (error) => finish(() => (signal.aborted ? resolve() : reject(error))));
        stream.on('end', () => finish(resolve));
        stream.on('data', (wire: Wire) => {
          try {
            // A cancellation may carry the revision 0 (etcd sends one for a compacted start).
            const from = wire.canceled ? { ...wire.header, revision: asked.atLeast } : wire.header;
            const header = checkHeader(from, asked, `watch ${key}`);
            // Later answers of one stream never go back; other streams may be ahead of it or behind.
            asked.atLeast = header.revision;
            const goOn = onAnswer({
              header,
              created: wire.created,
              canceled: wire.canceled,
              compactRevision: Number(wire.compact_revision),
              reason: wire.cancel_reason,
              fragment: wire.fragment,
              events: wire.events.map((event: Wire) => ({ type: event.type, kv: fromWire(event.kv) })),
            });
            if (!goOn) finish(resolve);
          } catch (error) {
            finish(() => reject(error));
          }
        });
        stream.write({
          create_request: { key: Buffer.from(key), range_end: Buffer.from(end), start_revision: startRevision },
        });
        if (signal.aborted) abort();
      });
    },
    close: () => client.close(),
  };
}

/** The range that covers every key that starts with `prefix`: its last byte plus one (`cilium/state/` → `cilium/state0`). */
export function prefixEnd(prefix: string): string {
  return prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
}
