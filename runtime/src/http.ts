import { createServer } from 'node:http';
import type { Registry } from 'prom-client';

export interface HttpOptions {
  readonly host: string;
  readonly port: number;
  readonly registry: Registry;
  /** Undefined when ready, otherwise what is still missing. */
  readonly notReady: () => string | undefined;
}

/** `/healthz` (alive), `/readyz` (200 Ready or 500 with the reason, as wire-contract §4.4) and `/metrics`. */
export async function serveHttp(options: HttpOptions): Promise<{ close(): Promise<void> }> {
  const server = createServer((request, response) => {
    const send = (status: number, body: string, type = 'text/plain') =>
      response.writeHead(status, { 'content-type': type }).end(body);
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
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}
