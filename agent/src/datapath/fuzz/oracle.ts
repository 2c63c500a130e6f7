/**
 * What must not be forwarded, said a second time and in another language: from the table of odd packets in bpf/README.md, not from
 * the programs. It only knows what has to be dropped; that something may be forwarded is not what it says. With policies it says so of
 * what begins a flow, and of a reply as long as nothing went the other way.
 */
import { CmAction, CmReason } from '@clustermesh/bpf';
import { isIpv4, RESERVED_IDENTITY, readIpAddress } from '@clustermesh/contract';
import { readHead, type Tuple } from '../../flow/packet.ts';
import {
  A,
  B,
  C,
  D,
  GATEWAY,
  GATEWAY6,
  type LabPod,
  LB,
  LB6,
  NODE,
  NODE6,
  type Outcome,
  W,
} from '../testing/packet-lab.ts';
import type { FuzzCase } from './packets.ts';
import { type Asked, isDenied } from './policies.ts';

export const PODS = [A, B];
export const podOf = (ip: string) => PODS.find((pod) => pod.ip === ip || pod.ip6 === ip);
const OWN_HOST: ReadonlySet<string> = new Set([NODE, NODE6, GATEWAY, GATEWAY6]);
const CLUSTER_OF_NODE: ReadonlyMap<string, number> = new Map([
  [C.node, 2],
  [W.node, 2],
  ['172.31.1.12', 1],
]);
/** 10.1.1.0/24 and fd00:1:1::/64, in canonical text. */
const isOwnPodCidr = (ip: string): boolean => ip.startsWith('10.1.1.') || /^fd00:1:1:(:|0:)/.test(ip);
const isLinkLocal = (ip: string): boolean => /^fe[89ab]/.test(ip);

const isTunnelled = (ip: string): boolean =>
  [C.ip, C.ip6, W.ip, W.ip6].includes(ip) || ip.startsWith('10.3.') || ip.startsWith('fd00:3:');

/** Whom the tables of the packet lab take an address for. */
export function identityOf(ip: string): number {
  const known = [A, B, C, W, D].find((one) => one.ip === ip || ('ip6' in one && one.ip6 === ip));
  if (known !== undefined) return known.identity;
  if (OWN_HOST.has(ip)) return RESERVED_IDENTITY.host;
  if (isOwnPodCidr(ip)) return RESERVED_IDENTITY.unmanaged;
  if (ip === '10.3.9.9' || ip === 'fd00:3::9:9') return C.identity;
  return ip.startsWith('fd00:3:') ? RESERVED_IDENTITY.world : worldOf(ip);
}

const worldOf = (ip: string): number => (isIpv4(ip) ? RESERVED_IDENTITY.world : RESERVED_IDENTITY.worldIpv6);

/** Backends of the lab's services; undefined: a service without. */
const BACKENDS: ReadonlyMap<string, { readonly ip: string; readonly port: number } | undefined> = new Map(
  (
    [
      ['10.96.0.', B.ip, C.ip],
      ['fd96::', B.ip6, C.ip6],
    ] as const
  ).flatMap(([net, b, c]) => [
    [`${net}10 80 6`, { ip: c, port: 8080 }],
    [`${net}10 53 17`, { ip: c, port: 5353 }],
    [`${net}20 80 6`, { ip: b, port: 8080 }],
    [`${net}30 80 6`, undefined],
    [`${net}30 53 17`, undefined],
  ]),
);

/** The same for what comes from other hosts. */
const OUTSIDE: typeof BACKENDS = new Map(
  (
    [
      [NODE, LB, B.ip, C.ip],
      [NODE6, LB6, B.ip6, C.ip6],
    ] as const
  ).flatMap(([node, lb, b, c]) => [
    [`${node} 80 6`, { ip: b, port: 8080 }],
    [`${lb} 80 6`, { ip: c, port: 8080 }],
    [`${lb} 53 17`, { ip: c, port: 5353 }],
    [`${lb} 4000 6`, undefined],
    [`${lb} 4000 17`, undefined],
    [`${LB} 8080 6`, { ip: D.ip, port: 8080 }],
    [`${LB6} 8080 6`, { ip: D.ip6, port: 8080 }],
  ]),
);

