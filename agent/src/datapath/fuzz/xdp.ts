/** Random packets for XDP and for tc behind it: what XDP does not leave to tc must be what tc makes of the same packet. */
import { CmAction } from '@clustermesh/bpf';
import { build, type Frame, read } from '../testing/frames.ts';
import {
  A,
  B,
  C,
  D,
  GATEWAY,
  GATEWAY6,
  LB,
  LB6,
  NODE,
  NODE6,
  type Outcome,
  type PacketLab,
  UPLINK,
  UPLINK_WORLD,
  W,
  XDP,
} from '../testing/packet-lab.ts';
import { decapsulate, differsFromTc } from '../testing/same-as-tc.ts';
import { SERVICE_FLAG } from '../types.ts';
import { createOracle } from './oracle.ts';
import { bend, makeCase } from './packets.ts';
import { type Random, seeded } from './random.ts';

export interface XdpFinding {
  readonly seed: number;
  readonly what: string;
  readonly packet: Buffer;
  readonly xdp: Outcome;
  readonly tc: Outcome;
}

export interface XdpFuzz {
  readonly packets: number;
  /** Sent on by XDP: by the tunnel, by routes; of these, answers. */
  readonly tunnelled: number;
  readonly routed: number;
  readonly answers: number;
  readonly dropped: number;
  readonly findings: readonly XdpFinding[];
}

const MOST_FINDINGS = 10;

/** Addresses of one family, those that begin flows with services first. */
const FAMILIES = [
  {
    sources: ['198.51.100.7', '198.51.100.7', '203.0.113.9', '10.2.1.50', D.ip, C.ip, A.ip, NODE, GATEWAY, '0.0.0.0'],
    destinations: [LB, LB, LB, LB, NODE, B.ip, GATEWAY, '10.96.0.10', '198.51.100.9'],
  },
  {
    sources: ['2001:db8:7::7', '2001:db8:7::7', '2001:db8:9::9', 'fd00:2:1::50', D.ip6, C.ip6, A.ip6, NODE6, GATEWAY6],
    destinations: [LB6, LB6, LB6, LB6, NODE6, B.ip6, GATEWAY6, 'fd96::10', 'fe80::5'],
  },
] as const;
const PORTS = [53, 80, 90, 91, 8080, 4000];

/** `lb` port 90, TCP and UDP: all of them by Maglev; 91: at random, and a client keeps its backend. */
async function addServices(lab: PacketLab): Promise<void> {
  const rows = [
    [LB, [C.ip, W.ip, D.ip, B.ip]],
    [LB6, [C.ip6, W.ip6, D.ip6, B.ip6]],
  ].flatMap(([ip, backends]) =>
    (['TCP', 'UDP'] as const).flatMap((protocol) =>
      [90, 91].map((port) => ({
        frontend: { ip: ip as string, port, protocol, scope: 'outside' as const },
        backends: (backends as string[]).map((backend) => ({ ip: backend, port: 8080, clusterId: 2 })),
        flags: port === 90 ? SERVICE_FLAG.maglev : 0,
        ...(port === 91 ? { affinitySeconds: 60 } : {}),
      })),
    ),
  );
  for (const { error } of await lab.services.update(rows)) if (error !== undefined) throw error;
}

function aimed(random: Random): Frame {
  const { sources, destinations } = random.oneOf(FAMILIES);
  const ports = { sport: 4000 + random.below(20), dport: random.oneOf(PORTS) };
  const flags = random.oneOf(['S', 'S', 'A', 'PA', 'FA', 'R', 'SA', 'SF']);
  return {
    saddr: random.oneOf(sources),
    daddr: random.oneOf(destinations),
    payload: 'x'.repeat(random.chance(0.1) ? 1300 + random.below(200) : random.below(40)),
    dontFragment: random.chance(0.5),
    hopLimit: random.oneOf([64, 64, 255, 2, 1, 0]),
    ...(random.chance(0.6)
      ? { tcp: { ...ports, flags, seq: random.below(2 ** 31), ack: 7 } }
      : { udp: { ...ports, ...(random.chance(0.2) ? { checksum: 'none' as const } : {}) } }),
  };
}

