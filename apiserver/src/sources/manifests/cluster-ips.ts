/**
 * ClusterIP allocation, pure: requests + previous assignments → assignments. A service keeps what it has; an explicit address
 * is honoured or reported; an automatic one depends on the service's name first and on nobody's order of arrival, so that a
 * lost state file hardly renumbers anything.
 */
import { canonicalIp, cidrContains, parseCidr, readIpAddress, writeIpAddress } from '@clustermesh/contract';

export interface ClusterIpRequest {
  /** `namespace/name`. */
  readonly service: string;
  /** Of the family of the CIDR, in its short form. */
  readonly explicit: string | undefined;
  /** It has an address of the other family too, or may have. */
  readonly isOneOfTwo?: boolean;
}

export interface ClusterIpProblem {
  readonly service: string;
  readonly reason: string;
}

export interface ClusterIpResult {
  readonly assigned: ReadonlyMap<string, string>;
  /** The service keeps its previous address if it had one, and otherwise gets none. */
  readonly problems: readonly ClusterIpProblem[];
}

/** The addresses of a CIDR of either family, by their distance from its first. */
interface Range {
  readonly at: (offset: number) => string;
  readonly offsetOf: (ip: string) => number;
  readonly size: number;
  /** Offsets below are given out automatically only when all above are taken, as Kubernetes keeps them for explicit addresses. */
  readonly reserved: number;
}

function rangeOf(cidrText: string): Range {
  const cidr = parseCidr(cidrText);
  if (cidr === undefined) throw new RangeError(`service CIDR ${JSON.stringify(cidrText)} is no CIDR`);
  // Service CIDRs have at most 24 bits for addresses: they lie in the last four of the sixteen bytes, whatever the family.
  const bytes = Buffer.alloc(16);
  writeIpAddress(cidr.ip, bytes);
  const size = 2 ** ((cidr.ip.includes(':') ? 128 : 32) - cidr.length);
  const base = bytes.readUInt32BE(12) - (bytes.readUInt32BE(12) % size);
  const reserved = size >= 64 ? Math.min(Math.max(16, Math.floor(size / 16)), 256) : 1;
  return {
    size,
    reserved,
    at(offset) {
      bytes.writeUInt32BE(base + offset, 12);
      return readIpAddress(bytes);
    },
    offsetOf(ip) {
      const address = Buffer.alloc(16);
      writeIpAddress(ip, address);
      return address.readUInt32BE(12) - base;
    },
  };
}

/** Why a service may not have this address, or undefined: outside, or the first or last of the range. */
function explicitProblem(ip: string, cidrText: string, range: Range): string | undefined {
  const cidr = parseCidr(cidrText);
  if (canonicalIp(ip) === undefined || cidr === undefined || !cidrContains(cidr, ip))
    return `clusterIP ${ip} is outside the service CIDR ${cidrText}`;
  const offset = range.offsetOf(ip);
  if (offset === 0 || offset === range.size - 1)
    return `clusterIP ${ip} is the first or last address of the service CIDR ${cidrText}`;
  return undefined;
}

/** FNV-1a, 32 bit. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let index = 0; index < text.length; index++) value = Math.imul(value ^ text.charCodeAt(index), 0x01000193) >>> 0;
  return value;
}

/** A free address: from a start given by the name upward around the automatic band, then down the reserved one. */
function findFree(service: string, range: Range, taken: ReadonlyMap<string, string>): string | undefined {
  const automatic = range.size - 1 - range.reserved;
  const start = hash(service) % automatic;
  for (let step = 0; step < automatic; step++) {
    const ip = range.at(range.reserved + ((start + step) % automatic));
    if (!taken.has(ip)) return ip;
  }
  for (let offset = range.reserved - 1; offset > 0; offset--) {
    const ip = range.at(offset);
    if (!taken.has(ip)) return ip;
  }
  return undefined;
}

export function allocateClusterIps(
  requests: readonly ClusterIpRequest[],
  previous: ReadonlyMap<string, string>,
  serviceCidr: string,
): ClusterIpResult {
  const range = rangeOf(serviceCidr);
  const assigned = new Map<string, string>();
  const taken = new Map<string, string>();
  const problems: ClusterIpProblem[] = [];
  const assign = (service: string, ip: string) => {
    assigned.set(service, ip);
    taken.set(ip, service);
  };
  const without = ({ isOneOfTwo }: ClusterIpRequest) =>
    isOneOfTwo ? 'the service has the other family only' : 'the service is left out';
  const canKeep = (ip: string | undefined): ip is string =>
    ip !== undefined && !taken.has(ip) && explicitProblem(ip, serviceCidr, range) === undefined;

  const sorted = [...requests].sort((a, b) => (a.service < b.service ? -1 : 1));
  for (const { service, explicit } of sorted) {
    const held = previous.get(service);
    if (canKeep(held) && (explicit === undefined || explicit === held)) assign(service, held);
  }
  for (const request of sorted) {
    const { service, explicit } = request;
    if (explicit === undefined || assigned.has(service)) continue;
    const holder = taken.get(explicit);
    const problem =
      explicitProblem(explicit, serviceCidr, range) ??
      (holder === undefined ? undefined : `clusterIP ${explicit} belongs to service ${holder}`);
    if (problem === undefined) {
      assign(service, explicit);
      continue;
    }
    const held = previous.get(service);
    if (canKeep(held)) assign(service, held);
    problems.push({
      service,
      reason: problem + (assigned.has(service) ? `; it keeps ${held}` : `; ${without(request)}`),
    });
  }
  for (const request of sorted) {
    const { service, explicit } = request;
    if (explicit !== undefined || assigned.has(service)) continue;
    const ip = findFree(service, range, taken);
    if (ip === undefined) {
      problems.push({ service, reason: `no free address in the service CIDR ${serviceCidr}; ${without(request)}` });
    } else assign(service, ip);
  }
  return { assigned, problems };
}