/** What an IP packet is, as far as it decides; or why nobody may have it. Addresses stand beside that once the IP header is right. */
type Parsed =
  | { readonly drop: string; readonly saddr?: string; readonly daddr?: string }
  | { readonly arp: true }
  | {
      readonly saddr: string;
      readonly daddr: string;
      readonly discovery?: { readonly type: number; readonly hops: number };
      /** Absent: a later fragment, or an ICMP error; those go with a flow. */
      readonly asked?: Asked;
    };

export interface Oracle {
  /** Why it must be dropped; undefined if it need not be. Remembers first fragments, so each packet is to be asked about once. */
  mustDrop(fuzz: FuzzCase): string | undefined;
  /** What became of it: a flow that has begun has replies. */
  observe(fuzz: FuzzCase, outcome: Outcome): void;
}

const [TCP, UDP, ICMP, ICMPV6, SCTP] = [6, 17, 1, 58, 132];
const HEADER_BYTES: ReadonlyMap<number, number> = new Map([
  [TCP, 20],
  [UDP, 8],
  [SCTP, 12],
  [ICMP, 8],
  [ICMPV6, 8],
]);
const FORWARDED_ICMP: ReadonlySet<number> = new Set([0, 3, 8, 11, 12]);
const FORWARDED_ICMPV6: ReadonlySet<number> = new Set([1, 2, 3, 4, 128, 129]);
const DISCOVERY: ReadonlySet<number> = new Set([130, 131, 132, 133, 134, 135, 136, 137, 143]);
const MAX_EXTENSIONS = 4;

const ECHO: ReadonlySet<number> = new Set([0, 8, 128, 129]);
/** The packet was taken for a flow's, and then something else was wrong with it. */
const TRACKED_DROPS: ReadonlySet<number> = new Set([
  CmReason.HAIRPIN,
  CmReason.WRITE_FAILED,
  CmReason.NO_ANSWER,
  CmReason.ICMP_LIMITED,
]);

export const POLICY_REASON = 'denied by policy';

