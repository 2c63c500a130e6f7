/** Certificate requests: how one cluster gets a certificate from another cluster's CA without its private key travelling. */
import { createPublicKey, sign, verify } from 'node:crypto';
import { MeshError, messageOf } from '@clustermesh/contract';
import forge from 'node-forge';
import { type CertificateAuthority, issueCertificate } from './certificate.ts';
import { generateKeyPem, LEAF_KEY_BITS, LEAST_KEY_BITS, publicKeyPem, rsaPrivateKey } from './keys.ts';

/** forge keeps these on the object but its type declarations leave them out. */
interface RequestParts {
  signatureOid: string;
  siginfo: { algorithmOid: string };
  certificationRequestInfo: forge.asn1.Asn1;
  signature: string;
}

const HASH_OF_SIGNATURE: ReadonlyMap<string, string> = new Map([
  [forge.pki.oids['sha256WithRSAEncryption']!, 'sha256'],
  [forge.pki.oids['sha384WithRSAEncryption']!, 'sha384'],
  [forge.pki.oids['sha512WithRSAEncryption']!, 'sha512'],
]);

/** A new key with its request. */
export async function createKeyAndCsr(options: {
  readonly commonName: string;
}): Promise<{ readonly keyPem: string; readonly csrPem: string }> {
  const keyPem = await generateKeyPem(LEAF_KEY_BITS);
  return { keyPem, csrPem: createCsr({ keyPem, commonName: options.commonName }) };
}

/** The request for an existing key: equal input gives equal bytes. */
export function createCsr(options: { readonly keyPem: string; readonly commonName: string }): string {
  const request = forge.pki.createCertificationRequest();
  request.publicKey = forge.pki.publicKeyFromPem(publicKeyPem(options.keyPem));
  request.setSubject([{ name: 'commonName', value: options.commonName }]);
  const parts = request as unknown as RequestParts;
  parts.signatureOid = forge.pki.oids['sha256WithRSAEncryption']!;
  parts.siginfo.algorithmOid = parts.signatureOid;
  parts.certificationRequestInfo = (
    forge.pki as unknown as { getCertificationRequestInfo(r: forge.pki.CertificateSigningRequest): forge.asn1.Asn1 }
  ).getCertificationRequestInfo(request);
  parts.signature = sign('sha256', infoBytes(parts), rsaPrivateKey(options.keyPem, options.commonName)).toString(
    'binary',
  );
  return forge.pki.certificationRequestToPem(request).replaceAll('\r\n', '\n');
}

/**
 * A client certificate for the request's key. Nothing of the request but its key is used: the name is the one that was agreed
 * on, extensions are ours, so a stranger cannot ask for `admin-…`, for a CA certificate or for a server name.
 */
export function signCsr(options: {
  readonly csrPem: string;
  readonly ca: CertificateAuthority;
  readonly expectedCommonName: string;
  readonly now?: Date;
}): string {
  const attempted = `signing the certificate request for ${options.expectedCommonName}`;
  const refuse = (why: string, cause?: unknown) =>
    new MeshError({
      code: 'invalid-argument',
      message: `${attempted}: ${why}`,
      hint: 'the request must come from PrepareConnect of the peer',
      cause,
    });

  let request: forge.pki.CertificateSigningRequest;
  try {
    request = forge.pki.certificationRequestFromPem(options.csrPem);
  } catch (error) {
    throw refuse(`it cannot be read: ${messageOf(error)}`, error);
  }
  const names = request.subject.attributes.filter((attribute) => attribute.type === forge.pki.oids['commonName']);
  const commonName = names[0]?.value;
  if (names.length !== 1 || commonName !== options.expectedCommonName) {
    throw refuse(`its common name is ${JSON.stringify(commonName ?? null)}`);
  }

  const parts = request as unknown as RequestParts;
  const hash = HASH_OF_SIGNATURE.get(parts.signatureOid);
  if (hash === undefined)
    throw refuse(
      `it is signed with algorithm ${parts.signatureOid}, only RSA with SHA-256, SHA-384 or SHA-512 is accepted`,
    );
  const publicPem = forge.pki.publicKeyToPem(request.publicKey as forge.pki.rsa.PublicKey);
  const bits = createPublicKey(publicPem).asymmetricKeyDetails?.modulusLength ?? 0;
  if (bits < LEAST_KEY_BITS) throw refuse(`its key has ${bits} bits, at least ${LEAST_KEY_BITS} are needed`);
  if (!verify(hash, infoBytes(parts), publicPem, Buffer.from(parts.signature, 'binary'))) {
    throw refuse('its signature is wrong, so whoever sent it may not hold the key');
  }
  return issueCertificate({
    ca: options.ca,
    kind: 'client',
    commonName: options.expectedCommonName,
    publicKeyPem: publicPem,
    ...(options.now === undefined ? {} : { now: options.now }),
  });
}

function infoBytes(parts: RequestParts): Buffer {
  return Buffer.from(forge.asn1.toDer(parts.certificationRequestInfo).getBytes(), 'binary');
}
