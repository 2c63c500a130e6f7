import { createPrivateKey, createPublicKey, generateKeyPair, type KeyObject } from 'node:crypto';
import { promisify } from 'node:util';
import { MeshError } from '@clustermesh/contract';

const generate = promisify(generateKeyPair);

/**
 * RSA throughout, because node-forge (which builds certificates and requests) reads no other public key ("OID is not RSA").
 * Keys come from node:crypto, on libuv's thread pool: forge's own generator is JavaScript, slow, and blocks the loop.
 */
export const CA_KEY_BITS = 3072;
export const LEAF_KEY_BITS = 2048;
/** Below this a request is refused: 112-bit security, the floor of NIST SP 800-57 and of Go's TLS defaults. */
export const LEAST_KEY_BITS = 2048;

/** A new private key in PKCS#8 PEM. */
export async function generateKeyPem(bits: number): Promise<string> {
  const { privateKey } = await generate('rsa', { modulusLength: bits, publicExponent: 0x10001 });
  return privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
}

export function publicKeyPem(privatePem: string): string {
  return createPublicKey(privatePem).export({ type: 'spki', format: 'pem' }).toString();
}

/** Parses an RSA private key; `what` names it in the error, its content never appears. */
export function rsaPrivateKey(pem: string, what: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (error) {
    throw new MeshError({
      code: 'tls',
      message: `reading the private key of ${what}: it is no PEM private key`,
      cause: error,
    });
  }
  if (key.asymmetricKeyType !== 'rsa') {
    throw new MeshError({
      code: 'unsupported',
      message: `reading the private key of ${what}: it is of type ${key.asymmetricKeyType}, only RSA keys can be used`,
      hint: 'issue an RSA key (2048 bits or more) for it',
    });
  }
  return key;
}
