/** Takes out of a text what must not leave its host: private keys, invitations, passwords. Pure. */
import { redactTokens } from '@clustermesh/pki';

const RULES: readonly (readonly [RegExp, string])[] = [
  // Also cut off behind its first line, and with line ends written as \n inside of JSON.
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g, '<private key removed>'],
  [/("?(?:password|passwd|secret|token|requirepass|masterauth)"?\s*[:=]\s*)("[^"\n]*"|[^\s,}]+)/gi, '$1"<removed>"'],
  [/(\brequirepass\s+|\bauthorization:\s*)\S.*/gi, '$1<removed>'],
  // user:password@ in a URL.
  [/(\b[a-z][a-z+.-]*:\/\/[^\s/:@]*:)[^\s/@]+@/gi, '$1<removed>@'],
];

/** PEM in base64, as Kubernetes keeps secrets. */
const ENCODED_PEM = /LS0tLS1CRUdJTi[A-Za-z0-9+/=]+/g;

export function redact(text: string): string {
  const decoded = text.replace(ENCODED_PEM, (encoded) =>
    Buffer.from(encoded, 'base64').toString('latin1').includes('PRIVATE KEY') ? '<private key removed>' : encoded,
  );
  return RULES.reduce((result, [pattern, by]) => result.replace(pattern, by), redactTokens(decoded));
}
