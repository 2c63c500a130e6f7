/**
 * An ip entry letter by letter as our apiservers and Cilium's write it: the order of Cilium's struct, printable ASCII, strings without
 * escapes. A mesh has hundreds of thousands of them, so it is read from the bytes as they came, and only what an agent uses is taken
 * out. Everything else is undefined here, and read by decode.ts with the same result: that is tested as a property.
 */
import { EXTENSION_FIELD, type IpEntry, identityRange, numberToIpv4 } from '@clustermesh/contract';
import type { Expected } from './decode.ts';

/** What an agent uses of an ip entry. */
export type AddressEntry = Pick<
  IpEntry,
  'IP' | 'Mask' | 'HostIP' | 'ID' | 'Key' | 'NamedPorts' | typeof EXTENSION_FIELD
>;

const ascii = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'latin1'));

const TEXT = {
  ip: ascii('{"IP":"'),
  host: ascii('","Mask":null,"HostIP":"'),
  id: ascii('","ID":'),
  key: ascii(',"Key":'),
  metadata: ascii(',"Metadata":"'),
  optional: ['K8sNamespace', 'K8sPodName', 'K8sServiceAccount'].map((field) => ascii(`","${field}":"`)),
  stamp: ascii(`","${EXTENSION_FIELD}":{"changedAt":"`),
  stampEnd: ascii('"}}'),
  end: ascii('"}'),
};

const ZERO = 0x30;
const DOT = 0x2e;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/*
 * Plain functions over (bytes, at): as methods of a cursor they take six times as long. They return where they have come to, or -1 if
 * what they look for is not there; -1 as the place to begin at is not there either.
 */

/** Behind this text. */
function behind(bytes: Uint8Array, at: number, text: Uint8Array): number {
  const { length } = text;
  if (at < 0 || at + length > bytes.length) return -1;
  for (let i = 0; i < length; i++) if (bytes[at + i] !== text[i]) return -1;
  return at + length;
}

/** At the quote that ends the string, unless something in it would have to be looked at. */
function stringEnd(bytes: Uint8Array, from: number): number {
  const { length } = bytes;
  if (from < 0) return -1;
  for (let at = from; at < length; at++) {
    const byte = bytes[at]!;
    if (byte === QUOTE) return at;
    if (byte < 0x20 || byte > 0x7e || byte === BACKSLASH) return -1;
  }
  return -1;
}

/** Where the number or address that was read last ends. */
let end = 0;

/** Of at most so many digits, and no zeros before it; -1: there is none. */
function number(bytes: Uint8Array, from: number, digits: number): number {
  if (from < 0) return -1;
  const most = Math.min(from + digits, bytes.length);
  let value = 0;
  end = from;
  for (; end < most; end++) {
    const digit = bytes[end]! - ZERO;
    if (digit < 0 || digit > 9) break;
    // A zero stands alone.
    if (value === 0 && end > from) break;
    value = value * 10 + digit;
  }
  return end === from ? -1 : value;
}

/** An IPv4 address as a number; -1: there is none. */
function ipv4(bytes: Uint8Array, from: number): number {
  let address = 0;
  end = from;
  for (let part = 0; part < 4; part++) {
    if (part > 0) {
      if (end >= bytes.length || bytes[end] !== DOT) return -1;
      end++;
    }
    const octet = number(bytes, end, 3);
    if (octet < 0 || octet > 255) return -1;
    address = address * 256 + octet;
  }
  return address;
}

function isText(bytes: Uint8Array, from: number, to: number, text: string): boolean {
  if (to - from !== text.length) return false;
  for (let i = from; i < to; i++) if (bytes[i] !== text.charCodeAt(i - from)) return false;
  return true;
}

/** One text for all pods of a node. */
const hosts = new Map<number, string>();
const MOST_HOSTS = 100_000;

function hostText(address: number): string {
  const known = hosts.get(address);
  if (known !== undefined) return known;
  // Nodes come and go; what is forgotten here is only kept twice.
  if (hosts.size >= MOST_HOSTS) hosts.clear();
  const text = numberToIpv4(address);
  hosts.set(address, text);
  return text;
}

export function writtenAddress(name: string, value: Buffer, expected: Expected): AddressEntry | undefined {
  const nameAt = behind(value, 0, TEXT.ip);
  if (nameAt < 0 || ipv4(value, nameAt) < 0 || !isText(value, nameAt, end, name)) return undefined;
  const hostAt = behind(value, end, TEXT.host);
  const host = hostAt < 0 ? -1 : ipv4(value, hostAt);
  if (host < 0) return undefined;
  const ID = number(value, behind(value, end, TEXT.id), 10);
  const { first, last } = identityRange(expected.clusterId, expected.maxConnectedClusters);
  if (ID < first || ID > last) return undefined;
  const Key = number(value, behind(value, end, TEXT.key), 3);
  if (Key < 0 || Key > 255) return undefined;
  let at = stringEnd(value, behind(value, end, TEXT.metadata));
  for (const field of TEXT.optional) {
    const from = behind(value, at, field);
    if (from >= 0) at = stringEnd(value, from);
  }
  const HostIP = hostText(host);
  const stampAt = behind(value, at, TEXT.stamp);
  if (stampAt < 0)
    return behind(value, at, TEXT.end) === value.length ? { IP: name, Mask: null, HostIP, ID, Key } : undefined;
  const stampEnd = stringEnd(value, stampAt);
  if (behind(value, stampEnd, TEXT.stampEnd) !== value.length) return undefined;
  const changedAt = value.toString('latin1', stampAt, stampEnd);
  // EXTENSION_FIELD, spelt out: a name that is computed costs as much as all of the above.
  return { IP: name, Mask: null, HostIP, ID, Key, 'x-clustermesh': { changedAt } };
}
