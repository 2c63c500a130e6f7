import { chmodSync, mkdirSync, mkdtempSync, renameSync, rmdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { isErrorCode, MeshError } from '@clustermesh/contract';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { repoRoot } from './files.ts';

/** Method name → request and response; `stream: true` marks a server stream. contract/ has one such type per service. */
export type Methods<M> = { [K in keyof M]: { request: unknown; response: unknown; stream?: true } };

/** Who is calling, as the way by which the call came in proves it. */
export type Caller =
  /** On the unix socket, which only its owner may open. */
  | { readonly via: 'socket' }
  /** Over TLS. `user` is the common name of a verified client certificate; without one the caller has proved nothing. */
  | { readonly via: 'tls'; readonly address: string; readonly user: string | undefined };

/** What a handler is given besides the request. */
export interface CallContext {
  readonly caller: Caller;
  /** Aborted when the caller went away. */
  readonly signal: AbortSignal;
}

export type Handlers<M extends Methods<M>> = {
  [K in keyof M]: M[K] extends { stream: true }
    ? (request: M[K]['request'], context: CallContext) => AsyncIterable<M[K]['response']>
    : (request: M[K]['request'], context: CallContext) => Promise<M[K]['response']>;
};

export type RpcClient<M extends Methods<M>> = {
  [K in keyof M]: M[K] extends { stream: true }
    ? (request: M[K]['request'], signal?: AbortSignal) => AsyncIterable<M[K]['response']>
    : (request: M[K]['request'], options?: { readonly timeoutMs?: number }) => Promise<M[K]['response']>;
} & { close(): void };

export type ServiceName = 'admin' | 'agent';

const SERVICES: Readonly<Record<ServiceName, readonly [pkg: string, service: string]>> = {
  admin: ['clustermesh.admin.v1', 'Admin'],
  agent: ['clustermesh.agent.v1', 'Agent'],
};

function loadService(name: ServiceName): grpc.ServiceClientConstructor {
  const [pkg, service] = SERVICES[name];
  const definition = loadSync(join(repoRoot(), 'contract', 'proto', `${name}.proto`), {
    longs: Number,
    enums: String,
    defaults: true,
    arrays: true,
    objects: true,
  });
  let scope: grpc.GrpcObject | grpc.ServiceClientConstructor | grpc.ProtobufTypeDefinition | undefined =
    grpc.loadPackageDefinition(definition);
  for (const part of `${pkg}.${service}`.split('.')) scope = (scope as grpc.GrpcObject)[part];
  return scope as grpc.ServiceClientConstructor;
}

/** MeshError crosses the wire as metadata, so that codes and hints survive. */
function toServiceError(error: unknown): Partial<grpc.ServiceError> {
  const mesh = MeshError.from(error, 'serving the call');
  const metadata = new grpc.Metadata();
  metadata.set('mesh-code', mesh.code);
  if (mesh.hint !== undefined) metadata.set('mesh-hint', Buffer.from(mesh.hint).toString('base64'));
  return { code: grpc.status.FAILED_PRECONDITION, details: mesh.message, metadata };
}

function fromServiceError(error: grpc.ServiceError, method: string, address: string): MeshError {
  const code = error.metadata?.get('mesh-code')[0];
  const hint = error.metadata?.get('mesh-hint')[0];
  if (typeof code === 'string' && isErrorCode(code)) {
    return new MeshError({
      code,
      message: error.details,
      ...(typeof hint === 'string' ? { hint: Buffer.from(hint, 'base64').toString() } : {}),
      cause: error,
    });
  }
  const unreachable = error.code === grpc.status.UNAVAILABLE;
  return new MeshError({
    code: unreachable ? 'unreachable' : error.code === grpc.status.DEADLINE_EXCEEDED ? 'timeout' : 'internal',
    message: `calling ${method} at ${address}: ${error.details}`,
    hint: unreachable ? 'is the daemon running? the address comes from the handle file of the context' : undefined,
    cause: error,
  });
}

export interface RpcServer {
  /** Serves a connection that somebody else has accepted, and verified (apiserver/src/admin/tls.ts). */
  accept(connection: TLSSocket): void;
  close(): Promise<void>;
}

/** Serves on a unix socket that only the owner may open (0600); a socket left by a dead process is replaced. */
export async function serveRpc<M extends Methods<M>>(
  name: ServiceName,
  socket: string,
  handlers: Handlers<M>,
): Promise<RpcServer> {
  const server = serverOf(name, handlers, fromSocket);
  const bound = await bindPrivately(server, socket);
  // A server of its own: who comes in there can never be taken for somebody on the socket.
  const network = serverOf(name, handlers, fromNetwork);
  // The connections that are handed over have been through TLS already.
  const injector = network.createConnectionInjector(grpc.ServerCredentials.createInsecure());
  return {
    accept: (connection) => injector.injectConnection(connection),
    close: async () => {
      injector.destroy();
      await Promise.all([shutDown(network), shutDown(server)]);
      bound.remove();
    },
  };
}

function serverOf<M extends Methods<M>>(name: ServiceName, handlers: Handlers<M>, callerOf: CallerOf): grpc.Server {
  const server = new grpc.Server();
  const service = loadService(name).service;
  const implementation: grpc.UntypedServiceImplementation = {};
  for (const [method, definition] of Object.entries(service)) {
    const handler = (handlers as Record<string, (request: unknown, context: CallContext) => unknown>)[method];
    if (handler === undefined)
      throw new MeshError({ code: 'internal', message: `service ${name} has no handler for ${method}` });
    implementation[method] = definition.responseStream
      ? streamCall(handler as (r: unknown, c: CallContext) => AsyncIterable<unknown>, callerOf)
      : unaryCall(handler as (r: unknown, c: CallContext) => Promise<unknown>, callerOf);
  }
  server.addService(service, implementation);
  return server;
}

/** Waits a second for calls that are being answered. */
function shutDown(server: grpc.Server): Promise<void> {
  return new Promise((resolve) => {
    const force = setTimeout(() => server.forceShutdown(), 1000);
    server.tryShutdown(() => {
      clearTimeout(force);
      resolve();
    });
  });
}

/**
 * bind(2) makes the socket with the rights of the umask, and that one is the whole process's: so it is made in a directory that
 * nobody else may enter, and gets its name when its rights are right.
 */
async function bindPrivately(server: grpc.Server, socket: string): Promise<{ remove(): void }> {
  mkdirSync(dirname(socket), { recursive: true });
  const privateDir = mkdtempSync(join(dirname(socket), '.bind-'));
  const made = join(privateDir, 's');
  try {
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${made}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
    chmodSync(made, 0o600);
    const { ino } = statSync(made);
    renameSync(made, socket);
    return {
      // A successor may have put its own there already.
      remove: () => {
        if (statSync(socket, { throwIfNoEntry: false })?.ino === ino) rmSync(socket, { force: true });
      },
    };
  } finally {
    rmSync(made, { force: true });
    rmdirSync(privateDir);
  }
}

type Call = grpc.ServerUnaryCall<unknown, unknown> | grpc.ServerWritableStream<unknown, unknown>;
type CallerOf = (call: Call) => Caller;

const fromSocket: CallerOf = () => ({ via: 'socket' });

const fromNetwork: CallerOf = (call) => {
  // Empty unless TLS has verified the certificate. Several common names are an array: not for a stranger to choose among.
  const name: unknown = call.getAuthContext().sslPeerCertificate?.subject.CN;
  return {
    via: 'tls',
    address: call
      .getPeer()
      .replace(/:\d+$/, '')
      .replace(/^::ffff:/, ''),
    user: typeof name === 'string' ? name : undefined,
  };
};

function unaryCall(
  handler: (request: unknown, context: CallContext) => Promise<unknown>,
  callerOf: CallerOf,
): grpc.handleUnaryCall<unknown, unknown> {
  return (call, callback) => {
    const gone = new AbortController();
    call.on('cancelled', () => gone.abort());
    (async () => handler(call.request, { signal: gone.signal, caller: callerOf(call) }))().then(
      (response) => callback(null, response),
      (error) => callback(toServiceError(error)),
    );
  };
}

function streamCall(
  handler: (request: unknown, context: CallContext) => AsyncIterable<unknown>,
  callerOf: CallerOf,
): grpc.handleServerStreamingCall<unknown, unknown> {
  return (call) => {
    const gone = new AbortController();
    call.on('cancelled', () => gone.abort());
    void (async () => {
      try {
        for await (const item of handler(call.request, { signal: gone.signal, caller: callerOf(call) })) {
          if (gone.signal.aborted) return;
          call.write(item);
        }
        call.end();
      } catch (error) {
        call.emit('error', toServiceError(error));
      }
    })();
  };
}

const DEFAULT_TIMEOUT_MS = 30_000;

/** How to reach a service over TLS. */
export interface DialTls {
  /** Whose certificates are believed: the server's cluster's CA, and no other. */
  readonly caPem: string;
  /** Under this name the server must be certified, whatever address it is reached at. */
  readonly serverName: string;
  /** Without them the caller is nobody. */
  readonly certPem?: string | undefined;
  readonly keyPem?: string | undefined;
}

/** A client of the service at `address` (`unix:///path`, or `host:port` with TLS). Connects on first use; every unary call has a deadline. */
export function dialRpc<M extends Methods<M>>(name: ServiceName, address: string, tls?: DialTls): RpcClient<M> {
  const Client = loadService(name);
  const pem = (text: string | undefined) => (text === undefined ? null : Buffer.from(text));
  const client =
    tls === undefined
      ? new Client(address, grpc.credentials.createInsecure())
      : new Client(address, grpc.credentials.createSsl(Buffer.from(tls.caPem), pem(tls.keyPem), pem(tls.certPem)), {
          'grpc.ssl_target_name_override': tls.serverName,
          'grpc.default_authority': tls.serverName,
        });
  const result: Record<string, unknown> = { close: () => client.close() };
  for (const [method, definition] of Object.entries(Client.service)) {
    if (definition.responseStream) {
      result[method] = async function* (request: unknown, signal?: AbortSignal) {
        const call = (client[method] as (r: unknown) => grpc.ClientReadableStream<unknown>).call(client, request);
        const cancel = () => call.cancel();
        signal?.addEventListener('abort', cancel, { once: true });
        try {
          for await (const item of call) yield item;
        } catch (error) {
          throw fromServiceError(error as grpc.ServiceError, method, address);
        } finally {
          signal?.removeEventListener('abort', cancel);
          call.cancel();
        }
      };
    } else {
      result[method] = (request: unknown, options?: { readonly timeoutMs?: number }) =>
        new Promise((resolve, reject) => {
          const deadline = Date.now() + (options?.timeoutMs ?? DEFAULT_TIMEOUT_MS);
          const call = client[method] as (
            r: unknown,
            m: grpc.Metadata,
            o: grpc.CallOptions,
            cb: (e: grpc.ServiceError | null, v: unknown) => void,
          ) => void;
          call.call(client, request, new grpc.Metadata(), { deadline }, (error, value) =>
            error ? reject(fromServiceError(error, method, address)) : resolve(value),
          );
        });
    }
  }
  return result as RpcClient<M>;
}
