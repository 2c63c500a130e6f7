/**
 * The admin interface on the network: TLS 1.2 or better with the cluster's server certificate, and client certificates of its CA.
 * A connection without one is accepted, because whoever joins has none yet; roles decide what it may call (almost nothing). The
 * certificates are read again when they change, and the revocation list applies to every connection, open ones included.
 */
import { constants } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createServer, type SecureContextOptions, type TLSSocket } from 'node:tls';
import { messageOf } from '@clustermesh/contract';
import { crlFile, isIssuedBy, normalSerial, readCrl } from '@clustermesh/pki';
import { type Log, type RpcServer, startRunner } from '@clustermesh/runtime';
import { readUsersFile } from '../bootstrap/users.ts';
import { watchedDirectory } from '../watched-dir.ts';

export interface AdminTlsOptions {
  readonly rpc: RpcServer;
  readonly listen: { readonly host: string; readonly port: number };
  readonly pkiDir: string;
  /** Peers that are not named there come in as nobody. */
  readonly usersFile: string;
  readonly log: Log;
  readonly signal: AbortSignal;
}

const CHECK_MS = 1000;
const MAX_CONNECTIONS = 256;
const HANDSHAKE_MS = 10_000;
/** ALPN says h2; a client that is silent this long is not using the interface. */
const IDLE_MS = 10 * 60_000;

interface Trust extends SecureContextOptions {
  readonly revoked: ReadonlySet<string>;
  readonly peers: ReadonlySet<string>;
}

const pemOf = (der: Buffer): string =>
  `-----BEGIN CERTIFICATE-----\n${der.toString('base64')}\n-----END CERTIFICATE-----\n`;

/** Returns the port that it listens on, and its end. */
export async function listenForAdmin(options: AdminTlsOptions): Promise<{ port: number; close(): Promise<void> }> {
  const { pkiDir, log } = options;
  const read = (): Trust => {
    const ca = readFileSync(join(pkiDir, 'ca.crt'), 'utf8');
    return {
      ca,
      // With its CA: whoever joins knows that one by its pin and by nothing else.
      cert: readFileSync(join(pkiDir, 'server.crt'), 'utf8') + ca,
      key: readFileSync(join(pkiDir, 'server.key'), 'utf8'),
      minVersion: 'TLSv1.2',
      // A resumed session would bring back what a certificate said in the past.
      secureOptions: constants.SSL_OP_NO_TICKET,
      revoked: readCrl(readFileSync(crlFile(pkiDir), 'utf8'), ca),
      peers: new Set(readUsersFile(options.usersFile).users ?? []),
    };
  };
  let trust = read();
  const open = new Set<TLSSocket>();
  const isRefused = (socket: TLSSocket): boolean => {
    if (!socket.authorized) return false;
    const certificate = socket.getPeerCertificate();
    // Of a CA that was withdrawn since the handshake.
    if (!isIssuedBy(pemOf(certificate.raw), String(trust.ca))) return true;
    const name = String(certificate.subject?.CN);
    if (trust.revoked.has(normalSerial(certificate.serialNumber))) return true;
    return name.startsWith('remote-') && !trust.peers.has(name);
  };

  const server = createServer({
    ...trust,
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: HANDSHAKE_MS,
    ALPNProtocols: ['h2'],
  });
  server.maxConnections = MAX_CONNECTIONS;
  server.on('secureConnection', (socket) => {
    socket.on('error', () => socket.destroy());
    if (isRefused(socket)) {
      log.warn({ from: socket.remoteAddress }, 'admin connection refused: revoked certificate, or of no peer');
      socket.destroy();
      return;
    }
    open.add(socket);
    socket.setTimeout(IDLE_MS, () => socket.destroy());
    socket.on('close', () => open.delete(socket));
    options.rpc.accept(socket);
  });

  const stop = AbortSignal.any([options.signal]);
  const runner = startRunner({
    run: async () => {
      directory.arm();
      const now = read();
      if (
        JSON.stringify([now, [...now.revoked], [...now.peers]]) ===
        JSON.stringify([trust, [...trust.revoked], [...trust.peers]])
      )
        return;
      trust = now;
      server.setSecureContext(now);
      for (const socket of open) if (isRefused(socket)) socket.destroy();
    },
    minIntervalMs: 20,
    retryMs: CHECK_MS,
    maxIntervalMs: CHECK_MS,
    signal: stop,
    onError: (error, failures) =>
      failures === 1 && log.error({ reason: messageOf(error) }, 'certificates of the admin interface not taken up'),
  });
  const directory = watchedDirectory(pkiDir, runner.trigger, stop);

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.listen.port, options.listen.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const socket of open) socket.destroy();
      await closed;
      await runner.ended;
    },
  };
}
