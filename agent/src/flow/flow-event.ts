/** Flow events as people and programs read them. Pure, but for what the given lookups ask. */
import { CmAction, CmDirection, CmReason } from '@clustermesh/bpf';
import type { CmEvent } from '../datapath/events.ts';
import { classOf, namesOf } from '../datapath/names.ts';
import { protocolName, readHead, type Tuple } from './packet.ts';

export type Verdict = 'forwarded' | 'answered' | 'dropped';

export interface FlowEnd {
  readonly ip: string;
  readonly port?: number;
  /** Numeric identity; absent: not known. */
  readonly identity?: number;
}

/** Fields are added, never renamed. */
export interface FlowEvent {
  /** ISO 8601. */
  readonly time: string;
  readonly verdict: Verdict;
  readonly reason: string;
  /** from-pod, to-pod, overlay, sock, … */
  readonly direction: string;
  readonly source?: FlowEnd;
  readonly destination?: FlowEnd;
  readonly protocol?: string;
  readonly tcpFlags?: string;
  readonly icmp?: { readonly type: number; readonly code: number };
  readonly isFragment?: boolean;
  readonly vlan?: number;
  /** Only of packets that are not IP. */
  readonly ethertype?: string;
  /** Where it was seen, and where it went. */
  readonly interface?: string;
  readonly to?: string;
  /** address:port/protocol of the service that chose the destination. */
  readonly service?: string;
  readonly backendId?: number;
  readonly bytes: number;
  /** Stands for so many packets; 1: all are shown. */
  readonly every: number;
}

export interface FlowLookups {
  identityOf(ip: string): number | undefined;
  interfaceName(ifindex: number): string | undefined;
  serviceName(id: number): string | undefined;
  /** Milliseconds since 1970 of a CLOCK_MONOTONIC time. */
  wallMs(monotonicNs: bigint): number;
}

const reasons = namesOf(CmReason);
const directions = namesOf(CmDirection);
const actions = namesOf(CmAction);

/** What left us was our answer; the flow is the one that it answers. */
function answered(tuple: Tuple, quoted: Tuple | undefined): Tuple {
  if (quoted !== undefined) return quoted;
  const { source, destination, sourcePort, destinationPort, tcpFlags: _, ...rest } = tuple;
  return {
    ...rest,
    source: destination,
    destination: source,
    ...(destinationPort === undefined ? {} : { sourcePort: destinationPort }),
    ...(sourcePort === undefined ? {} : { destinationPort: sourcePort }),
  };
}

export const reasonName = (reason: number): string => reasons.get(reason) ?? `reason-${reason}`;

export function verdictOf(reason: number): Verdict {
  const name = classOf(reason);
  return name === 'dropped' || name === 'answered' ? name : 'forwarded';
}

export function describeEvent(event: CmEvent, lookups: FlowLookups): FlowEvent {
  const verdict = verdictOf(event.reason);
  const common = {
    time: new Date(lookups.wallMs(event.timeNs)).toISOString(),
    verdict,
    reason: reasonName(event.reason),
    direction: directions.get(event.direction) ?? `direction-${event.direction}`,
    bytes: event.bytes,
    every: event.every,
    ...some('backendId', event.backendId || undefined),
  };
  if (event.headLen === 0 && event.addr !== '::') {
    const { addr: ip, port } = event;
    const protocol = protocolName(event.proto);
    const identity = some('identity', lookups.identityOf(ip));
    return { ...common, destination: { ip, port, ...identity }, protocol, service: serviceText(ip, port, protocol) };
  }
  const head = readHead(Buffer.from(event.head.subarray(0, event.headLen)));
  const shown = head?.tuple;
  const tuple = shown !== undefined && verdict === 'answered' ? answered(shown, head?.quoted) : shown;
  const end = (ip: string, port: number | undefined, identity: number | undefined): FlowEnd => ({
    ip,
    ...some('port', port),
    ...some('identity', identity ?? lookups.identityOf(ip)),
  });
  const place = (ifindex: number) => (ifindex === 0 ? undefined : (lookups.interfaceName(ifindex) ?? `if${ifindex}`));
  return {
    ...common,
    ...(tuple === undefined
      ? some('ethertype', head === undefined ? undefined : `0x${head.ethertype.toString(16).padStart(4, '0')}`)
      : {
          source: end(tuple.source, tuple.sourcePort, event.identity || undefined),
          destination: end(tuple.destination, tuple.destinationPort, undefined),
          protocol: tuple.protocol,
          ...some('tcpFlags', tuple.tcpFlags),
          ...some('icmp', tuple.icmp),
          ...some('isFragment', tuple.isFragment),
        }),
    ...some('vlan', head?.vlan),
    ...some('interface', place(event.ifindex)),
    ...some('to', event.target === 0 ? actions.get(event.action) : place(event.target)),
    ...some('service', event.serviceId === 0 ? undefined : lookups.serviceName(event.serviceId)),
  };
}

const serviceText = (ip: string, port: number, protocol: string): string =>
  `${ip.includes(':') ? `[${ip}]` : ip}:${port}/${protocol}`;

/** A member that is only there if it has a value. */
function some<Name extends string, T>(name: Name, value: T | undefined): { readonly [K in Name]?: T } {
  return (value === undefined ? {} : { [name]: value }) as { readonly [K in Name]?: T };
}
