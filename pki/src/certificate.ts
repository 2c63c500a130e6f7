/** The thin edge to node-forge: it builds and encodes certificates, node:crypto signs them. */
import { createPublicKey, randomBytes, sign, X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import { MeshError, messageOf } from '@clustermesh/contract';
import forge from 'node-forge';
import { publicKeyPem, rsaPrivateKey } from './keys.ts';

export interface CertificateAuthority {
  readonly certPem: string;
  readonly keyPem: string;
}

export interface KeyAndCertificate {
  readonly keyPem: string;
  readonly certPem: string;
}

export interface CertificateFacts {
  readonly commonName: string;
  readonly dnsNames: readonly string[];
  readonly ips: readonly string[];
  readonly isCa: boolean;
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** SHA-256 over the DER form, lower case hex. */
  readonly fingerprint: string;
}

/** Ten years: replacing a CA needs every peer, so it is not left to expire in passing. */
export const CA_VALIDITY_DAYS = 3650;
/** Three years, as Cilium's chart issues them. */
export const LEAF_VALIDITY_DAYS = 1095;
/** Peers' clocks may be behind ours by this much. */
const CLOCK_SKEW_MS = 10 * 60_000;

/** When a certificate of ours was issued, by the clock of then. */
export const issuedAtMs = (facts: Pick<CertificateFacts, 'notBefore'>): number =>
  facts.notBefore.getTime() + CLOCK_SKEW_MS;

const DAY_MS = 86_400_000;

type LeafKind = 'server' | 'client';

interface LeafRequest {
  readonly ca: CertificateAuthority;
  readonly kind: LeafKind;
  readonly commonName: string;
  readonly publicKeyPem: string;
  readonly dnsNames?: readonly string[];
  readonly ips?: readonly string[];
  readonly now?: Date;
}

/** A self-signed CA for one cluster around the given key. */
export function createCaCertificate(options: {
  readonly cluster: string;
  readonly keyPem: string;
  readonly now?: Date;
}): CertificateAuthority {
  const certificate = forge.pki.createCertificate();
  certificate.publicKey = forge.pki.publicKeyFromPem(publicKeyPem(options.keyPem));
  const subject = [
    { name: 'organizationName', value: 'clustermesh' },
    { name: 'commonName', value: `clustermesh CA ${options.cluster}` },
  ];
  certificate.setSubject(subject);
  certificate.setIssuer(subject);
  certificate.setExtensions([
    { name: 'basicConstraints', critical: true, cA: true, pathLenConstraint: 0 },
    { name: 'keyUsage', critical: true, keyCertSign: true, cRLSign: true, digitalSignature: true },
    { name: 'subjectKeyIdentifier' },
    { name: 'authorityKeyIdentifier', keyIdentifier: keyIdentifier(certificate) },
  ]);
  const certPem = finish(certificate, options.keyPem, CA_VALIDITY_DAYS, options.now);
  return { certPem, keyPem: options.keyPem };
}

/** A certificate for someone's public key, signed by the cluster's CA. */
export function issueCertificate(request: LeafRequest): string {
  const issuer = forge.pki.certificateFromPem(request.ca.certPem);
  const certificate = forge.pki.createCertificate();
  certificate.publicKey = forge.pki.publicKeyFromPem(request.publicKeyPem);
  certificate.setSubject([{ name: 'commonName', value: request.commonName }]);
  certificate.setIssuer([...subjectOf(issuer)]);
  const altNames = [
    ...(request.dnsNames ?? []).map((value) => ({ type: 2, value })),
    ...(request.ips ?? []).map((ip) => ({ type: 7, ip: checkedIp(ip) })),
  ];
  certificate.setExtensions([
    { name: 'basicConstraints', critical: true, cA: false },
    { name: 'keyUsage', critical: true, digitalSignature: true, keyEncipherment: true },
    // etcd's own HTTP gateway dials the server with the server's certificate: without clientAuth it logs a failed handshake for ever.
    { name: 'extKeyUsage', clientAuth: true, serverAuth: request.kind === 'server' },
    { name: 'subjectKeyIdentifier' },
    // `true` would make forge put the certificate's own key there.
    { name: 'authorityKeyIdentifier', keyIdentifier: keyIdentifier(issuer) },
    ...(altNames.length > 0 ? [{ name: 'subjectAltName', altNames }] : []),
  ]);
  return finish(certificate, request.ca.keyPem, LEAF_VALIDITY_DAYS, request.now);
}

function checkedIp(ip: string): string {
  if (isIP(ip) === 0)
    throw new MeshError({
      code: 'invalid-argument',
      message: `issuing a certificate: ${JSON.stringify(ip)} is no IP address`,
    });
  return ip;
}

/** Its name to be written again: forge encodes texts when it writes, and does not decode them when it reads. */
export function subjectOf(certificate: forge.pki.Certificate): readonly forge.pki.CertificateField[] {
  return certificate.subject.attributes.map((attribute) =>
    (attribute.valueTagClass as unknown as forge.asn1.Type) === forge.asn1.Type.UTF8
      ? { ...attribute, value: forge.util.decodeUtf8(String(attribute.value)) }
      : attribute,
  );
}

/** The one that it says itself, if it does: an imported CA may have another than the usual hash of its key. */
export function keyIdentifier(certificate: forge.pki.Certificate): string {
  const own = certificate.getExtension('subjectKeyIdentifier') as { readonly subjectKeyIdentifier?: string } | null;
  if (own?.subjectKeyIdentifier !== undefined) return forge.util.hexToBytes(own.subjectKeyIdentifier);
  return (certificate.generateSubjectKeyIdentifier() as forge.util.ByteStringBuffer).getBytes();
}

function finish(certificate: forge.pki.Certificate, issuerKeyPem: string, days: number, now = new Date()): string {
  certificate.version = 2;
  certificate.serialNumber = randomSerial();
  certificate.validity.notBefore = new Date(now.getTime() - CLOCK_SKEW_MS);
  certificate.validity.notAfter = new Date(now.getTime() + days * DAY_MS);
  // What Certificate.sign() does, with the signature from OpenSSL: constant time, and the CA key never enters forge's arithmetic.
  const oid = forge.pki.oids['sha256WithRSAEncryption']!;
  const parts = certificate as unknown as {
    signatureOid: string;
    siginfo: { algorithmOid: string };
    tbsCertificate: forge.asn1.Asn1;
    signature: string;
  };
  parts.signatureOid = oid;
  parts.siginfo.algorithmOid = oid;
  parts.tbsCertificate = (
    forge.pki as unknown as { getTBSCertificate(c: forge.pki.Certificate): forge.asn1.Asn1 }
  ).getTBSCertificate(certificate);
  const der = Buffer.from(forge.asn1.toDer(parts.tbsCertificate).getBytes(), 'binary');
  parts.signature = sign('sha256', der, rsaPrivateKey(issuerKeyPem, 'the issuing CA')).toString('binary');
  return forge.pki.certificateToPem(certificate).replaceAll('\r\n', '\n');
}

/** 127 random bits, never zero and never negative in DER: the first byte is 0x40…0x7f. */
function randomSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x3f) | 0x40;
  return bytes.toString('hex');
}

