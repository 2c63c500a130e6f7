import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';

export interface HttpOptions {
  readonly host: string;
  readonly port: number;
  /** A bearer token, read for every request. Beyond loopback nothing but /healthz is answered without it; on loopback it is not asked for. */
  readonly tokenFile?: string | undefined;
  readonly registry: Registry;
  /** Undefined when ready, otherwise what is still missing. */
  readonly notReady: () => string | undefined;
}

/** `/healthz` (alive), `/readyz` (200 Ready or 500 with the reason, as wire-contract §4.4) and `/metrics`. */
export async function serveHttp(options: HttpOptions): Promise<{ readonly port: number; close(): Promise<void> }> {
  const isOpen = LOOPBACK.has(options.host);
  const server = createServer((request, response) => {
    const send = (status: number, body: string, type = 'text/plain') =>
      response.writeHead(status, { 'content-type': type }).end(body);
    if (!isOpen && request.url !== '/healthz' && !hasToken(request.headers.authorization, options.tokenFile))
      return response.writeHead(401, { 'www-authenticate': 'Bearer' }).end('unauthorized: see http.tokenFile\n');
    switch (request.url) {
      case '/healthz':
        return send(200, 'ok\n');
      case '/readyz': {
        const reason = options.notReady();
        return reason === undefined ? send(200, 'Ready\n') : send(500, `NotReady: ${reason}\n`);
      }
      case '/metrics':
        options.registry.metrics().then(
          (text) => send(200, text, options.registry.contentType),
          (error) => send(500, `${error}\n`),
        );
        return undefined;
      default:
        return send(404, 'not found\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port, options.host, resolve);
  });
  server.unref();
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}

const LOOPBACK: ReadonlySet<string> = new Set(['127.0.0.1', '::1', 'localhost']);

/** A file that cannot be read, or is empty, is no token that anybody could have. */
function hasToken(authorization: string | undefined, tokenFile: string | undefined): boolean {
  if (authorization === undefined || tokenFile === undefined) return false;
  let token: string;
  try {
    token = readFileSync(tokenFile, 'utf8').trim();
  } catch {
    return false;
  }
  // Of equal length whatever was sent: how long the comparison takes tells nothing.
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return token !== '' && timingSafeEqual(digest(authorization), digest(`Bearer ${token}`));
}
