/**
 * Packets for the programs: well-formed ones between addresses that the tables know and others, the same bent in one place or
 * several, cut, tagged, lengthened, and plain noise behind a plausible ethertype.
 */
import { build, type Frame, noteOf, quoteOf } from '../testing/frames.ts';
import {
  A,
  B,
  C,
  D,
  GATEWAY,
  GATEWAY6,
  LB,
  LB6,
  type MadeUp,
  NODE,
  NODE6,
  UPLINK,
  VXLAN,
  W,
} from '../testing/packet-lab.ts';
import type { Random } from './random.ts';

const PROGRAMS = [
  'cm_test_from_pod',
  'cm_test_from_pod',
  'cm_test_overlay',
  'cm_test_from_network',
  'cm_test_to_network',
  'cm_test_to_pod',
] as const;

export interface FuzzCase {
  readonly program: (typeof PROGRAMS)[number];
  readonly packet: Buffer;
  readonly hook: MadeUp & Readonly<Required<Pick<MadeUp, 'ifindex' | 'vni' | 'remote' | 'cameBy'>>>;
  /** As built, with right checksums. */
  readonly isWellFormed: boolean;
}

const IPV4 = [
  ...[A.ip, A.ip, A.ip, B.ip, C.ip, W.ip, D.ip, D.ip, NODE, GATEWAY, '10.1.1.99', '10.3.4.5', '10.3.9.9', '10.2.1.50'],
  ...[
    '198.51.100.7',
    '198.51.100.7',
    '10.96.0.10',
    '10.96.0.20',
    '10.96.0.30',
    '192.0.2.1',
    '0.0.0.0',
    '127.0.0.1',
    '224.0.0.1',
    '255.255.255.255',
  ],
];
const IPV6 = [
  ...[A.ip6, A.ip6, A.ip6, B.ip6, C.ip6, W.ip6, NODE6, GATEWAY6, 'fd00:1:1::99', 'fd00:3::5', 'fd00:2:1::50'],
  ...[
    '2001:db8:7::7',
    '2001:db8:7::7',
    'fd96::10',
    'fd96::20',
    'fd96::30',
    '2001:db8::1',
    '::',
    '::1',
    'fe80::5',
    'ff02::1',
    'ff02::1:ff00:5',
  ],
];
const PORTS = [53, 80, 4000, 4001, 5353, 8080, 0, 65_535];
const FLAGS = ['S', 'A', 'SA', 'PA', 'FA', 'R', 'RA', '', 'FSRPA'];
const ICMP_TYPES = {
  v4: [0, 3, 4, 5, 8, 11, 12, 13, 255],
  v6: [1, 2, 3, 4, 128, 129, 130, 133, 134, 135, 136, 137, 143, 200],
};
const ETHERTYPES = ['0800', '86dd', '0806', '8100', '88a8', '88cc', '0000'];
const REMOTES = [C.node, C.node, C.node, W.node, '172.31.1.12', '172.31.9.9', NODE, '::'];

/** Of direct server return; half of them as they should be, for a service that it may be. */
function note(random: Random, isV6: boolean): Buffer {
  if (random.chance(0.1)) return random.bytes(isV6 ? 8 * (1 + random.below(4)) : 4 * (1 + random.below(10)));
  const service = random.chance(0.6) ? (isV6 ? LB6 : LB) : random.oneOf(isV6 ? IPV6 : IPV4);
  const noted = noteOf(service, random.oneOf(PORTS));
  if (random.chance(0.2)) noted[random.below(noted.length)]! ^= 1 << random.below(8);
  return random.chance(0.05) ? noted.subarray(0, noted.length - (isV6 ? 8 : 4)) : noted;
}

function frame(random: Random): Frame {
  const isV6 = random.chance(0.5);
  const addresses = isV6 ? IPV6 : IPV4;
  const [saddr, daddr] = [random.oneOf(addresses), random.oneOf(addresses)];
  const ports = { sport: random.oneOf(PORTS), dport: random.oneOf(PORTS) };
  const common = {
    saddr,
    daddr,
    payload: 'x'.repeat(random.chance(0.05) ? 1400 + random.below(200) : random.below(40)),
    dontFragment: random.chance(0.5),
    hopLimit: random.oneOf([64, 255, 1, 0]),
    ...(random.chance(0.15)
      ? { fragment: { offset: random.oneOf([0, 0, 8, 1480]), more: random.chance(0.6), id: random.below(4) } }
      : {}),
    ...(random.chance(0.08) ? { note: note(random, isV6) } : {}),
    ...(isV6 && random.chance(0.2)
      ? {
          extensions: Array.from({ length: random.below(6) }, () =>
            random.oneOf(['hop-by-hop', 'destination', 'destination', 'routing'] as const),
          ),
        }
      : {}),
  };
  const kind = random.below(10);
  if (kind < 4) return { ...common, tcp: { ...ports, flags: random.oneOf(FLAGS), seq: random.below(2 ** 31), ack: 7 } };
  if (kind < 7) return { ...common, udp: { ...ports, ...(random.chance(0.2) ? { checksum: 'none' as const } : {}) } };
  if (kind < 8) return { ...common, sctp: ports };
  if (kind < 9) {
    const type = random.oneOf(isV6 ? ICMP_TYPES.v6 : ICMP_TYPES.v4);
    const about = { saddr: daddr, daddr: random.oneOf(addresses), udp: ports };
    const quote = random.chance(0.7) ? { quote: quoteOf(about) } : {};
    return { ...common, icmp: { type, code: random.below(5), id: random.oneOf(PORTS), ...quote } };
  }
  return { ...common, protocol: random.oneOf([0, 2, 41, 47, 50, 51, 59, 89, 115, 255]) };
}

