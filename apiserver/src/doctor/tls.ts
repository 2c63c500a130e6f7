/** One TLS handshake, looked at closely: who answers, with which certificate, and what OpenSSL thinks of it. */
import { connect, type PeerCertificate, type TLSSocket } from 'node:tls';

export interface Handshake {
  /** SHA-256 over the DER form, lower case hex. */
  readonly fingerprint: string;
  readonly subject: string;
  readonly issuer: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly names: string;
  readonly protocol: string;
  /** Code of what is wrong with it; undefined: it is trusted. */
  readonly untrusted: string | undefined;
}

/** Accepts every certificate, so that what is wrong with one can be told. Nothing is sent. Rejects when there is no handshake. */
export function handshakeWith(options: {
  readonly host: string;
  readonly port: number;
  readonly servername: string;
  readonly caPem: string;
  readonly timeoutMs: number;
}): Promise<Handshake> {
  return new Promise((resolve, reject) => {
    const { host, port, servername, caPem: ca } = options;
    // An IP address as server name is against RFC 6066.
    const name = /^[\d.]+$|:/.test(servername) ? {} : { servername };
    const socket: TLSSocket = connect({ host, port, ca, ...name, rejectUnauthorized: false });
    const timer = setTimeout(() => end(new Error(`no answer within ${options.timeoutMs / 1000} s`)), options.timeoutMs);
    const end = (result: Handshake | Error) => {
      clearTimeout(timer);
      socket.destroy();
      if (result instanceof Error) reject(result);
      else resolve(result);
    };
    socket.once('error', end);
    socket.once('end', () => end(new Error('the server closed the connection')));
    socket.once('secureConnect', () => {
      const certificate = socket.getPeerCertificate();
      end({
        fingerprint: certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
        subject: nameOf(certificate.subject),
        issuer: nameOf(certificate.issuer),
        notBefore: new Date(certificate.valid_from),
        notAfter: new Date(certificate.valid_to),
        names: certificate.subjectaltname ?? '',
        protocol: socket.getProtocol() ?? '',
        untrusted: socket.authorized ? undefined : codeOf(socket.authorizationError),
      });
    });
  });
}

/** Typed as an Error, and a string in fact (Node 20). */
function codeOf(error: unknown): string {
  return error instanceof Error ? ((error as NodeJS.ErrnoException).code ?? error.message) : String(error);
}

function nameOf(name: PeerCertificate['subject']): string {
  return `${name.CN ?? '(no name)'}`;
}