/** What a backend would say to what was sent to it. */
function answerTo(sent: Buffer): Frame {
  const { saddr, daddr, tcp, udp } = read(sent);
  const turn = ({ sport, dport }: { sport: number; dport: number }) => ({ sport: dport, dport: sport });
  const ends = { saddr: daddr, daddr: saddr, payload: 'answer' };
  return tcp ? { ...ends, tcp: { ...turn(tcp), flags: 'PA' } } : { ...ends, udp: turn(udp!) };
}

function makePacket(random: Random, sent: Buffer | undefined): Buffer {
  const kind = random.below(10);
  if (kind < 3) return makeCase(random).packet;
  const packet = build(kind < 5 && sent !== undefined ? answerTo(sent) : aimed(random));
  if (kind === 9) return bend(random, packet);
  return random.chance(0.1) ? Buffer.concat([packet, random.bytes(random.below(20))]) : packet;
}

/** A connection that begins and ends with one packet begins once more with the same packet. */
const isOver = (packet: Buffer): boolean => {
  const at = packet[12] === 8 ? 47 : 67;
  return packet.length > at && (packet[at]! & 2) !== 0 && (packet[at]! & 5) !== 0;
};

/** `lab` must have routes. The kernel refuses to run programs on frames that are too short: those do not count. */
export async function fuzzXdp(
  lab: PacketLab,
  options: { readonly seed: number; readonly packets: number; readonly onProgress?: (packets: number) => void },
): Promise<XdpFuzz> {
  const random = seeded(options.seed);
  const findings: XdpFinding[] = [];
  const oracle = createOracle(false);
  let [packets, tunnelled, routed, answers, dropped] = [0, 0, 0, 0, 0];
  let sent: Buffer | undefined;
  await lab.reset();
  await addServices(lab);
  while (packets < options.packets && findings.length < MOST_FINDINGS) {
    const packet = makePacket(random, sent);
    const ifindex = random.oneOf([UPLINK, UPLINK_WORLD]);
    if (isOver(packet)) await lab.forgetFlows();
    let xdp: Outcome, tc: Outcome;
    try {
      const isFirst = random.chance(0.5);
      const early = isFirst ? lab.xdp(packet, ifindex) : undefined;
      tc = lab.fromNetwork(packet, { ifindex });
      xdp = early ?? lab.xdp(packet, ifindex);
    } catch (error) {
      if (/EINVAL/.test(String(error))) continue;
      throw error;
    }
    packets++;
    const hook = { ifindex, vni: 0, remote: '::', cameBy: UPLINK };
    const mustDrop = oracle.mustDrop({ program: 'cm_test_from_network', packet, hook, isWellFormed: false });
    const isSent = xdp.verdict === XDP.tx || xdp.verdict === XDP.redirect;
    const what =
      differsFromTc(packet, xdp, tc, ifindex) ??
      (isSent && mustDrop !== undefined ? `sent on, but must be dropped: ${mustDrop}` : undefined);
    if (what !== undefined) findings.push({ seed: options.seed, what, packet, xdp, tc });
    else if (xdp.verdict === XDP.drop) dropped++;
    else if (isSent) {
      const isTunnelled = xdp.decision.action === CmAction.TUNNEL;
      const inner = isTunnelled ? decapsulate(xdp.out).inner : xdp.out;
      if (isTunnelled) tunnelled++;
      else routed++;
      if ([LB, LB6, NODE, NODE6].includes(read(inner).saddr) && xdp.decision.target === UPLINK_WORLD) answers++;
      sent = inner;
    }
    if (packets % 10_000 === 0) {
      options.onProgress?.(packets);
      await new Promise(setImmediate);
    }
  }
  return { packets, tunnelled, routed, answers, dropped, findings };
}

export function describeXdpFinding({ seed, what, packet, xdp, tc }: XdpFinding): string {
  const told = ({ verdict, decision, out }: Outcome) =>
    `${out.toString('hex')} ${JSON.stringify({ verdict, ...decision })}`;
  return [what, `  seed ${seed}`, `  in   ${packet.toString('hex')}`, `  xdp  ${told(xdp)}`, `  tc   ${told(tc)}`].join(
    '\n',
  );
}
