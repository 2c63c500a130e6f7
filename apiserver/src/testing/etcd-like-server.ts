/** The one question that the preflight asks of a peer's etcd, answered over real mutual TLS. */
import { createServer, type Server } from 'node:https';
import type { KeyAndCertificate } from '@clustermesh/pki';

export interface EtcdLikeServer {
  readonly port: number;
  /** Common names of the clients that asked. */
  readonly clients: readonly string[];
  close(): Promise<void>;
}

export async function startEtcdLikeServer(options: {
  readonly server: KeyAndCertificate;
  readonly caPem: string;
  readonly port?: number;
}): Promise<EtcdLikeServer> {
  const clients: string[] = [];
  const server: Server = createServer(
    {
      cert: options.server.certPem,
      key: options.server.keyPem,
      ca: options.caPem,
      requestCert: true,
      rejectUnauthorized: true,
    },
    (request, response) => {
      const socket = request.socket as import('node:tls').TLSSocket;
      clients.push(String(socket.getPeerCertificate().subject.CN));
      response.end('{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}');
    },
  );
  await new Promise<void>((resolve) => server.listen(options.port ?? 0, '127.0.0.1', resolve));
  return {
    port: (server.address() as { port: number }).port,
    clients,
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}
