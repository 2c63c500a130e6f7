import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { checkServerIdentity, type PeerCertificate } from 'node:tls';
import { MeshError, messageOf } from '@clustermesh/contract';
import type { Clock } from '@clustermesh/runtime';
import { Client, type ClientDuplexStream, connectivityState, credentials, Metadata, status } from '@grpc/grpc-js';
import type { Target } from './endpoints.ts';
import { cancelled, toMeshError } from './errors.ts';
import { rpc, type WireHeader } from './proto.ts';

export interface ConnectionSettings {
  readonly caFile: string | undefined;
  readonly certFile: string | undefined;
  readonly keyFile: string | undefined;
  readonly connectTimeoutMs: number;
  readonly requestTimeoutMs: number;
  readonly keepalive: { readonly timeMs: number; readonly timeoutMs: number };
  readonly clock: Clock;
}

/** Values are at most 1.5 MiB and pages aim at 2 MiB; this leaves room for a page whose values outgrew the guess. */
const MAX_RECEIVE_BYTES = 16 << 20;

/** Over TLS 1.3 a server refuses a client certificate only after the handshake looks complete to the client. */
const EARLY_LOSS_MS = 1000;

async function readPem(path: string | undefined, what: string): Promise<Buffer | null> {
  if (path === undefined) return null;
  try {
    return await readFile(path);
  } catch (error) {
    throw new MeshError({
      code: 'tls',
      message: `reading the ${what} ${path}: ${messageOf(error)}`,
      cause: error,
      retryable: true,
    });
  }
}

async function channelCredentials(target: Target, settings: ConnectionSettings) {
  if (!target.secure) return credentials.createInsecure();
  const [ca, key, cert] = await Promise.all([
    readPem(settings.caFile, 'CA certificate'),
    readPem(settings.keyFile, 'client key'),
    readPem(settings.certFile, 'client certificate'),
  ]);
  try {
    return credentials.createSsl(ca, key, cert, {
      checkServerIdentity: (_, certificate) => checkServerIdentity(target.tlsName, certificate as PeerCertificate),
    });
  } catch (error) {
    // Half of a certificate pair that is being replaced looks like this: the next attempt reads both again.
    throw new MeshError({
      code: 'tls',
      message: `loading the client certificate ${settings.certFile} with its key: ${messageOf(error)}`,
      hint: 'do certificate and key belong together?',
      cause: error,
      retryable: true,
    });
  }
}

/**
 * One TCP connection to one etcd member, from handshake to loss. It never reconnects by itself (gRPC's own channel would, with the
 * certificates of before): a lost connection stays lost, all its calls fail, and its owner builds the next one.
 */
export class Connection {
  readonly number: number;
  readonly target: Target;
  /** From the first answer on; an answer of another etcd ends the connection. */
  clusterId: string | undefined;
  lastReceivedAt: number | undefined;
  readonly #client: Client;
  readonly #settings: ConnectionSettings;
  readonly #lossListeners = new Set<(reason: MeshError) => void>();
  #readyAt = 0;
  #loss: MeshError | undefined;

  static async open(
    number: number,
    target: Target,
    settings: ConnectionSettings,
    signal: AbortSignal,
  ): Promise<Connection> {
    const connection = new Connection(number, target, settings, await channelCredentials(target, settings));
    try {
      await connection.#waitReady(signal);
    } catch (error) {
      connection.#client.close();
      throw error;
    }
    connection.#readyAt = settings.clock.nowMs();
    connection.#watchForLoss();
    return connection;
  }

