/** How a joiner comes to trust a cluster it has never met: by the pin in its invitation, and by nothing else. */
import { isIP } from 'node:net';
import { connect, type DetailedPeerCertificate } from 'node:tls';
import { MeshError, messageOf } from '@clustermesh/contract';
import { certificateFacts, isIssuedBy } from './certificate.ts';
import { SERVER_COMMON_NAME } from './names.ts';

/**
 * The CA of the server at `endpoint` (`host:port`), if it is the pinned one and the server's certificate is of it. Nothing is sent
 * but the handshake. Throws `tls` for another CA, `unreachable` or `timeout` when nobody answers.
 */
export async function fetchPinnedCa(options: {
  readonly endpoint: string;
  readonly pin: string;
  readonly timeoutMs?: number;
}): Promise<string> {
  const attempted = `meeting the cluster at ${options.endpoint}`;
  const [, host, port] = /^\[?([^\]]+)\]?:(\d+)$/.exec(options.endpoint) ?? [];
  if (host === undefined || port === undefined)
    throw new MeshError({ code: 'invalid-argument', message: `${attempted}: it is not of the form host:port` });
  const chain = await presented(host, Number(port), options.timeoutMs ?? 5000, attempted);
  const [leaf] = chain;
  const ca = chain.find((pem) => certificateFacts(pem).fingerprint === options.pin);
  if (leaf === undefined || ca === undefined || !isIssuedBy(leaf, ca))
    throw new MeshError({
      code: 'tls',
      message: `${attempted}: its certificate is of another CA (${chain.map((pem) => certificateFacts(pem).fingerprint.slice(0, 16)).join(', ') || 'none'}) than the invitation names (${options.pin.slice(0, 16)})`,
      hint: 'either something answers in its place, or its CA was rotated: ask for a new invitation over a way that you trust',
      retryable: false,
    });
  if (!certificateFacts(leaf).dnsNames.includes(SERVER_COMMON_NAME))
    throw new MeshError({
      code: 'tls',
      message: `${attempted}: its certificate is of the right CA, but not of its apiserver (${certificateFacts(leaf).commonName})`,
    });
  return ca;
}

/** The certificates that a server shows, its own first, in PEM. */
function presented(host: string, port: number, timeoutMs: number, attempted: string): Promise<readonly string[]> {
  return new Promise((resolve, reject) => {
    // Judged by the pin above: nothing is known yet that it could be verified against.
    const socket = connect({
      host,
      port,
      rejectUnauthorized: false,
      ALPNProtocols: ['h2'],
      ...(isIP(host) === 0 && { servername: host }),
    });
    const end = (finish: () => void) => {
      clearTimeout(timer);
      socket.destroy();
      finish();
    };
    const timer = setTimeout(
      () =>
        end(() =>
          reject(new MeshError({ code: 'timeout', message: `${attempted}: no answer within ${timeoutMs} ms` })),
        ),
      timeoutMs,
    );
    socket.once('secureConnect', () => {
      const pems: string[] = [];
      let next: DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
      while (next?.raw !== undefined) {
        pems.push(`-----BEGIN CERTIFICATE-----\n${next.raw.toString('base64')}\n-----END CERTIFICATE-----\n`);
        next = next.issuerCertificate === next ? undefined : next.issuerCertificate;
      }
      end(() => resolve(pems));
    });
    socket.once('error', (error) =>
      end(() =>
        reject(new MeshError({ code: 'unreachable', message: `${attempted}: ${messageOf(error)}`, cause: error })),
      ),
    );
  });
}
