import { MeshError } from '@clustermesh/contract';
import type { Clock } from '@clustermesh/runtime';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import type { Connection } from './connection.ts';
import type { WatchAnswer } from './decode.ts';
import { toMeshError, watchCancelError } from './errors.ts';
import type { WireHeader, WireWatchRequest } from './proto.ts';
import { prefixRange } from './ranges.ts';
import type { Header, WatchRequest } from './types.ts';

interface Watcher {
  readonly request: WatchRequest;
  readonly attempted: string;
  created: boolean;
  end(error?: MeshError): void;
}

export interface WatchStreamOptions {
  readonly connection: Connection;
  readonly clock: Clock;
  readonly progressIntervalMs: number;
  observe(header: WireHeader): void;
}

/** Progress requests that may stay unanswered, once the server has shown that it answers them at all. */
const MAX_UNANSWERED = 2;

/**
 * All watches of one connection over one gRPC stream (an agent follows about eight prefixes, a mirror six per peer). Watch ids are
 * chosen here, so an answer finds its watcher without relying on order. A quiet stream is asked for progress, which is the only
 * proof that *watches* are served; a server that never answered one (it need not) is asked for a key instead.
 */
export class WatchStream {
  readonly #options: WatchStreamOptions;
  readonly #stream: ClientDuplexStream<WireWatchRequest, WatchAnswer>;
  readonly #watchers = new Map<string, Watcher>();
  readonly #timer: NodeJS.Timeout;
  #nextId = 1;
  #unanswered = 0;
  #answersProgress = false;
  #probing = false;
  #receivedSinceTick = true;
  #ended: MeshError | undefined;

  constructor(options: WatchStreamOptions) {
    this.#options = options;
    this.#stream = options.connection.duplex('Watch.Watch', true);
    this.#stream.on('data', (response: WatchAnswer) => this.#receive(response));
    this.#stream.on('error', (error) => this.#end(options.connection.lost ?? toMeshError(error, 'watching')));
    this.#stream.on('end', () =>
      this.#end(new MeshError({ code: 'etcd-unreachable', message: 'watching: etcd ended the watch stream' })),
    );
    this.#timer = setInterval(() => this.#tick(), options.progressIntervalMs);
    this.#timer.unref();
  }

  get ended(): boolean {
    return this.#ended !== undefined;
  }

  watch(request: WatchRequest): Promise<void> {
    const attempted = `watching ${request.prefix} from revision ${request.startRevision}`;
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    if (request.signal.aborted) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const id = String(this.#nextId++);
      const onAbort = () => {
        watcher.end();
        this.#stream.write({ cancel_request: { watch_id: id } });
      };
      const watcher: Watcher = {
        request,
        attempted,
        created: false,
        end: (error) => {
          this.#watchers.delete(id);
          request.signal.removeEventListener('abort', onAbort);
          if (error === undefined) resolve();
          else reject(error);
        },
      };
      this.#watchers.set(id, watcher);
      request.signal.addEventListener('abort', onAbort, { once: true });
      const range = request.exact === true ? { key: Buffer.from(request.prefix) } : prefixRange(request.prefix);
      this.#stream.write({
        create_request: { ...range, start_revision: request.startRevision, watch_id: id, fragment: true },
      });
    });
  }

  #receive(response: WatchAnswer): void {
    this.#unanswered = 0;
    this.#receivedSinceTick = true;
    try {
      this.#options.connection.observe(response.header);
    } catch {
      return; // Another etcd: the connection has failed itself and ends this stream.
    }
    this.#options.observe(response.header);
    const watcher = this.#watchers.get(response.watchId) ?? this.#refusedWatcher(response);
    if (watcher === undefined) {
      if (response.watchId === '-1' && !response.created && !response.canceled) this.#progress();
      return;
    }
    this.#dispatch(watcher, response);
  }

  /** etcd 3.5 refuses a create with watch id -1; answers to creates come in order, so it means the oldest that waits. */
  #refusedWatcher(response: WatchAnswer): Watcher | undefined {
    if (response.watchId !== '-1' || !response.canceled) return undefined;
    for (const watcher of this.#watchers.values()) if (!watcher.created) return watcher;
    return undefined;
  }

  #dispatch(watcher: Watcher, response: WatchAnswer): void {
    const { request, attempted } = watcher;
    const compacted = response.compactRevision;
    if (response.canceled || compacted > 0) {
      watcher.end(watchCancelError(response.cancelReason, compacted, attempted));
      return;
    }
    const header: Header = {
      clusterId: response.header.cluster_id,
      revision: Number(response.header.revision),
      connection: this.#options.connection.number,
    };
    if (response.created) {
      watcher.created = true;
      // At once, to learn early whether this server answers such a request.
      if (!this.#answersProgress) this.#stream.write({ progress_request: {} });
      request.onCreated?.(header);
    } else if (response.events.length === 0 && !response.fragment) {
      request.onProgress?.();
    } else {
      request.onEvents(response.events, header, !response.fragment);
    }
  }

  #progress(): void {
    this.#answersProgress = true;
    for (const watcher of [...this.#watchers.values()]) if (watcher.created) watcher.request.onProgress?.();
  }

  #tick(): void {
    const quiet = !this.#receivedSinceTick;
    this.#receivedSinceTick = false;
    if (!quiet || this.#watchers.size === 0) return;
    if (this.#unanswered < MAX_UNANSWERED) {
      this.#unanswered++;
      this.#stream.write({ progress_request: {} });
      return;
    }
    if (!this.#answersProgress) {
      this.#probe();
      return;
    }
    const { connection, progressIntervalMs } = this.#options;
    const silence = Math.round((progressIntervalMs * (MAX_UNANSWERED + 1)) / 1000);
    connection.fail(
      new MeshError({
        code: 'etcd-timeout',
        message: `watching at ${connection.target.label}: no sign of life for ${silence} s`,
      }),
    );
  }

  /** Asks something that every server answers; only silence matters, and the connection judges that itself. */
  #probe(): void {
    if (this.#probing) return;
    this.#probing = true;
    const [watcher] = this.#watchers.values();
    this.#options.connection
      .unary('KV.Range', { key: Buffer.from(watcher!.request.prefix), limit: 1 }, 'probing the connection')
      .catch(() => {})
      .finally(() => {
        this.#probing = false;
        this.#unanswered = 0;
      });
  }

  #end(reason: MeshError): void {
    if (this.#ended !== undefined) return;
    this.#ended = reason;
    clearInterval(this.#timer);
    this.#stream.cancel();
    for (const watcher of [...this.#watchers.values()]) {
      const { code, hint, cause } = reason;
      watcher.end(
        new MeshError({ code, message: `${watcher.attempted}: ${reason.message}`, hint, cause, retryable: true }),
      );
    }
  }
}
