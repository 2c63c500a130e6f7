/**
 * The gate: the one way by which peers reach this cluster's etcd.
 *
 *   peer ──TLS, remote-<peer>──► gate ──TLS, gate-<cluster>──► etcd
 *
 * etcd asks who somebody is only when a connection or a watch begins: a user that is deleted goes on receiving. So the gate ends
 * TLS, knows whose every connection is, and cuts those of a peer the moment that users.yaml or the revocation list says so; other
 * peers notice nothing. It passes bytes on and reads none of them. etcd has no user for peers, only the gate's with their rights
 * (wire-contract §1.12, role `remote`): a peer's certificate is worth nothing at etcd itself.
 */

import { constants, type X509Certificate } from 'node:crypto';
import { type AddressInfo, isIP, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { connect, createServer, type TLSSocket } from 'node:tls';
import { MeshError, messageOf } from '@clustermesh/contract';
import { normalSerial } from '@clustermesh/pki';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { watchedDirectory } from '../watched-dir.ts';
import { REFUSAL_TEXT, refusalOf, type Visitor } from './admission.ts';
import type { GateConfig } from './config.ts';
import type { GateMetrics } from './metrics.ts';
import { gateFiles } from './policy-files.ts';

export interface GateOptions {
  readonly config: GateConfig;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  readonly metrics?: GateMetrics;
}

export interface Gate {
  readonly port: number;
  /** User → open connections. */
  connections(): ReadonlyMap<string, number>;
  problems(): readonly string[];
  /** Everything has ended after the signal. */
  readonly ended: Promise<void>;
}

/** inotify may drop a notice; a revocation does not wait longer than this for it. Also how soon an expired peer is noticed. */
const CHECK_MS = 500;
/** The same refusal of the same visitor is logged once in this time. */
const REPEAT_LOG_MS = 60_000;
const KEEPALIVE_MS = 30_000;

interface Passage {
  visitor: Visitor;
  readonly near: TLSSocket;
  readonly far: TLSSocket;
}

export async function startGate(options: GateOptions): Promise<Gate> {
  const { config, metrics } = options;
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'gate' });
  const read = gateFiles(config);
  const passages = new Set<Passage>();
  const raw = new Set<Socket>();
  const logged = new Map<string, number>();
  let problems: readonly string[] = [];

  const first = read();
  if (first.files === undefined)
    throw new MeshError({ code: 'invalid-config', message: `starting the gate: ${first.problems.join('; ')}` });
  let files = first.files;

  const refused = (reason: string, who: string, why: string) => {
    metrics?.refused(reason);
    const now = clock.nowMs();
    for (const [key, at] of logged) if (now - at > REPEAT_LOG_MS) logged.delete(key);
    if (logged.has(`${who} ${why}`)) return;
    logged.set(`${who} ${why}`, now);
    log.warn({ who, reason: why }, 'refused at the gate');
  };

  const server = createServer({
    ...files.server,
    requestCert: true,
    rejectUnauthorized: true,
    handshakeTimeout: config.limits.handshakeMs,
    ALPNProtocols: ['h2', 'http/1.1'],
    // A resumed session would bring back what a certificate said in the past.
    secureOptions: constants.SSL_OP_NO_TICKET,
    allowHalfOpen: false,
  });
  server.maxConnections = config.limits.total;

  server.on('connection', (socket: Socket) => {
    raw.add(socket);
    socket.setNoDelay(true).setKeepAlive(true, KEEPALIVE_MS);
    socket.on('close', () => raw.delete(socket));
  });
  server.on('tlsClientError', (error, socket) => {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ECONNRESET') return; // went away before it said who it is
    refused('tls', addressOf(socket), explainHandshake(error));
  });
  server.on('secureConnection', (near) => {
    near.on('error', () => near.destroy());
    const visitor = visitorOf(near, files.cas);
    const refusal = refusalOf(files.policy, visitor, clock.wallMs());
    if (refusal !== undefined) {
      refused(refusal, `${visitor.user} (${addressOf(near)})`, REFUSAL_TEXT[refusal]);
      return near.destroy();
    }
    const open = [...passages].filter((passage) => passage.visitor.user === visitor.user).length;
    if (open >= config.limits.perPeer) {
      refused('too-many', visitor.user, `it has ${open} connections already (limits.perPeer)`);
      return near.destroy();
    }
    return pass(near, visitor);
  });

  function pass(near: TLSSocket, visitor: Visitor): void {
    const far = connect({
      ...files.upstream,
      host: config.etcd.host,
      port: config.etcd.port,
      // The name in a handshake must not be an address (RFC 6066); etcd's certificate covers both.
      ...(isIP(config.etcd.host) === 0 ? { servername: config.etcd.host } : { servername: 'localhost' }),
      ALPNProtocols: near.alpnProtocol === false ? [] : [near.alpnProtocol ?? 'h2'],
    });
    far.setNoDelay(true);
    const passage: Passage = { visitor, near, far };
    passages.add(passage);
    metrics?.opened(visitor.user);
    const end = () => {
      near.destroy();
      far.destroy();
      if (passages.delete(passage)) metrics?.closed(visitor.user);
    };
    far.on('error', (error) => {
      refused('etcd', `etcd at ${config.etcd.host}:${config.etcd.port}`, messageOf(error));
      end();
    });
    near.on('close', end);
    far.on('close', end);
    // Backpressure goes through: a slow peer slows its own stream at etcd.
    near.pipe(far);
    far.pipe(near);
  }

  const check = async () => {
    directories.forEach((directory) => {
      directory.arm();
    });
    const now = read();
    for (const problem of now.problems) if (!problems.includes(problem)) log.error(problem);
    problems = now.problems;
    if (now.changed && now.files !== undefined) {
      files = now.files;
      server.setSecureContext({ ...files.server, secureOptions: constants.SSL_OP_NO_TICKET });
    }
    const wallMs = clock.wallMs();
    for (const passage of passages) {
      if (now.changed) passage.visitor = visitorOf(passage.near, files.cas);
      const refusal = refusalOf(files.policy, passage.visitor, wallMs);
      if (refusal === undefined) continue;
      refused(refusal, passage.visitor.user, REFUSAL_TEXT[refusal]);
      passage.near.destroy();
      passage.far.destroy();
    }
  };
  const runner = startRunner({
    run: check,
    minIntervalMs: 10,
    retryMs: CHECK_MS,
    maxIntervalMs: CHECK_MS,
    signal: options.signal,
    clock,
    onError: (error) => {
      const message = messageOf(error);
      if (!problems.includes(message)) log.error(message);
      problems = [message];
    },
  });
  const watched = [config.usersFile, config.crlFile, config.tls.certFile, config.etcd.certFile];
  const directories = [...new Set(watched.map((file) => dirname(file)))].map((dir) =>
    watchedDirectory(dir, runner.trigger, options.signal),
  );
  runner.trigger();

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(config.listen.port, config.listen.host, resolve);
  });
  const closed = new Promise<void>((resolve) => {
    options.signal.addEventListener(
      'abort',
      () => {
        server.close(() => resolve());
        for (const { near, far } of passages) {
          near.destroy();
          far.destroy();
        }
        for (const socket of raw) socket.destroy();
      },
      { once: true },
    );
  });

  return {
    port: (server.address() as AddressInfo).port,
    connections() {
      const counts = new Map<string, number>();
      for (const { visitor } of passages) counts.set(visitor.user, (counts.get(visitor.user) ?? 0) + 1);
      return counts;
    },
    problems: () => problems,
    ended: Promise.all([runner.ended, closed]).then(() => {}),
  };
}