export function parseCertificate(pem: string, what: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (error) {
    throw new MeshError({
      code: 'tls',
      message: `reading the certificate of ${what}: ${messageOf(error)}`,
      hint: 'it must be a PEM certificate',
      cause: error,
    });
  }
}

/** The certificates of a PEM bundle, each in PEM of its own, in order. */
export function certificatesIn(bundlePem: string): readonly string[] {
  return (
    bundlePem.match(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g)?.map((pem) => `${pem}\n`) ?? []
  );
}

/** What an operator wants to know of a certificate. */
export function certificateFacts(pem: string, what = 'a certificate'): CertificateFacts {
  const certificate = parseCertificate(pem, what);
  const sans = (certificate.subjectAltName ?? '').split(', ').filter((entry) => entry !== '');
  const valuesOf = (prefix: string) =>
    sans.filter((entry) => entry.startsWith(prefix)).map((entry) => entry.slice(prefix.length));
  return {
    commonName: /^CN=(.*)$/m.exec(certificate.subject)?.[1] ?? '',
    dnsNames: valuesOf('DNS:'),
    ips: valuesOf('IP Address:'),
    isCa: certificate.ca,
    notBefore: new Date(certificate.validFrom),
    notAfter: new Date(certificate.validTo),
    fingerprint: certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
  };
}

/** Whether `certPem` was signed by one of the CAs: issuer name and signature. Validity in time is the caller's question. */
export function isIssuedBy(certPem: string, caBundlePem: string): boolean {
  const certificate = parseCertificate(certPem, 'a leaf');
  const bundle = certificatesIn(caBundlePem);
  // What is no PEM at all is an error, not an empty list of CAs.
  return (bundle.length === 0 ? [caBundlePem] : bundle).some((pem) => {
    const ca = parseCertificate(pem, 'a CA');
    return ca.ca && certificate.checkIssued(ca) && certificate.verify(ca.publicKey);
  });
}

export function isKeyOf(certPem: string, keyPem: string): boolean {
  return parseCertificate(certPem, 'a leaf').publicKey.equals(createPublicKey(rsaPrivateKey(keyPem, 'a leaf')));
}
