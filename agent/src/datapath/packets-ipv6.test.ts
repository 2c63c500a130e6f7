/** IPv6, and what both families do alike. What the tables hold: testing/packet-lab.ts. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmReason as Reason } from '@clustermesh/bpf';
import { isIpv4 } from '@clustermesh/contract';
import { dumpCt } from './dump.ts';
import { build, type Frame, quoteOf, read } from './testing/frames.ts';
import {
  A,
  assertFrame,
  assertOutcome,
  B,
  C,
  GATEWAY,
  GATEWAY6,
  NODE6,
  OK,
  openPacketLab,
  type PacketLab,
  REDIRECT,
  retarget,
  SHOT,
  tcp,
  udp,
  VXLAN,
  W,
} from './testing/packet-lab.ts';

let lab: PacketLab;
const fromPod: PacketLab['fromPod'] = (...args) => lab.fromPod(...args);
const toPod: PacketLab['toPod'] = (...args) => lab.toPod(...args);
const overlay: PacketLab['overlay'] = (...args) => lab.overlay(...args);

before(async () => {
  lab = await openPacketLab();
});

beforeEach(() => lab.reset());

after(() => lab?.close());

describe('what a pod sends by IPv6', () => {
  it('goes straight to a pod of the same node', () => {
    const o = fromPod(tcp(A.ip6, 4000, B.ip6, 80));
    assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
    assert.equal(o.decision.target, B.ifindex);
    assertFrame(o.out, { dstMac: B.mac, srcMac: B.hostMac, saddr: A.ip6, daddr: B.ip6 });
  });

  it('goes through the tunnel over either underlay, with its own identity as VNI; so does IPv4', () => {
    for (const [to, source] of [
      [C, A.ip6],
      [W, A.ip6],
      [W, A.ip],
    ] as const) {
      const o = fromPod(udp(source, 4000, isIpv4(source) ? to.ip : to.ip6, 53));
      assertOutcome(o, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assert.deepEqual([o.decision.vni, o.decision.remote, o.decision.target], [A.identity, to.node, VXLAN]);
    }
  });

  it('goes where the longest prefix says, and where a host row says before any prefix', () => {
    assert.equal(fromPod(udp(A.ip6, 1, 'fd00:3::4:5', 1)).decision.remote, '172.31.2.12');
    assert.equal(fromPod(udp(A.ip6, 1, 'fd00:3::9:9', 1)).decision.remote, C.node);
  });

  it('is left to the host for the node, the gateway and the rest of the world', () => {
    for (const daddr of [NODE6, GATEWAY6, '2001:db8::1']) {
      assertOutcome(fromPod(tcp(A.ip6, 4000, daddr, 443)), OK, 'STACK', 'TO_STACK');
    }
  });

  it('is answered "address unreachable" for an address of the own pod CIDR that nobody has', () => {
    for (const [frame, protocol, dport] of [
      [tcp(A.ip6, 4000, 'fd00:1:1::99', 80), 6, 80],
      [udp(A.ip6, 4000, 'fd00:1:1::99', 53, 'x'), 17, 53],
    ] as const) {
      const o = fromPod(frame);
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_ENDPOINT');
      const quote = { saddr: A.ip6, daddr: 'fd00:1:1::99', protocol, sport: 4000, dport };
      const icmp = { type: 1, code: 3, id: 0, quote };
      assertFrame(o.out, { dstMac: A.mac, srcMac: A.hostMac, saddr: GATEWAY6, daddr: A.ip6, icmp });
    }
  });

  it('is dropped when the source is not the pod of this veth, whatever else it is', () => {
    for (const saddr of [B.ip6, C.ip6, '2001:db8::9', '::']) {
      assertOutcome(fromPod(tcp(saddr, 4000, C.ip6, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    }
    assertOutcome(fromPod(tcp(A.ip6, 4000, C.ip6, 80), B), SHOT, 'DROP', 'SPOOFED_SOURCE');
    assertOutcome(fromPod(tcp('fe80::5', 4000, C.ip6, 80)), SHOT, 'DROP', 'LINK_LOCAL');
  });

  it('passes to the host as neighbour discovery only what a host may say, about itself, from the link', () => {
    const nd = (type: number, saddr: string, more: Partial<Frame> = {}): Frame => ({
      saddr,
      daddr: 'ff02::1',
      icmp: { type },
      hopLimit: 255,
      payload: '\0'.repeat(16),
      ...more,
    });
    for (const saddr of [A.ip6, 'fe80::5', '::']) {
      for (const type of [133, 135, 136]) assertOutcome(fromPod(nd(type, saddr)), OK, 'STACK', 'ND');
    }
    const report = nd(143, 'fe80::5', { hopLimit: 1, extensions: ['hop-by-hop'] });
    assertOutcome(fromPod(report), OK, 'STACK', 'ND');
    for (const type of [134, 137]) assertOutcome(fromPod(nd(type, 'fe80::5')), SHOT, 'DROP', 'ROGUE_ND');
    assertOutcome(fromPod(nd(135, A.ip6, { hopLimit: 64 })), SHOT, 'DROP', 'ROGUE_ND');
    assertOutcome(fromPod(nd(135, B.ip6)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    assertOutcome(overlay(nd(135, C.ip6)), SHOT, 'DROP', 'ROGUE_ND');
    assertOutcome(toPod(nd(135, GATEWAY6)), OK, 'STACK', 'ND');
    assertOutcome(toPod(nd(130, 'fe80::1', { hopLimit: 1 })), OK, 'STACK', 'ND');
    assertOutcome(toPod(nd(135, '2001:db8::1', { hopLimit: 254 })), SHOT, 'DROP', 'ROGUE_ND');
    assertOutcome(toPod(nd(130, '2001:db8::1', { hopLimit: 1 })), SHOT, 'DROP', 'ROGUE_ND');
  });
});

describe('per-packet load balancing by IPv6', () => {
  for (const [name, request, reply] of [
    ['TCP', tcp(A.ip6, 4000, 'fd96::10', 80, 'PA', 'GET /'), tcp(C.ip6, 8080, A.ip6, 4000, 'PA', 'hello')],
    ['UDP', udp(A.ip6, 4000, 'fd96::10', 53), udp(C.ip6, 5353, A.ip6, 4000, 'answer')],
  ] as [string, Frame, Frame][]) {
    it(`${name}: addresses the backend, and gives the reply the service's address back`, () => {
      const there = fromPod(request);
      assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assert.deepEqual(there.out, build(retarget({ ...request, daddr: C.ip6 }, 'dport', request.tcp ? 8080 : 5353)));
      const back = overlay(reply);
      assertOutcome(back, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      const expected = retarget({ ...reply, saddr: 'fd96::10' }, 'sport', request.tcp ? 80 : 53);
      assert.deepEqual(back.out, build({ ...expected, dstMac: A.mac, srcMac: A.hostMac }));
    });
  }

  it('translates behind extension headers, too', () => {
    const request: Frame = { ...udp(A.ip6, 4000, 'fd96::10', 53), extensions: ['hop-by-hop', 'destination'] };
    assert.deepEqual(fromPod(request).out, build(retarget({ ...request, daddr: C.ip6 }, 'dport', 5353)));
  });

  it('answers TCP to a service without backends with RST, UDP with "port unreachable"', () => {
    for (const [flags, payload, expected] of [
      ['S', '', { flags: 'RA', seq: 0, ack: 1001 }],
      ['PA', 'abc', { flags: 'R', seq: 5000, ack: 0 }],
    ] as const) {
      const o = fromPod(tcp(A.ip6, 4000, 'fd96::30', 80, flags, payload));
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_BACKEND');
      const rst = { sport: 80, dport: 4000, ...expected };
      assertFrame(o.out, { saddr: 'fd96::30', daddr: A.ip6, dstMac: A.mac, tcp: rst, payload: '' });
    }
    const extensions: Frame['extensions'] = ['destination', 'destination'];
    for (const frame of [udp(A.ip6, 4000, 'fd96::30', 53), { ...udp(A.ip6, 4000, 'fd96::30', 53), extensions }]) {
      const o = fromPod(frame);
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_BACKEND');
      const quote = { saddr: A.ip6, daddr: 'fd96::30', protocol: 17, sport: 4000, dport: 53 };
      assertFrame(o.out, { daddr: A.ip6, icmp: { type: 1, code: 4, id: 0, quote } });
    }
  });

  it('fragments go where their first one went', () => {
    const part = (offset: number, id = 7): Frame => ({
      ...udp(A.ip6, 4000, 'fd96::10', 53),
      fragment: { id, offset, more: offset === 0 },
    });
    assertFrame(fromPod(part(0)).out, { daddr: C.ip6 });
    assertFrame(fromPod(part(1448)).out, { daddr: C.ip6 });
    assertOutcome(fromPod(part(1448, 8)), SHOT, 'DROP', 'FRAGMENT_LOST');
    // All of a datagram in one "fragment" (RFC 6946) is none.
    const noted = lab.counted('fragment', 'from-pod');
    assertOutcome(
      fromPod({ ...udp(A.ip6, 4000, C.ip6, 53), fragment: { offset: 0, more: false } }),
      REDIRECT,
      'TUNNEL',
      'TO_TUNNEL',
    );
    assert.equal(lab.counted('fragment', 'from-pod'), noted);
  });
});

describe('what comes through the tunnel by IPv6', () => {
  it('is handed to the pod with the identity of the VNI, over either underlay', () => {
    for (const { ip6, identity, node } of [C, W]) {
      const o = overlay(tcp(ip6, 4000, A.ip6, 80), identity, node);
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assert.equal(o.decision.identity, identity);
      assertFrame(o.out, { dstMac: A.mac, srcMac: A.hostMac });
    }
  });

  it('is dropped from an unknown node, with a foreign identity, from our own addresses, link-local ones', () => {
    const packet = tcp(C.ip6, 1, A.ip6, 80);
    assertOutcome(overlay(packet, C.identity, 'fd31::9:9'), SHOT, 'DROP', 'UNKNOWN_NODE');
    assertOutcome(overlay(packet, 3 << 16, W.node), SHOT, 'DROP', 'FOREIGN_IDENTITY');
    for (const saddr of [B.ip6, 'fd00:1:1::200', GATEWAY6, NODE6]) {
      assertOutcome(overlay(tcp(saddr, 1, A.ip6, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    }
    assertOutcome(overlay(tcp('fe80::7', 1, A.ip6, 80)), SHOT, 'DROP', 'LINK_LOCAL');
    assertOutcome(overlay(tcp(C.ip6, 1, 'fd00:9::9', 80)), SHOT, 'DROP', 'NOT_FOR_US');
  });

  it('is answered through the tunnel, as the host, for a pod that nobody has', () => {
    const o = overlay(tcp(W.ip6, 4000, 'fd00:1:1::99', 80), W.identity, W.node);
    assertOutcome(o, REDIRECT, 'TUNNEL', 'NO_ENDPOINT');
    assert.deepEqual([o.decision.vni, o.decision.remote], [1, W.node]);
    const quote = { saddr: W.ip6, daddr: 'fd00:1:1::99', protocol: 6, sport: 4000, dport: 80 };
    assertFrame(o.out, { saddr: GATEWAY6, daddr: W.ip6, icmp: { type: 1, code: 3, id: 0, quote } });
  });

  it('is tracked as one flow with its answer: echo, TCP', async () => {
    fromPod({ saddr: A.ip6, daddr: C.ip6, icmp: { type: 128, id: 77 }, payload: 'ping' });
    overlay({ saddr: C.ip6, daddr: A.ip6, icmp: { type: 129, id: 77 }, payload: 'ping' });
    fromPod(tcp(A.ip6, 4000, C.ip6, 80));
    overlay(tcp(C.ip6, 80, A.ip6, 4000, 'SA'));
    const flows = (await dumpCt(lab.loaded.maps)) as { protocol: string; state: string; source: string }[];
    assert.deepEqual(flows.map((f) => [f.protocol, f.state, f.source]).sort(), [
      ['ICMPv6', 'established', `[${A.ip6}]:77`],
      ['TCP', 'established', `[${A.ip6}]:4000`],
    ]);
  });
});

/** Everything that reads the same in both families. */
for (const [family, a, c, service, gateway, router, far] of [
  ['IPv4', A.ip, C.ip, '10.96.0.10', GATEWAY, '10.2.1.1', '10.3.4.5'],
  ['IPv6', A.ip6, C.ip6, 'fd96::10', GATEWAY6, 'fd00:2:1::1', 'fd00:3::4:5'],
] as const) {
  const isV4 = family === 'IPv4';
  const tooBig = isV4 ? { type: 3, code: 4, rest: 1400 } : { type: 2, code: 0, rest: 1400 };
  const noPort = isV4 ? { type: 3, code: 3 } : { type: 1, code: 4 };

  describe(`ICMP errors about translated packets, ${family}`, () => {
    const request = udp(a, 4000, service, 53);
    const quoted = { saddr: a, daddr: service, protocol: 17, sport: 4000, dport: 53 };

    it("tell the client of the service, so that path MTU discovery works through the service's address", () => {
      fromPod(request);
      const error = { saddr: router, daddr: a, icmp: { ...tooBig, quote: quoteOf(udp(a, 4000, c, 5353)) } };
      for (const o of [overlay(error, 1), toPod(error, 2)]) {
        assertFrame(o.out, { saddr: router, daddr: a });
        assert.deepEqual([read(o.out).icmp?.mtu, read(o.out).icmp?.quote], [1400, quoted]);
      }
    });

    it('come from the service, where the backend itself sends them', () => {
      fromPod(request);
      const error = { saddr: c, daddr: a, icmp: { ...noPort, quote: quoteOf(udp(a, 4000, c, 5353)) } };
      assertFrame(overlay(error).out, { saddr: service, daddr: a, icmp: { ...noPort, id: 0, quote: quoted } });
    });

    it('go to the backend, where the client sends them about an answer of the service', () => {
      fromPod(request);
      const error = { saddr: a, daddr: service, icmp: { ...tooBig, quote: quoteOf(udp(service, 53, a, 4000)) } };
      const o = fromPod(error);
      assertOutcome(o, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assert.equal(o.decision.remote, C.node);
      assertFrame(o.out, { saddr: a, daddr: c });
      const quote = { saddr: c, daddr: a, protocol: 17, sport: 5353, dport: 4000 };
      assert.deepEqual([read(o.out).icmp?.mtu, read(o.out).icmp?.quote], [1400, quote]);
    });

    it('stay as they are about packets that were not translated', () => {
      fromPod(udp(a, 4000, c, 5353));
      const error = { saddr: router, daddr: a, icmp: { ...tooBig, quote: quoteOf(udp(a, 4000, c, 5353)) } };
      assert.deepEqual(overlay(error, 1).out, build({ ...error, dstMac: A.mac, srcMac: A.hostMac }));
    });
  });

  describe(`packets larger than the tunnel, ${family}`, () => {
    const sized = (daddr: string, bytes: number): Frame => ({
      ...tcp(a, 4000, daddr, 80, 'A', 'x'.repeat(bytes - (isV4 ? 40 : 60))),
      dontFragment: true,
    });

    it('are answered with the size that fits, which is smaller where the underlay is IPv6', () => {
      for (const [to, mtu] of [
        [C, 1450],
        [W, 1430],
      ] as const) {
        const daddr = isV4 ? to.ip : to.ip6;
        assertOutcome(fromPod(sized(daddr, mtu)), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
        const o = fromPod(sized(daddr, mtu + 1));
        assertOutcome(o, REDIRECT, 'ENDPOINT', 'TOO_BIG');
        const quote = { saddr: a, daddr, protocol: 6, sport: 4000, dport: 80 };
        const icmp = { type: isV4 ? 3 : 2, code: isV4 ? 4 : 0, id: 0, quote, mtu };
        assertFrame(o.out, { saddr: gateway, daddr: a, dstMac: A.mac, icmp });
      }
    });

    it('are answered about the service, if it was the service that they were sent to', () => {
      const o = fromPod(sized(service, 1451));
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'TOO_BIG');
      assert.deepEqual(read(o.out).icmp?.quote, { saddr: a, daddr: service, protocol: 6, sport: 4000, dport: 80 });
    });

    it('are told apart from several in one buffer (GSO)', () => {
      const headers = isV4 ? 40 : 60;
      const big = build(sized(c, 3000));
      assertOutcome(fromPod(big, A, { gsoSize: 1450 - headers }), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assertOutcome(fromPod(big, A, { gsoSize: 1451 - headers }), REDIRECT, 'ENDPOINT', 'TOO_BIG');
    });

    it('are left to fragmentation, where IPv4 allows it', { skip: !isV4 }, () => {
      assertOutcome(fromPod({ ...sized(c, 1451), dontFragment: false }), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
    });
  });

  it(`no receiver gets more than a burst of ICMP errors, ${family}; others still get theirs`, () => {
    const nobody = udp(a, 4000, isV4 ? '10.96.0.30' : 'fd96::30', 53);
    let answered = 0;
    for (let i = 0; i < 300; i++) {
      const { reason } = fromPod(nobody).decision;
      if (reason === Reason.NO_BACKEND) answered++;
      else assert.equal(reason, Reason.ICMP_LIMITED);
    }
    // A token every 10 ms comes on top of the burst of 100.
    assert.ok(answered >= 100 && answered < 300, `${answered} of 300`);
    const other = isV4 ? B.ip : B.ip6;
    assertOutcome(fromPod({ ...nobody, saddr: other }, B), REDIRECT, 'ENDPOINT', 'NO_BACKEND');
    assertOutcome(fromPod(udp(a, 1, far, 1)), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
  });
}

describe('odd IPv6 packets get a defined verdict', () => {
  const plain = udp(A.ip6, 4000, C.ip6, 53);
  const changed = (at: number, ...bytes: number[]): Buffer => {
    const copy = build(plain);
    copy.set(bytes, at);
    return copy;
  };
  const bytes = build(plain);
  const withLength = (frame: Buffer): Buffer => {
    const copy = Buffer.from(frame);
    copy.writeUInt16BE(copy.length - 54, 18);
    return copy;
  };
  const cases: [string, Buffer, keyof typeof Reason][] = [
    ['a VLAN tag', Buffer.concat([bytes.subarray(0, 12), Buffer.from('81000064', 'hex'), bytes.subarray(12)]), 'VLAN'],
    ['half a UDP header', withLength(bytes.subarray(0, 58)), 'TRUNCATED'],
    ['half a TCP header', withLength(build(tcp(A.ip6, 1, C.ip6, 2)).subarray(0, 66)), 'TRUNCATED'],
    [
      'half an extension header',
      withLength(build({ ...plain, extensions: ['destination'] }).subarray(0, 58)),
      'TRUNCATED',
    ],
    ['an extension header beyond the packet', withExtensionLength(200), 'TRUNCATED'],
    ['a version that is not 6', changed(14, 0x40), 'BAD_HEADER'],
    ['a payload length beyond the frame', changed(18, 0x10, 0x00), 'BAD_HEADER'],
    ['a payload length of 0', changed(18, 0, 0), 'BAD_HEADER'],
    ['a routing header', build({ ...plain, extensions: ['routing'] }), 'EXT_HEADER'],
    ['a routing header behind another', build({ ...plain, extensions: ['hop-by-hop', 'routing'] }), 'EXT_HEADER'],
    ['five extension headers', build({ ...plain, extensions: new Array(5).fill('destination') }), 'EXT_HEADER'],
    ['ESP', build({ saddr: A.ip6, daddr: C.ip6, protocol: 50, payload: 'x'.repeat(12) }), 'UNSUPPORTED_L4'],
    ['no next header', build({ saddr: A.ip6, daddr: C.ip6, protocol: 59, payload: 'x' }), 'UNSUPPORTED_L4'],
    ['ICMP over IPv6', build({ saddr: A.ip6, daddr: C.ip6, protocol: 1, payload: 'x'.repeat(12) }), 'UNSUPPORTED_L4'],
    [
      'ICMPv6 that is neither echo, error nor discovery',
      build({ saddr: A.ip6, daddr: C.ip6, icmp: { type: 139 } }),
      'UNSUPPORTED_L4',
    ],
  ];
  for (const [name, packet, reason] of cases) {
    it(`${name}: ${reason.toLowerCase()}`, () => {
      assertOutcome(fromPod(packet), SHOT, 'DROP', reason);
      assertOutcome(overlay(packet), SHOT, 'DROP', reason);
    });
  }

  it('four extension headers are followed', () => {
    const frame = { ...plain, extensions: new Array(4).fill('destination') as Frame['extensions'] & object };
    assertOutcome(fromPod(frame), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
  });

  it('SCTP is forwarded and tracked by its ports', async () => {
    assertOutcome(
      fromPod({ saddr: A.ip6, daddr: C.ip6, sctp: { sport: 1, dport: 2 } }),
      REDIRECT,
      'TUNNEL',
      'TO_TUNNEL',
    );
    const [flow] = (await dumpCt(lab.loaded.maps)) as { protocol: string; destination: string }[];
    assert.deepEqual([flow?.protocol, flow?.destination], ['SCTP', `[${C.ip6}]:2`]);
  });

  it('a v4-mapped address in an IPv6 header is no IPv4 host', () => {
    const mapped = (at: number, last: number): Buffer => {
      const packet = build(plain);
      packet.fill(0, at, at + 16);
      packet.set([0xff, 0xff, 10, 1, 1, last], at + 10);
      return packet;
    };
    assertOutcome(fromPod(mapped(22, 5)), SHOT, 'DROP', 'BAD_HEADER');
    assertOutcome(fromPod(mapped(38, 6)), SHOT, 'DROP', 'BAD_HEADER');
    assertOutcome(overlay(mapped(38, 5)), SHOT, 'DROP', 'BAD_HEADER');
  });

  function withExtensionLength(units: number): Buffer {
    const packet = build({ ...plain, extensions: ['destination'] });
    packet.writeUInt8(units, 55);
    return packet;
  }
});
