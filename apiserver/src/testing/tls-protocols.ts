import { connect } from 'node:tls';

/** What a server agrees to when it is offered TLS up to 1.3, up to 1.2, and up to 1.1; `client`: with this certificate. */
export function protocolsOf(
  port: number,
  client?: { readonly certPem: string; readonly keyPem: string },
): Promise<readonly string[]> {
  const agreed = (maxVersion: 'TLSv1.1' | 'TLSv1.2' | 'TLSv1.3') =>
    new Promise<string>((resolve) => {
      const options = {
        ...{ host: '127.0.0.1', port, rejectUnauthorized: false, minVersion: 'TLSv1' as const, maxVersion },
        ...(client === undefined ? {} : { cert: client.certPem, key: client.keyPem }),
        // OpenSSL itself would not offer the old ones any more.
        ciphers: 'DEFAULT@SECLEVEL=0',
      };
      const socket = connect(options, () => {
        resolve(socket.getProtocol() ?? 'none');
        socket.destroy();
      });
      socket.on('error', () => resolve('refused'));
    });
  return Promise.all([agreed('TLSv1.3'), agreed('TLSv1.2'), agreed('TLSv1.1')]);
}