  private constructor(
    number: number,
    target: Target,
    settings: ConnectionSettings,
    channel: ReturnType<typeof credentials.createInsecure>,
  ) {
    this.number = number;
    this.target = target;
    this.#settings = settings;
    this.#client = new Client(target.address, channel, {
      // The server name of the handshake must not be an address (RFC 6066); the check above compares the address all the same.
      'grpc.ssl_target_name_override': isIP(target.tlsName) === 0 ? target.tlsName : 'localhost',
      'grpc.default_authority': target.tlsName,
      'grpc.keepalive_time_ms': settings.keepalive.timeMs,
      'grpc.keepalive_timeout_ms': settings.keepalive.timeoutMs,
      // etcd answers pings on a connection without streams with GOAWAY (too_many_pings).
      'grpc.keepalive_permit_without_calls': 0,
      'grpc.max_receive_message_length': MAX_RECEIVE_BYTES,
      'grpc.max_send_message_length': -1,
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_retries': 0,
      'grpc.service_config_disable_resolution': 1,
      'grpc.enable_http_proxy': 0,
    });
  }

  get lost(): MeshError | undefined {
    return this.#loss;
  }

  /** Called once, at once if the connection is already lost. Returns the function that stops listening. */
  onLost(listener: (reason: MeshError) => void): () => void {
    if (this.#loss !== undefined) {
      listener(this.#loss);
      return () => {};
    }
    this.#lossListeners.add(listener);
    return () => this.#lossListeners.delete(listener);
  }

  fail(reason: MeshError): void {
    if (this.#loss !== undefined) return;
    this.#loss = reason;
    this.#client.close();
    for (const listener of [...this.#lossListeners]) listener(reason);
    this.#lossListeners.clear();
  }

  /** Every answer passes here: it is a proof of life, and must come from the etcd that answered first. */
  observe(header: WireHeader | undefined): void {
    this.lastReceivedAt = this.#settings.clock.nowMs();
    if (header === undefined || header.cluster_id === '0') return;
    this.clusterId ??= header.cluster_id;
    if (this.clusterId !== header.cluster_id) {
      const reason = new MeshError({
        code: 'etcd-unreachable',
        message: `talking to ${this.target.label}: another etcd answers (cluster id ${header.cluster_id}, was ${this.clusterId})`,
      });
      this.fail(reason);
      throw reason;
    }
  }

  unary<Response extends { readonly header?: WireHeader }>(
    method: string,
    request: object,
    attempted: string,
    options: { readonly timeoutMs?: number | undefined; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<Response> {
    const { path, requestSerialize, responseDeserialize } = rpc(method);
    const startedAt = this.#settings.clock.nowMs();
    const timeoutMs = options.timeoutMs ?? this.#settings.requestTimeoutMs;
    return new Promise((resolve, reject) => {
      if (this.#loss !== undefined) return reject(this.#loss);
      if (options.signal?.aborted) return reject(cancelled(attempted));
      let timedOut = false;
      const finish = (error: unknown, response?: Response) => {
        clearTimeout(timer);
        stopListening();
        options.signal?.removeEventListener('abort', abort);
        if (error === null && response !== undefined) {
          try {
            this.observe(response.header);
          } catch (other) {
            return reject(other);
          }
          return resolve(response);
        }
        if (options.signal?.aborted) return reject(cancelled(attempted));
        if (!timedOut) return reject(this.#explain(error, attempted));
        reject(
          new MeshError({
            code: 'etcd-timeout',
            message: `${attempted}: no answer from ${this.target.label} within ${timeoutMs} ms`,
          }),
        );
        // Silence on the whole connection all the while, not only on this request: it is half open.
        if ((this.lastReceivedAt ?? 0) < startedAt) {
          this.fail(
            new MeshError({
              code: 'etcd-timeout',
              message: `talking to ${this.target.label}: nothing received for ${Math.round(timeoutMs)} ms`,
            }),
          );
        }
      };
      const call = this.#client.makeUnaryRequest<object, Response>(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        new Metadata(),
        (error, response) => finish(error, response),
      );
      const abort = () => call.cancel();
      // Not a gRPC deadline: those are wall-clock instants, and a jump of the clock must not time everything out.
      const timer = setTimeout(() => {
        timedOut = true;
        call.cancel();
      }, timeoutMs);
      options.signal?.addEventListener('abort', abort, { once: true });
      const stopListening = this.onLost(() => call.cancel());
    });
  }

  /** A two-way stream; cancelled when the connection is lost. `leader`: the member refuses it while it has no leader. */
  duplex<Request, Response>(method: string, leader: boolean): ClientDuplexStream<Request, Response> {
    const { path, requestSerialize, responseDeserialize } = rpc(method);
    const metadata = new Metadata();
    if (leader) metadata.set('hasleader', 'true');
    const stream = this.#client.makeBidiStreamRequest<Request, Response>(
      path,
      requestSerialize,
      responseDeserialize,
      metadata,
      {},
    );
    const stopListening = this.onLost(() => stream.cancel());
    stream.on('close', stopListening);
    return stream;
  }

  /** What gRPC says about a call that broke with its connection hides the reason that the connection knows. */
  #explain(error: unknown, attempted: string): MeshError {
    const code = (error as { code?: unknown } | null)?.code;
    if (this.#loss === undefined || (code !== status.CANCELLED && code !== status.UNAVAILABLE))
      return toMeshError(error, attempted);
    const { code: lossCode, hint, message } = this.#loss;
    return new MeshError({ code: lossCode, message: `${attempted}: ${message}`, hint, cause: error, retryable: true });
  }

  #waitReady(signal: AbortSignal): Promise<void> {
    const channel = this.#client.getChannel();
    const { connectTimeoutMs } = this.#settings;
    const attempted = `connecting to etcd at ${this.target.label}`;
    return new Promise((resolve, reject) => {
      let settled = false;
      const settle = (error?: MeshError) => {
        if (settled) return;
        settled = true;
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
        if (error === undefined) resolve();
        else reject(error);
      };
      const onAbort = () => settle(cancelled(attempted));
      const timer = setTimeout(() => {
        settle(
          new MeshError({
            code: 'etcd-unreachable',
            message: `${attempted}: no answer within ${connectTimeoutMs} ms`,
            hint: 'a firewall that drops, or a host that is down, looks like this',
          }),
        );
      }, connectTimeoutMs);
      signal.addEventListener('abort', onAbort, { once: true });
      const step = () => {
        if (settled) return;
        const state = channel.getConnectivityState(true);
        if (state === connectivityState.READY) return settle();
        if (state === connectivityState.TRANSIENT_FAILURE) return void this.#whyNot(attempted).then(settle);
        channel.watchConnectivityState(state, Number.POSITIVE_INFINITY, step);
      };
      step();
    });
  }

  /** gRPC tells why a channel failed only to a call that is made on it; this one fails before it is sent. */
  #whyNot(attempted: string): Promise<MeshError> {
    const { path, requestSerialize, responseDeserialize } = rpc('KV.Range');
    return new Promise((resolve) => {
      this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        { key: Buffer.from('\0'), count_only: true },
        new Metadata(),
        { deadline: Date.now() + 500 },
        (error) => {
          const why =
            error === null
              ? 'the connection flaps'
              : error.details
                  .replace(/^No connection established\. Last error: /, '')
                  .replace(/\. Resolution note: $/, '');
          resolve(toMeshError(Object.assign(new Error(why), { code: 14, details: why }), attempted));
        },
      );
    });
  }

  #watchForLoss(): void {
    const channel = this.#client.getChannel();
    const check = () => {
      if (this.#loss !== undefined) return;
      if (channel.getConnectivityState(false) === connectivityState.READY) {
        channel.watchConnectivityState(connectivityState.READY, Number.POSITIVE_INFINITY, check);
        return;
      }
      const early =
        this.target.secure &&
        this.lastReceivedAt === undefined &&
        this.#settings.clock.nowMs() - this.#readyAt < EARLY_LOSS_MS;
      this.fail(
        early
          ? new MeshError({
              code: 'tls',
              message: `talking to etcd at ${this.target.label}: it closed the connection right after the handshake`,
              hint: `does etcd trust the issuer of the client certificate ${this.#settings.certFile ?? '(none given)'}, and is it valid now?`,
              retryable: true,
            })
          : new MeshError({
              code: 'etcd-unreachable',
              message: `talking to etcd at ${this.target.label}: connection lost`,
            }),
      );
    };
    check();
  }
}
