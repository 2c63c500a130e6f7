/** XDP at the uplinks under BPF_PROG_TEST_RUN, beside what tc makes of the same packets; pictures: testing/packet-lab.ts, testing/routed.ts. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmAction, CmDirection, type CmEvent, CmXdpMode } from '@clustermesh/bpf';
import { openEvents } from './events.ts';
import { build, type Frame, quoteOf, read } from './testing/frames.ts';
import {
  A,
  assertFrame,
  assertOutcome,
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
  openPacketLab,
  type PacketLab,
  tcp,
  UPLINK,
  UPLINK_WORLD,
  udp,
  W,
  XDP,
} from './testing/packet-lab.ts';
import { macOfNode, ROUTER_MAC, UP_MAC } from './testing/routed.ts';
import { decapsulate, differsFromTc } from './testing/same-as-tc.ts';
import { type Backend, type Protocol, SERVICE_FLAG } from './types.ts';

let lab: PacketLab;
before(async () => {
  lab = await openPacketLab({ routed: true });
});
beforeEach(() => lab.reset());
after(() => lab?.close());

async function serve(ip: string, port: number, protocol: Protocol, backends: Backend[], flags = 0): Promise<void> {
  const results = await lab.services.update([{ frontend: { ip, port, protocol, scope: 'outside' }, backends, flags }]);
  for (const { error } of results) if (error !== undefined) throw error;
}

/** Done by XDP, and as tc would have: tc is asked with the flow known and, `anew`, with nothing known. */
function carried(frame: Frame, ifindex = UPLINK): Outcome {
  const packet = build(frame);
  const xdp = lab.xdp(packet, ifindex);
  assert.notEqual(xdp.verdict, XDP.pass, 'left to tc');
  assert.equal(differsFromTc(packet, xdp, lab.fromNetwork(packet), ifindex), undefined);
  return xdp;
}

/** Left to tc, as it was. */
function left(frame: Frame | Buffer): void {
  const packet = Buffer.isBuffer(frame) ? frame : build(frame);
  const { verdict, decision, out } = lab.xdp(packet);
  assert.deepEqual([verdict, decision.reason], [XDP.pass, 0]);
  assert.ok(out.equals(packet), 'changed');
}