function visitorOf(socket: TLSSocket, cas: readonly X509Certificate[]): Visitor {
  const certificate = socket.getPeerCertificate();
  const x509 = socket.getPeerX509Certificate();
  const name: unknown = certificate.subject?.CN;
  return {
    // Several common names are an array: which of them would count is not for a stranger to choose.
    user: typeof name === 'string' ? name : '(no single common name)',
    serial: normalSerial(certificate.serialNumber ?? ''),
    notBeforeMs: Date.parse(certificate.valid_from),
    notAfterMs: Date.parse(certificate.valid_to),
    isTrusted: x509 !== undefined && cas.some((ca) => x509.checkIssued(ca) && x509.verify(ca.publicKey)),
  };
}

function addressOf(socket: Socket): string {
  return socket.remoteAddress?.replace(/^::ffff:/, '') ?? 'somebody';
}

/** OpenSSL's words, and what they mean here. */
function explainHandshake(error: Error): string {
  const { code = '' } = error as NodeJS.ErrnoException;
  if (/HTTP_REQUEST|WRONG_VERSION_NUMBER|PACKET_LENGTH/.test(code)) return 'it does not speak TLS';
  if (code === 'ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE') return 'it has shown no client certificate';
  if (code === 'CERT_HAS_EXPIRED') return 'its certificate has expired: rotate it, or connect again';
  if (code === 'CERT_NOT_YET_VALID') return 'its certificate is not valid yet: compare the clocks of both clusters';
  if (/SELF_SIGNED|UNABLE_TO_GET_ISSUER|UNABLE_TO_VERIFY|SIGNATURE_FAILURE/.test(code))
    return 'its certificate is not of a CA that is trusted here';
  if (code === 'ERR_TLS_HANDSHAKE_TIMEOUT') return 'it never said whose it is';
  return messageOf(error);
}