export function bend(random: Random, packet: Buffer): Buffer {
  let bent = Buffer.from(packet);
  for (let i = random.below(3); i >= 0; i--) {
    switch (random.below(6)) {
      case 0:
        bent = bent.subarray(0, 15 + random.below(Math.max(1, bent.length - 15)));
        break;
      case 1:
        bent = Buffer.concat([bent, random.bytes(random.below(60))]);
        break;
      case 2: {
        const tag = Buffer.from(`${random.oneOf(['8100', '88a8'])}0064`, 'hex');
        bent = Buffer.concat([bent.subarray(0, 12), tag, bent.subarray(12)]);
        break;
      }
      case 3:
        // Headers are where it matters.
        bent[12 + random.below(Math.min(60, bent.length - 12))] = random.below(256);
        break;
      case 4:
        bent[random.below(bent.length)]! ^= 1 << random.below(8);
        break;
      default:
        // A length that the IP header owns up to.
        if (bent.length >= 20 && bent[12] === 8) bent.writeUInt16BE(random.below(bent.length), 16);
    }
  }
  return bent;
}

function noise(random: Random): Buffer {
  const bytes = random.bytes(15 + random.below(120));
  bytes.set(Buffer.from(random.oneOf(ETHERTYPES), 'hex'), 12);
  if (random.chance(0.7)) bytes[14] = bytes[12] === 0x86 ? 0x60 : 0x45;
  return bytes;
}

/** What clients of the world and services have to do with each other: as it comes to the first node, and by the tunnel to the second. */
function clientCase(random: Random): FuzzCase {
  const isV6 = random.chance(0.5);
  const isInTunnel = random.chance(0.7);
  const pods = isV6 ? [A.ip6, B.ip6] : [A.ip, B.ip];
  const services = isV6 ? [LB6, NODE6] : [LB, LB, NODE];
  const ports = { sport: random.oneOf(PORTS), dport: random.oneOf(isInTunnel ? PORTS : [80, 53, 8080]) };
  const known = random.chance(0.85);
  const made = {
    saddr: known ? (isV6 ? '2001:db8:7::7' : '198.51.100.7') : random.oneOf(isV6 ? IPV6 : IPV4),
    daddr: random.oneOf(isInTunnel ? pods : services),
    payload: 'x'.repeat(random.below(40)),
    ...(random.chance(0.1) ? { fragment: { offset: random.oneOf([0, 8]), more: random.chance(0.6), id: 1 } } : {}),
    ...(isInTunnel && random.chance(0.9) ? { note: note(random, isV6) } : {}),
    ...(random.chance(0.5) ? { tcp: { ...ports, flags: random.oneOf(FLAGS) } } : { udp: ports }),
  };
  const isWellFormed = random.chance(0.8);
  return {
    program: isInTunnel ? 'cm_test_overlay' : 'cm_test_from_network',
    packet: isWellFormed ? build(made) : bend(random, build(made)),
    isWellFormed,
    hook: {
      ifindex: isInTunnel ? VXLAN : UPLINK,
      vni: random.chance(0.8) ? (isV6 ? 10 : 2) : random.oneOf([C.identity, 0, 1, 2, 10, 3 << 16]),
      remote: random.chance(0.9) ? C.node : random.oneOf(REMOTES),
      cameBy: 0,
    },
  };
}

export function makeCase(random: Random): FuzzCase {
  if (random.chance(0.1)) return clientCase(random);
  const program = random.oneOf(PROGRAMS);
  const kind = random.below(10);
  const isWellFormed = kind < 5;
  const packet = kind < 5 ? build(frame(random)) : kind < 9 ? bend(random, build(frame(random))) : noise(random);
  const vnis = [
    C.identity,
    C.identity,
    C.identity + 1,
    A.identity,
    0,
    1,
    2,
    2,
    2,
    10,
    10,
    10,
    6,
    255,
    256,
    3 << 16,
    random.below(2 ** 24),
  ];
  return {
    program,
    packet,
    isWellFormed,
    hook: {
      ifindex:
        program === 'cm_test_overlay' ? VXLAN : random.oneOf([A.ifindex, A.ifindex, A.ifindex, B.ifindex, 23, 0]),
      vni: random.oneOf(vnis),
      remote: random.oneOf(REMOTES),
      cameBy: random.oneOf([0, 2, A.ifindex, B.ifindex]),
    },
  };
}