for (const { family, client, node, external, gateway, b, c, d, w, far } of [
  {
    ...{ family: 'IPv4', client: '198.51.100.7', node: NODE, external: LB, gateway: GATEWAY },
    ...{ b: B.ip, c: C.ip, d: D.ip, w: W.ip, far: '10.3.4.5' },
  },
  {
    ...{ family: 'IPv6', client: '2001:db8:7::7', node: NODE6, external: LB6, gateway: GATEWAY6 },
    ...{ b: B.ip6, c: C.ip6, d: D.ip6, w: W.ip6, far: 'fd00:3::5' },
  },
]) {
  const portOf = (out: Buffer): number => (read(out).tcp ?? read(out).udp)!.sport;

  describe(`${family}: a backend behind the tunnel`, () => {
    it('gets a new flow’s packet and the next ones as tc would send them, TCP and UDP', () => {
      for (const frame of [
        tcp(client, 4000, external, 80),
        tcp(client, 4000, external, 80, 'A', 'x'),
        tcp(client, 4000, external, 80, 'PA', 'x'.repeat(1390)),
        udp(client, 4000, external, 53),
        udp(client, 4000, external, 53, ''),
        { ...udp(client, 4001, external, 53), udp: { sport: 4001, dport: 53, checksum: 'none' as const } },
      ]) {
        const { decision, out } = carried(frame, UPLINK_WORLD);
        assert.equal(decision.target, UPLINK);
        const { inner, outer } = decapsulate(out);
        assertFrame(inner, { saddr: gateway, daddr: c, srcMac: '02:00:00:00:00:01', dstMac: '02:00:00:00:00:02' });
        const { sport } = outer.udp!;
        assert.ok(sport >= 32_768 && sport < 61_000, `source port ${sport}`);
      }
    });

    it('whatever came first, XDP or tc: both know the flow by the same row', () => {
      for (const [first, second, port] of [
        [lab.xdp, lab.fromNetwork, 4000],
        [lab.fromNetwork, lab.xdp, 4001],
      ] as const) {
        const [one, two] = [first(tcp(client, port, external, 80)), second(tcp(client, port, external, 80, 'A'))];
        const inner = (o: Outcome) => (o.decision.direction === 6 ? decapsulate(o.out).inner : o.out);
        assert.equal(portOf(inner(one)), portOf(inner(two)));
        assert.equal(one.decision.backendId, two.decision.backendId);
      }
    });

    it('one flow has one outer source port, and flows have many', () => {
      const port = (i: number) => decapsulate(lab.xdp(tcp(client, 4000 + i, external, 80)).out).outer.udp!.sport;
      const ports = Array.from({ length: 50 }, (_, i) => port(i));
      assert.deepEqual(
        ports,
        Array.from({ length: 50 }, (_, i) => port(i)),
      );
      assert.ok(new Set(ports).size > 40);
    });

    it('over an IPv6 underlay has the outer checksum right', async () => {
      await serve(external, 81, 'TCP', [{ ip: w, port: 8080, clusterId: 2 }]);
      await serve(external, 81, 'UDP', [{ ip: w, port: 8080, clusterId: 2 }]);
      for (const payload of ['', 'x', 'odd', 'y'.repeat(1300)]) {
        carried(tcp(client, 4000, external, 81, 'A', payload));
        carried(udp(client, 4000, external, 81, payload));
      }
      // Without one inside there is nothing to reckon it from; nor is there with padding behind.
      if (family === 'IPv4') {
        left({ ...udp(client, 4000, external, 81), udp: { sport: 4000, dport: 81, checksum: 'none' } });
        left(Buffer.concat([build(tcp(client, 4000, external, 81, 'A')), Buffer.alloc(6)]));
      }
    });

    it('gets the padding of a short frame too, as from tc', () => {
      const packet = Buffer.concat([build(tcp(client, 4000, external, 80)), Buffer.from('padded')]);
      const xdp = lab.xdp(packet);
      assert.equal(xdp.verdict, XDP.tx);
      assert.equal(differsFromTc(packet, xdp, lab.fromNetwork(packet)), undefined);
    });

    it('has congestion marks outside as inside (RFC 6040)', () => {
      for (const [inside, outside] of [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 2],
      ] as const) {
        const packet = build(udp(client, 4000, external, 53));
        // ECN does not count in IPv6 checksums; the IPv4 header's is put right.
        if (family === 'IPv6') packet.writeUInt16BE(0x6000 | (inside << 4), 14);
        else {
          packet[15] = inside;
          packet.writeUInt16BE(packet.readUInt16BE(24) - inside, 24);
        }
        const { out } = lab.xdp(packet);
        assert.deepEqual(decapsulate(out).outer.wrong, []);
        assert.equal(out[15]! & 3, outside);
      }
    });
  });

  describe(`${family}: a backend that is routed to`, () => {
    it('gets what tc would send, and its answers go to the client: byte for byte', () => {
      const there = carried(tcp(client, 4000, external, 8080), UPLINK_WORLD);
      assertOutcome(there, XDP.redirect, 'NETWORK', 'TO_NETWORK');
      assertFrame(there.out, { saddr: node, daddr: d, srcMac: UP_MAC.up0, dstMac: macOfNode(4, 11) });
      assert.equal(there.out[family === 'IPv4' ? 22 : 21], 63);
      const answer = tcp(d, 8080, node, portOf(there.out), 'SA');
      const back = carried(answer);
      assertOutcome(back, XDP.redirect, 'NETWORK', 'TO_NETWORK');
      assert.equal(back.decision.target, UPLINK_WORLD);
      assertFrame(back.out, {
        ...{ saddr: external, daddr: client, srcMac: UP_MAC.up1, dstMac: ROUTER_MAC },
        tcp: { sport: 8080, dport: 4000, flags: 'SA', seq: 1000, ack: 5000 },
      });
      carried(tcp(client, 4000, external, 8080, 'PA', 'request'), UPLINK_WORLD);
      carried(tcp(d, 8080, node, portOf(there.out), 'PA', 'answer'));
    });

    it('by the uplink that the packet came by goes back out of it', () => {
      assertOutcome(carried(tcp(client, 4000, external, 8080)), XDP.tx, 'NETWORK', 'TO_NETWORK');
    });

    it('UDP, with and without a checksum, and one that becomes 0', async () => {
      await serve(external, 8080, 'UDP', [{ ip: d, port: 5353, clusterId: 4 }]);
      carried(udp(client, 4000, external, 8080, 'question'));
      carried({ ...udp(client, 4000, external, 8080), udp: { sport: 4000, dport: 8080, checksum: 'none' } });
      // Two bytes of payload that make the new checksum come out as 0, which is written as 0xffff.
      const { out } = carried(udp(client, 4000, external, 8080, '\0\0'));
      const payload = out.readUInt16BE(out.length - 4);
      const packet = udp(client, 4000, external, 8080, String.fromCharCode(payload >> 8, payload & 255));
      const zero = carried(packet);
      assert.equal(zero.out.readUInt16BE(zero.out.length - 4), 0xffff);
    });
  });

  describe(`${family}: whom a flow is given`, () => {
    for (const [kind, flags] of [
      ['random', 0],
      ['Maglev', SERVICE_FLAG.maglev],
    ] as const) {
      it(`of many is whom tc gives it: ${kind}`, async () => {
        const backends = [c, w, d].flatMap((ip) => [8080, 8081, 8082].map((port) => ({ ip, port, clusterId: 2 })));
        await serve(external, 90, 'TCP', backends, flags);
        const pick = (run: (frame: Frame) => Outcome) =>
          Array.from({ length: 100 }, (_, i) => run(tcp(client, 4000 + i, external, 90)).decision.backendId);
        const xdp = pick(lab.xdp);
        await lab.reset();
        assert.deepEqual(pick(lab.fromNetwork), xdp);
        assert.equal(new Set(xdp).size, 9);
      });
    }
  });

  describe(`${family}: what certainly is dropped`, () => {
    it('is dropped for the same reason, and counted', () => {
      for (const [source, reason, counted] of [
        [c, 'NOT_ENCAPSULATED', 'not-encapsulated'],
        [family === 'IPv4' ? A.ip : A.ip6, 'SPOOFED_SOURCE', 'spoofed-source'],
      ] as const) {
        for (const [to, port] of [
          [external, 80],
          [b, 8080],
        ] as const) {
          const before = lab.counted(counted, 'xdp');
          assertOutcome(carried(tcp(source, 4000, to, port)), XDP.drop, 'DROP', reason);
          assert.equal(lab.counted(counted, 'xdp'), before + 1);
        }
      }
    });
  });

  describe(`${family}: left to tc as it came`, () => {
    it('what is for the host, or a pod', () => {
      left(tcp(client, 4000, node, 22));
      left(tcp(client, 4000, '198.51.100.9', 80));
      left(tcp(client, 4000, b, 8080));
    });

    it('what other nodes encapsulate, whatever is served at that port', async () => {
      await serve(node, 8472, 'UDP', [{ ip: c, port: 8472, clusterId: 2 }]);
      left(udp(client, 4000, node, 8472));
    });

    it('what is for a backend of this node', () => {
      left(tcp(client, 4000, node, 80));
      left(tcp(client, 4000, node, 80, 'A'));
    });

    it('what goes to another node under the client’s own address, by a row that says so', async () => {
      const ends = { saddr: client, sport: 4000, daddr: external, dport: 8080, proto: 6 };
      carried(tcp(client, 4000, external, 8080));
      const { cm_nat } = lab.loaded.maps;
      const row = cm_nat.lookup(ends)!;
      await cm_nat.update([[ends, { ...row, saddr: client, sport: 4000 }]]);
      left(tcp(client, 4000, external, 8080, 'A'));
    });

    it('what must be answered: nobody there, backend gone, too big', async () => {
      left(tcp(client, 4000, external, 4000));
      left(udp(client, 4000, external, 4000));
      await serve(external, 91, 'TCP', [{ ip: c, port: 9191, clusterId: 2 }]);
      carried(tcp(client, 4000, external, 91));
      await serve(external, 91, 'TCP', [{ ip: c, port: 9192, clusterId: 2 }]);
      left(tcp(client, 4000, external, 91, 'A'));
      for (const dontFragment of [true, false])
        for (const port of [80, 8080])
          left({ ...tcp(client, 4000, external, port, 'A', 'x'.repeat(1420)), dontFragment });
      carried(tcp(client, 4000, external, 8080, 'A', 'x'.repeat(1330)));
    });

    it('fragments, extension headers, options', () => {
      const part = (offset: number, more: boolean) => ({
        ...udp(client, 4000, external, 53, 'x'.repeat(64)),
        fragment: { offset, more, id: 9 },
      });
      left(part(0, true));
      left(part(8, false));
      if (family === 'IPv6') left({ ...udp(client, 4000, external, 53), extensions: ['destination'] });
      else {
        const packet = build(udp(client, 4000, external, 53));
        packet[14] = 0x46;
        left(packet);
      }
    });

    it('ARP, other ethertypes, VLAN tags', () => {
      const packet = build(tcp(client, 4000, external, 80));
      for (const type of ['0806', '88cc'])
        left(Buffer.concat([packet.subarray(0, 12), Buffer.from(type, 'hex'), packet.subarray(14)]));
      for (const tag of ['81000064', '88a80064'])
        left(Buffer.concat([packet.subarray(0, 12), Buffer.from(tag, 'hex'), packet.subarray(12)]));
    });

    it('ICMP, echo and errors; SCTP; other protocols', async () => {
      const isV4 = family === 'IPv4';
      left({ saddr: client, daddr: external, icmp: { type: isV4 ? 8 : 128, id: 7 } });
      const quote = quoteOf(udp(gateway, 4000, c, 5353));
      left({ saddr: c, daddr: gateway, icmp: { type: isV4 ? 3 : 1, code: 3, quote, rest: 0 } });
      await serve(external, 80, 'SCTP', [{ ip: c, port: 80, clusterId: 2 }]);
      left({ saddr: client, daddr: external, sctp: { sport: 4000, dport: 80 } });
      left({ saddr: client, daddr: external, protocol: 47, payload: 'x'.repeat(20) });
    });

    it('headers that are cut short, wrong, or longer than they say', () => {
      const packet = build(tcp(client, 4000, external, 80));
      for (const length of [20, 33, 40, 53]) left(packet.subarray(0, length));
      const [lengthAt, short] = family === 'IPv4' ? [16, 39] : [18, 19];
      for (const length of [0, short, 2000]) {
        const wrong = Buffer.from(packet);
        wrong.writeUInt16BE(length, lengthAt);
        left(wrong);
      }
      packet[14]! ^= 0xf0;
      left(packet);
    });

    it('what has no hops left, whose next hop is not known, or whose device does not take part', async () => {
      left({ ...tcp(client, 4000, external, 8080), hopLimit: 1 });
      await serve(external, 92, 'TCP', [{ ip: far, port: 80, clusterId: 2 }]);
      left(tcp(client, 4000, external, 92));
      const { cm_xdp_devices } = lab.loaded.maps;
      const packet = build(tcp(client, 4000, external, 8080));
      const verdict = () => lab.xdp(packet, UPLINK_WORLD).verdict;
      try {
        await cm_xdp_devices.update([[UPLINK, CmXdpMode.GENERIC]]);
        assert.equal(verdict(), XDP.pass);
        await cm_xdp_devices.remove([UPLINK]);
        assert.equal(verdict(), XDP.pass);
      } finally {
        await cm_xdp_devices.update([[UPLINK, CmXdpMode.NATIVE]]);
      }
      assert.equal(verdict(), XDP.redirect);
    });

    it('a checksum that is half done, as a veth’s sender leaves it: whoever passes it on must finish it', () => {
      for (const frame of [tcp(client, 4000, external, 80), udp(client, 4000, external, 53)]) {
        const packet = build(frame);
        const at = packet.length - (frame.tcp ? 4 : 2 + frame.payload!.length);
        const l4 = family === 'IPv4' ? 34 : 54;
        // The sum of addresses, protocol and length: what is left of the whole sum without layer 4.
        let sum = 0;
        const end = family === 'IPv4' ? 34 : 54;
        for (let i = family === 'IPv4' ? 26 : 22; i < end; i += 2) sum += packet.readUInt16BE(i);
        sum += packet.length - l4 + (frame.tcp ? 6 : 17);
        while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
        packet.writeUInt16BE(sum, at);
        left(packet);
      }
    });
  });
}

