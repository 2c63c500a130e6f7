/** Which flow events somebody wants to see. Pure. */
import { isIpAddress, MeshError, writeIpAddress } from '@clustermesh/contract';
import type { FlowEnd, FlowEvent, Verdict } from './flow-event.ts';
import { reasonName } from './flow-event.ts';

/** Of each field that names something, an event must match one; of `address`, `port` and `identity`, either end may. */
export interface FlowFilter {
  readonly verdict?: readonly string[];
  readonly reason?: readonly string[];
  readonly identity?: readonly number[];
  /** Addresses and prefixes. */
  readonly address?: readonly string[];
  readonly port?: readonly number[];
  /** address:port/protocol, or the beginning of it. */
  readonly service?: readonly string[];
}

const VERDICTS: readonly Verdict[] = ['forwarded', 'answered', 'dropped'];
const KNOWN_REASONS: ReadonlySet<string> = new Set(Array.from({ length: 256 }, (_, reason) => reasonName(reason)));

type Matcher = (event: FlowEvent) => boolean;

/** Throws for what can match nothing. */
export function compileFilter(filter: FlowFilter): Matcher {
  const matchers: Matcher[] = [];
  const add = <T>(wanted: readonly T[] | undefined, matches: (value: T) => Matcher) => {
    if (wanted === undefined || wanted.length === 0) return;
    const each = wanted.map(matches);
    matchers.push((event) => each.some((match) => match(event)));
  };
  add(filter.verdict, (verdict) => {
    if (!(VERDICTS as readonly string[]).includes(verdict)) throw refused('verdict', verdict, VERDICTS.join(', '));
    return (event) => event.verdict === verdict;
  });
  add(filter.reason, (reason) => {
    if (!KNOWN_REASONS.has(reason)) throw refused('reason', reason, 'those that `drops --all` lists');
    return (event) => event.reason === reason;
  });
  add(filter.identity, (identity) => eitherEnd((end) => end.identity === identity));
  add(filter.address, (text) => {
    const contains = parsePrefix(text);
    return eitherEnd((end) => contains(end.ip));
  });
  add(filter.port, (port) => eitherEnd((end) => end.port === port));
  add(filter.service, (service) => (event) => event.service?.startsWith(service) ?? false);
  return (event) => matchers.every((match) => match(event));
}

const eitherEnd =
  (matches: (end: FlowEnd) => boolean): Matcher =>
  ({ source, destination }) =>
    (source !== undefined && matches(source)) || (destination !== undefined && matches(destination));

const refused = (what: string, got: string, known: string) =>
  new MeshError({
    code: 'invalid-argument',
    message: `filtering flow events by ${what} ${JSON.stringify(got)}: there is none; known are ${known}`,
  });

const BYTES = 16;
const IPV4_BITS = 96;

/** IPv4 and IPv6 in one form, as in the kernel's maps. */
function bytesOf(ip: string): Buffer {
  const bytes = Buffer.alloc(BYTES);
  writeIpAddress(ip, bytes);
  return bytes;
}

function parsePrefix(text: string): (ip: string) => boolean {
  const [ip = '', length, ...rest] = text.split('/');
  const family = ip.includes(':') ? 0 : IPV4_BITS;
  const bits = family + (length === undefined ? 128 - family : Number(length));
  if (!isIpAddress(ip) || rest.length > 0 || length === '' || !Number.isInteger(bits) || bits < family || bits > 128)
    throw refused('address', text, 'addresses such as 10.1.1.5 and prefixes such as 10.1.0.0/16 or fd00::/64');
  const wanted = bytesOf(ip);
  const whole = bits >> 3;
  const mask = 0xff00 >> (bits & 7);
  return (other) => {
    const bytes = bytesOf(other);
    if (wanted.compare(bytes, 0, whole, 0, whole) !== 0) return false;
    return whole === BYTES || ((wanted[whole]! ^ bytes[whole]!) & mask & 0xff) === 0;
  };
}