/** `isPoliced`: the policies of policies.ts are in force. */
export function createOracle(isPoliced: boolean): Oracle {
  const firstFragments = new Set<string>();
  /** What has gone, both as it came and as it left: a packet of the opposite may be a reply. */
  const gone = new Set<string>();

  function layer4(bytes: Buffer, protocol: number, isV6: boolean): string | { discovery: number } | { asked?: Asked } {
    const need = HEADER_BYTES.get(protocol);
    if (need === undefined || protocol === (isV6 ? ICMP : ICMPV6)) return 'unsupported layer 4';
    if (bytes.length < need) return 'layer 4 header cut short';
    if (protocol === ICMP && !FORWARDED_ICMP.has(bytes[0]!)) return 'ICMP type';
    if (protocol === ICMP || protocol === ICMPV6) {
      const type = bytes[0]!;
      if (protocol === ICMPV6 && DISCOVERY.has(type)) return { discovery: type };
      if (protocol === ICMPV6 && !FORWARDED_ICMPV6.has(type)) return 'ICMPv6 type';
      return ECHO.has(type) ? { asked: { protocol, port: type } } : {};
    }
    return { asked: { protocol, port: bytes.readUInt16BE(2) } };
  }

  function ipv4(packet: Buffer): Parsed {
    if (packet.length < 20) return { drop: 'IPv4 header cut short' };
    if (packet[0] !== 0x45) return { drop: 'version or options' };
    const length = packet.readUInt16BE(2);
    if (length < 20 || length > packet.length) return { drop: 'total length' };
    const [saddr, daddr] = [packet.subarray(12, 16).join('.'), packet.subarray(16, 20).join('.')];
    const part = packet.readUInt16BE(6);
    const key = `${saddr} ${daddr} ${packet.readUInt16BE(4)} ${packet[9]}`;
    if ((part & 0x1fff) !== 0)
      return firstFragments.has(key) ? { saddr, daddr } : { drop: 'fragment without its first', saddr, daddr };
    if ((part & 0x2000) !== 0) firstFragments.add(key);
    const found = layer4(packet.subarray(20, length), packet[9]!, false);
    return typeof found === 'string' ? { drop: found, saddr, daddr } : { saddr, daddr, ...askedOf(found) };
  }

  function ipv6(packet: Buffer): Parsed {
    if (packet.length < 40) return { drop: 'IPv6 header cut short' };
    if (packet[0]! >> 4 !== 6) return { drop: 'version' };
    const length = packet.readUInt16BE(4);
    if (length === 0 || length > packet.length - 40) return { drop: 'payload length' };
    const [saddr, daddr] = [readIpAddress(packet, 8), readIpAddress(packet, 24)];
    if (isIpv4(saddr) || isIpv4(daddr)) return { drop: 'v4-mapped address' };
    const end = 40 + length;
    let next = packet[6]!;
    let at = 40;
    let passed = 0;
    while ([0, 44, 60].includes(next)) {
      if (++passed > MAX_EXTENSIONS) return { drop: 'too many extension headers', saddr, daddr };
      if (end < at + 8) return { drop: 'extension header cut short', saddr, daddr };
      if (next === 44) {
        const part = packet.readUInt16BE(at + 2);
        const key = `${saddr} ${daddr} ${packet.readUInt32BE(at + 4)}`;
        if ((part & 0xfff8) !== 0)
          return firstFragments.has(key) ? { saddr, daddr } : { drop: 'fragment without its first', saddr, daddr };
        if ((part & 1) !== 0) firstFragments.add(key);
      }
      if (next === 60 && packet[at + 2] === 0x5e) return { drop: 'names a service', saddr, daddr };
      const step = next === 44 ? 8 : (packet[at + 1]! + 1) * 8;
      next = packet[at]!;
      at += step;
    }
    if (next === 43) return { drop: 'routing header', saddr, daddr };
    const found = layer4(packet.subarray(Math.min(at, end), end), next, true);
    if (typeof found === 'string') return { drop: found, saddr, daddr };
    if ('discovery' in found) return { saddr, daddr, discovery: { type: found.discovery, hops: packet[7]! } };
    return { saddr, daddr, ...askedOf(found) };
  }

  function parse(frame: Buffer): Parsed {
    switch (frame.readUInt16BE(12)) {
      case 0x8100:
      case 0x88a8:
        return { drop: 'VLAN tag' };
      case 0x0806:
        return { arp: true };
      case 0x0800:
        return ipv4(frame.subarray(14));
      case 0x86dd:
        return ipv6(frame.subarray(14));
      default:
        return { drop: 'neither IP nor ARP' };
    }
  }

  function fromPod(parsed: Parsed, ifindex: number): string | undefined {
    if ('drop' in parsed) return parsed.drop;
    if ('arp' in parsed) return undefined;
    const { saddr, daddr, discovery } = parsed;
    const isOwn = podOf(saddr)?.ifindex === ifindex;
    if (discovery !== undefined) {
      const isNeighbour = discovery.type >= 133 && discovery.type <= 137;
      if (isNeighbour && discovery.hops !== 255) return 'discovery from afar';
      if (discovery.type === 134 || discovery.type === 137) return 'what only a router says';
      return isOwn || saddr === '::' || isLinkLocal(saddr) ? undefined : 'spoofed discovery';
    }
    if (!isOwn) return 'spoofed source';
    return podOf(daddr)?.ifindex === ifindex ? 'to itself' : undefined;
  }

  /** `service`: that it was sent for, as it said. */
  function overlay(parsed: Parsed, { vni, remote }: FuzzCase['hook'], service: string | undefined): string | undefined {
    const cluster = CLUSTER_OF_NODE.get(remote);
    if (cluster === undefined) return 'unknown node';
    if (vni >= 256 && vni >> 16 !== cluster) return 'foreign identity';
    if ('drop' in parsed) return parsed.drop;
    if ('arp' in parsed) return 'ARP from afar';
    const { saddr, daddr, discovery } = parsed;
    if (discovery !== undefined) return 'discovery from afar';
    if (isLinkLocal(saddr)) return 'link-local source';
    if (isOwnPodCidr(saddr) || OWN_HOST.has(saddr)) return 'our own address from afar';
    if (service !== undefined) {
      if (isOfMesh(saddr)) return 'another client than of the world';
      if (isOfMesh(service)) return 'no address of a service';
      if ('asked' in parsed && ![TCP, UDP, SCTP].includes(parsed.asked!.protocol)) return 'no service has it';
    }
    return isOwnPodCidr(daddr) || OWN_HOST.has(daddr) ? undefined : 'not for us';
  }

  function fromNetwork(parsed: Parsed): string | undefined {
    if ('arp' in parsed || parsed.saddr === undefined || parsed.daddr === undefined) return undefined;
    // What is neither for a pod nor for a service is the host's affair.
    const asked = 'drop' in parsed ? undefined : parsed.asked;
    const isForService = asked !== undefined && OUTSIDE.has(`${parsed.daddr} ${asked.port} ${asked.protocol}`);
    if (podOf(parsed.daddr) === undefined && !isForService) return undefined;
    if (isOwnPodCidr(parsed.saddr) || OWN_HOST.has(parsed.saddr)) return 'our own address from afar';
    if (isTunnelled(parsed.saddr)) return 'not encapsulated';
    if ('drop' in parsed) return parsed.drop;
    return parsed.discovery === undefined ? undefined : 'discovery from afar';
  }

  function toPod(parsed: Parsed, { cameBy }: FuzzCase['hook']): string | undefined {
    if ('arp' in parsed) return undefined;
    if ('drop' in parsed) return parsed.drop;
    const { saddr, discovery } = parsed;
    if (discovery !== undefined) {
      const isNeighbour = discovery.type >= 133 && discovery.type <= 137;
      const isOnLink = isNeighbour ? discovery.hops === 255 : saddr === '::' || isLinkLocal(saddr);
      return isOnLink ? undefined : 'discovery from afar';
    }
    const sender = podOf(saddr);
    if (sender !== undefined) return sender.ifindex === cameBy ? undefined : 'spoofed source';
    return isTunnelled(saddr) ? 'not encapsulated' : undefined;
  }

  /** Who begins it, as the program sees it; the sender's own policies count on its node alone. */
  function beginner(
    { program, hook }: FuzzCase,
    saddr: string,
  ): { readonly identity: number; readonly pod: LabPod | undefined } {
    const believed = hook.vni === RESERVED_IDENTITY.host ? RESERVED_IDENTITY.remoteNode : hook.vni;
    const identity = program === 'cm_test_overlay' ? believed : identityOf(saddr);
    if (identity === RESERVED_IDENTITY.host && program === 'cm_test_to_pod' && hook.cameBy !== 0)
      return { identity: worldOf(saddr), pod: undefined };
    return { identity, pod: program === 'cm_test_from_pod' ? podOf(saddr) : undefined };
  }

  function mayBeReply(packet: Buffer): boolean {
    const tuple = readHead(packet)?.tuple;
    if (tuple === undefined) return true;
    const { flow, ends } = namesOf(tuple, true);
    return gone.has(flow) || gone.has(ends);
  }

  /** Of a packet that is right in itself. */
  function byPolicy(fuzz: FuzzCase, parsed: Parsed): string | undefined {
    // What leaves the node was asked about where it came from.
    if (!isPoliced || fuzz.program === 'cm_test_to_network') return undefined;
    if ('drop' in parsed || 'arp' in parsed || parsed.asked === undefined) return undefined;
    const { saddr, daddr, asked } = parsed;
    const service = `${daddr} ${asked.port} ${asked.protocol}`;
    const services = { cm_test_from_pod: BACKENDS, cm_test_from_network: OUTSIDE }[fuzz.program as string];
    const isBalanced = services?.has(service) === true;
    const backend = isBalanced ? services?.get(service) : { ip: daddr, port: asked.port };
    if (backend === undefined) return undefined; // Answered: there is nobody to be reached.
    if (!isBalanced && mayBeReply(fuzz.packet)) return undefined;
    const { identity, pod } = beginner(fuzz, saddr);
    const receiver = podOf(backend.ip);
    const flow = { protocol: asked.protocol, port: backend.port };
    const isRefused =
      (pod !== undefined && isDenied(pod, 'egress', identityOf(backend.ip), flow)) ||
      (receiver !== undefined && isDenied(receiver, 'ingress', identity, flow));
    return isRefused ? POLICY_REASON : undefined;
  }

  return {
    mustDrop(fuzz) {
      const { program, hook } = fuzz;
      const named = program === 'cm_test_overlay' ? takeNote(fuzz.packet, hook.vni) : undefined;
      const parsed = parse(named?.rest ?? fuzz.packet);
      const inItself = {
        cm_test_from_pod: () => fromPod(parsed, hook.ifindex),
        cm_test_overlay: () => overlay(parsed, hook, named?.service),
        cm_test_from_network: () => fromNetwork(parsed),
        cm_test_to_network: () => undefined,
        cm_test_to_pod: () => toPod(parsed, hook),
      }[program]();
      return inItself ?? byPolicy(fuzz, parsed);
    },
    observe({ packet }, { decision: { action, reason }, out }) {
      if (action === CmAction.DROP && !TRACKED_DROPS.has(reason)) return;
      for (const frame of [packet, out]) {
        const tuple = readHead(frame)?.tuple;
        if (tuple === undefined) continue;
        const { flow, ends } = namesOf(tuple, false);
        gone.add(flow);
        if (tuple.isFragment === true) gone.add(ends);
      }
    },
  };
}

