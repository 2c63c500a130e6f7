/**
 * Certificate revocation lists (RFC 5280 §5). etcd reads its --client-crl-file at every new connection (tried with 3.4: PEM and DER;
 * it compares serial numbers only, and refuses everybody while the file is missing), and our gate reads the same file.
 */
import { sign, verify } from 'node:crypto';
import { MeshError, messageOf } from '@clustermesh/contract';
import forge from 'node-forge';
import {
  type CertificateAuthority,
  certificatesIn,
  keyIdentifier,
  parseCertificate,
  subjectOf,
} from './certificate.ts';
import { rsaPrivateKey } from './keys.ts';

const { asn1 } = forge;
const { Class, Type } = asn1;
const OID_SHA256_RSA = forge.pki.oids['sha256WithRSAEncryption']!;
const OID_CRL_NUMBER = '2.5.29.20';
const OID_AUTHORITY_KEY = '2.5.29.35';
/** Nobody of ours refuses a list by age: a list that ran out must not be a way back in, nor lock everybody out. */
const CRL_VALIDITY_DAYS = 3650;
const DAY_MS = 86_400_000;

export interface RevokedCertificate {
  /** Hex, as `serialOf` gives it. */
  readonly serial: string;
  readonly revokedAtMs: number;
}

/** A certificate's serial number: lower case hex without leading zeros. */
export function serialOf(certPem: string): string {
  return normalSerial(parseCertificate(certPem, 'a leaf').serialNumber);
}

export function normalSerial(serial: string): string {
  return serial.toLowerCase().replace(/^0+(?=.)/, '');
}

/** The list in PEM, signed by the CA. `number` grows with every list of one CA. */
export function createCrl(options: {
  readonly ca: CertificateAuthority;
  readonly revoked: readonly RevokedCertificate[];
  readonly number: number;
  readonly now?: Date;
}): string {
  const now = options.now ?? new Date();
  const issuer = forge.pki.certificateFromPem(options.ca.certPem);
  const keyId = keyIdentifier(issuer);
  const algorithm = sequence(oid(OID_SHA256_RSA), asn1.create(Class.UNIVERSAL, Type.NULL, false, ''));
  const list = sequence(
    integer('01'),
    algorithm,
    forge.pki.distinguishedNameToAsn1({ attributes: [...subjectOf(issuer)] }),
    time(now),
    time(new Date(now.getTime() + CRL_VALIDITY_DAYS * DAY_MS)),
    // Absent when empty: an empty sequence is not allowed there.
    ...(options.revoked.length === 0
      ? []
      : [
          sequence(
            ...options.revoked.map((entry) => sequence(integer(entry.serial), time(new Date(entry.revokedAtMs)))),
          ),
        ]),
    tagged(
      0,
      sequence(
        extension(OID_AUTHORITY_KEY, sequence(asn1.create(Class.CONTEXT_SPECIFIC, 0, false, keyId))),
        extension(OID_CRL_NUMBER, integer(options.number.toString(16))),
      ),
    ),
  );
  const der = Buffer.from(asn1.toDer(list).getBytes(), 'binary');
  const signature = sign('sha256', der, rsaPrivateKey(options.ca.keyPem, 'the issuing CA'));
  const whole = sequence(
    list,
    algorithm,
    asn1.create(Class.UNIVERSAL, Type.BITSTRING, false, `\0${signature.toString('binary')}`),
  );
  const body = Buffer.from(asn1.toDer(whole).getBytes(), 'binary').toString('base64');
  return `-----BEGIN X509 CRL-----\n${body.replace(/(.{64})(?=.)/g, '$1\n')}\n-----END X509 CRL-----\n`;
}

/** The serials of a list that one of the given CAs has signed; throws `tls` for anything else. */
export function readCrl(pem: string, caBundlePem: string): ReadonlySet<string> {
  const refuse = (why: string, cause?: unknown) =>
    new MeshError({
      code: 'tls',
      message: `reading a certificate revocation list: ${why}`,
      hint: 'it is written by the apiserver whenever a peer is revoked',
      cause,
    });
  let parts: forge.asn1.Asn1[];
  let list: forge.asn1.Asn1[];
  try {
    const [block] = forge.pem.decode(pem);
    if (block?.type !== 'X509 CRL') throw new Error('it is no PEM block of type X509 CRL');
    parts = asn1.fromDer(block.body).value as forge.asn1.Asn1[];
    list = parts[0]!.value as forge.asn1.Asn1[];
  } catch (error) {
    throw refuse(messageOf(error), error);
  }
  const der = Buffer.from(asn1.toDer(parts[0]!).getBytes(), 'binary');
  const signature = Buffer.from((parts[2]!.value as string).slice(1), 'binary');
  const isSigned = certificatesIn(caBundlePem).some((ca) =>
    verify('sha256', der, parseCertificate(ca, 'a CA').publicKey, signature),
  );
  if (!isSigned) throw refuse('none of the trusted CAs has signed it');
  // version, algorithm, issuer, thisUpdate, nextUpdate, [revoked], extensions
  const revoked = list[5];
  if (revoked === undefined || revoked.tagClass !== Class.UNIVERSAL) return new Set();
  return new Set(
    (revoked.value as forge.asn1.Asn1[]).map((entry) => {
      const serial = (entry.value as forge.asn1.Asn1[])[0]!.value as string;
      return normalSerial(Buffer.from(serial, 'binary').toString('hex'));
    }),
  );
}

const sequence = (...value: forge.asn1.Asn1[]) => asn1.create(Class.UNIVERSAL, Type.SEQUENCE, true, value);
const tagged = (tag: number, value: forge.asn1.Asn1) => asn1.create(Class.CONTEXT_SPECIFIC, tag as 0, true, [value]);
const oid = (dotted: string) => asn1.create(Class.UNIVERSAL, Type.OID, false, asn1.oidToDer(dotted).getBytes());
const extension = (id: string, value: forge.asn1.Asn1) =>
  sequence(oid(id), asn1.create(Class.UNIVERSAL, Type.OCTETSTRING, false, asn1.toDer(value).getBytes()));

/** A positive integer from hex: a leading zero byte where the first bit would make it negative. */
function integer(hex: string): forge.asn1.Asn1 {
  const even = hex.length % 2 === 0 ? hex : `0${hex}`;
  const bytes = Buffer.from(Number.parseInt(even.slice(0, 2), 16) >= 0x80 ? `00${even}` : even, 'hex');
  return asn1.create(Class.UNIVERSAL, Type.INTEGER, false, bytes.toString('binary'));
}

/** UTCTime until 2049, GeneralizedTime from 2050 on (RFC 5280 §5.1.2.4). */
function time(date: Date): forge.asn1.Asn1 {
  return date.getUTCFullYear() < 2050
    ? asn1.create(Class.UNIVERSAL, Type.UTCTIME, false, asn1.dateToUtcTime(date))
    : asn1.create(Class.UNIVERSAL, Type.GENERALIZEDTIME, false, asn1.dateToGeneralizedTime(date));
}