describe('flow events', () => {
  it('show what XDP drops and sends on as those of tc do, without what it encapsulates in', async () => {
    const events = openEvents(lab.loaded.maps);
    try {
      await events.configure({ perSecond: 1_000_000, burst: 1_000_000, refusedEvery: 1, forwardedEvery: 1 });
      for (const frame of [
        tcp(C.ip, 4000, LB, 80),
        tcp('198.51.100.7', 4000, LB, 80, 'PA', 'x'.repeat(200)),
        tcp('198.51.100.7', 4000, LB, 8080),
      ]) {
        carried(frame);
        const seen: CmEvent[] = [];
        events.read((event) => void seen.push(event), 10);
        const [xdp, tc, ...more] = seen.map(({ timeNs: _, ...event }) => event);
        assert.deepEqual(more, []);
        const target = xdp!.action === CmAction.TUNNEL ? UPLINK : tc!.target;
        assert.deepEqual(xdp, { ...tc, direction: CmDirection.XDP, target });
      }
    } finally {
      events.close();
    }
  });

  it('do not tell of what is left to tc', async () => {
    const events = openEvents(lab.loaded.maps);
    try {
      await events.configure({ perSecond: 1_000_000, burst: 1_000_000, refusedEvery: 1, forwardedEvery: 1 });
      left(tcp('198.51.100.7', 4000, NODE, 80));
      events.read(() => assert.fail('an event'), 10);
    } finally {
      events.close();
    }
  });
});

describe('counters', () => {
  it('say what XDP carried, and tc has not seen it', () => {
    const [carriedBefore, seenBefore] = [lab.counted('to-tunnel', 'xdp'), lab.counted('to-tunnel', 'from-network')];
    const translated = lab.counted('service-translated', 'xdp');
    lab.xdp(tcp('198.51.100.7', 4000, LB, 80));
    assert.equal(lab.counted('to-tunnel', 'xdp'), carriedBefore + 1);
    assert.equal(lab.counted('service-translated', 'xdp'), translated + 1);
    assert.equal(lab.counted('to-tunnel', 'from-network'), seenBefore);
  });
});