/** Behind a node, as the lab's tables have it. */
const isOfMesh = (ip: string): boolean => isOwnPodCidr(ip) || OWN_HOST.has(ip) || isTunnelled(ip) || ip === D.ip;

const isHost = (ip: string): boolean =>
  isIpv4(ip)
    ? !/^(0|127|22[4-9]|2[3-5].)\./.test(ip)
    : !/^(ff|fe[89ab]|::$|::[0-9a-f]{1,4}(:[0-9a-f]{1,4})?$)/.test(ip);

/** Of a packet of the world: the service that is noted in it, and the packet without; undefined: there is no such note. */
function takeNote(frame: Buffer, vni: number): { readonly service: string; readonly rest: Buffer } | undefined {
  const ip = frame.subarray(14);
  const isV6 = frame.readUInt16BE(12) === 0x86dd;
  if (vni !== (isV6 ? RESERVED_IDENTITY.worldIpv6 : RESERVED_IDENTITY.world)) return undefined;
  const rest = Buffer.from(ip);
  let service: string;
  let [from, to] = [40, 64];
  if (isV6) {
    if (ip.length < 64 || ip[0]! >> 4 !== 6 || ip[6] !== 60 || ip.readUIntBE(41, 3) !== 0x025e14) return undefined;
    const length = ip.readUInt16BE(4);
    service = readIpAddress(ip, 48);
    if (length < 24 || 40 + length > ip.length || ip.readUInt16BE(44) === 0 || isIpv4(service)) return undefined;
    rest.writeUInt16BE(length - 24, 4);
    rest[6] = ip[40]!;
  } else {
    [from, to] = [20, 28];
    if (frame.readUInt16BE(12) !== 0x0800 || ip.length < 28 || ip[0] !== 0x47) return undefined;
    const length = ip.readUInt16BE(2);
    service = ip.subarray(24, 28).join('.');
    if (length < 28 || length > ip.length || ip.readUInt16BE(20) !== 0x9e08 || ip.readUInt16BE(22) === 0)
      return undefined;
    rest[0] = 0x45;
    rest.writeUInt16BE(length - 8, 2);
  }
  if (!isHost(service)) return undefined;
  return { service, rest: Buffer.concat([frame.subarray(0, 14), rest.subarray(0, from), rest.subarray(to)]) };
}

const askedOf = (found: { asked?: Asked } | { discovery: number }): { asked?: Asked } =>
  'asked' in found && found.asked !== undefined ? { asked: found.asked } : {};

/**
 * What a packet's flow is called: by ports, and by its ends alone, as a later fragment goes. `isTurned`: the flow that it would be a reply
 * of.
 */
function namesOf({ source, destination, ...tuple }: Tuple, isTurned: boolean): { flow: string; ends: string } {
  const { protocol, sourcePort = '', destinationPort = '' } = tuple;
  const ends = isTurned ? `${destination} ${source}` : `${source} ${destination}`;
  const ports = isTurned ? `${destinationPort} ${sourcePort}` : `${sourcePort} ${destinationPort}`;
  return { flow: `${ends} ${protocol} ${ports}`, ends };
}
