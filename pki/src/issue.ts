import {
  type CertificateAuthority,
  createCaCertificate,
  issueCertificate,
  type KeyAndCertificate,
} from './certificate.ts';
import { CA_KEY_BITS, generateKeyPem, LEAF_KEY_BITS, publicKeyPem } from './keys.ts';
import { SERVER_COMMON_NAME, SERVER_IPS, serverDnsNames } from './names.ts';

export async function createCa(options: {
  readonly cluster: string;
  readonly now?: Date;
}): Promise<CertificateAuthority> {
  return createCaCertificate({ ...options, keyPem: await generateKeyPem(CA_KEY_BITS) });
}

/** etcd's server certificate: the names of wire-contract §7 and what is given on top. */
export async function issueServer(options: {
  readonly ca: CertificateAuthority;
  readonly dnsNames?: readonly string[];
  readonly ips?: readonly string[];
  readonly now?: Date;
}): Promise<KeyAndCertificate> {
  const keyPem = await generateKeyPem(LEAF_KEY_BITS);
  const certPem = issueCertificate({
    ca: options.ca,
    kind: 'server',
    commonName: SERVER_COMMON_NAME,
    publicKeyPem: publicKeyPem(keyPem),
    dnsNames: [...new Set([...serverDnsNames(), ...(options.dnsNames ?? [])])],
    ips: [...new Set([...SERVER_IPS, ...(options.ips ?? [])])],
    ...(options.now === undefined ? {} : { now: options.now }),
  });
  return { keyPem, certPem };
}

/** A client certificate; its common name is the etcd user that it logs in as. */
export async function issueClient(options: {
  readonly ca: CertificateAuthority;
  readonly commonName: string;
  readonly now?: Date;
}): Promise<KeyAndCertificate> {
  const keyPem = await generateKeyPem(LEAF_KEY_BITS);
  const certPem = issueCertificate({ ...options, kind: 'client', publicKeyPem: publicKeyPem(keyPem) });
  return { keyPem, certPem };
}
