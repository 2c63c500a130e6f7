/**
 * IPv4: packet in, maps in → verdict, decision, packet out. What the tables hold: testing/packet-lab.ts. IPv6, and what both
 * families do alike: packets-ipv6.test.ts.
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import type { CmReason as Reason } from '@clustermesh/bpf';
import { dumpCt } from './dump.ts';
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
  NODE,
  OK,
  openPacketLab,
  type PacketLab,
  REDIRECT,
  retarget,
  SHOT,
  tcp,
  udp,
  VXLAN,
} from './testing/packet-lab.ts';

/** By which what is not from the host itself reached it. */
const UPLINK = 2;

let lab: PacketLab;
const fromPod: PacketLab['fromPod'] = (...args) => lab.fromPod(...args);
const toPod: PacketLab['toPod'] = (...args) => lab.toPod(...args);
const fromNetwork: PacketLab['fromNetwork'] = (...args) => lab.fromNetwork(...args);
const overlay: PacketLab['overlay'] = (...args) => lab.overlay(...args);

before(async () => {
  lab = await openPacketLab();
});

beforeEach(() => lab.reset());

after(() => lab?.close());

describe('what a pod sends', () => {
  it('goes straight to a pod of the same node, with its MAC on the frame', () => {
    const o = fromPod(tcp(A.ip, 4000, B.ip, 80));
    assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
    assert.equal(o.decision.target, B.ifindex);
    assertFrame(o.out, { dstMac: B.mac, srcMac: B.hostMac, saddr: A.ip, daddr: B.ip });
  });

  it('goes through the tunnel to a remote pod, with its own identity as VNI', () => {
    const o = fromPod(udp(A.ip, 4000, C.ip, 53));
    assertOutcome(o, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
    const { vni, remote, target, identity } = o.decision;
    assert.deepEqual([vni, remote, target, identity], [A.identity, C.node, VXLAN, A.identity]);
    assertFrame(o.out, { saddr: A.ip, daddr: C.ip, payload: 'question' });
  });

  it('goes where the longest prefix says, and where a host row says before any prefix', () => {
    assert.equal(fromPod(udp(A.ip, 1, '10.3.4.5', 1)).decision.remote, '172.31.2.12');
    assert.equal(fromPod(udp(A.ip, 1, '10.3.9.9', 1)).decision.remote, C.node);
  });

  it('is left to the host for the node, the gateway and the rest of the world', () => {
    for (const daddr of [NODE, GATEWAY, '192.0.2.1']) {
      assertOutcome(fromPod(tcp(A.ip, 4000, daddr, 443)), OK, 'STACK', 'TO_STACK');
    }
  });

  it('is answered "host unreachable" for an address of the own pod CIDR that nobody has', () => {
    for (const frame of [tcp(A.ip, 4000, '10.1.1.99', 80), udp(A.ip, 4000, '10.1.1.99', 53, 'x')]) {
      const o = fromPod(frame);
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_ENDPOINT');
      assert.equal(o.decision.target, A.ifindex);
      const [protocol, sport, dport] = frame.tcp ? [6, 4000, 80] : [17, 4000, 53];
      const quote = { saddr: A.ip, daddr: '10.1.1.99', protocol, sport, dport };
      const icmp = { type: 3, code: 1, id: 0, quote };
      assertFrame(o.out, { dstMac: A.mac, srcMac: A.hostMac, saddr: GATEWAY, daddr: A.ip, icmp });
    }
  });

  it('is not answered when it is an ICMP error itself', () => {
    const quote = quoteOf(udp('10.1.1.99', 1, A.ip, 2));
    assertOutcome(
      fromPod({ saddr: A.ip, daddr: '10.1.1.99', icmp: { type: 3, code: 3, quote } }),
      SHOT,
      'DROP',
      'NO_ANSWER',
    );
  });

  it('lets ARP pass', () => {
    const arp = Buffer.alloc(42);
    arp.writeUInt16BE(0x0806, 12);
    assertOutcome(fromPod(arp), OK, 'STACK', 'ARP');
  });

  it('is dropped when the source is not the pod of this veth', async () => {
    const dropped = lab.counted('spoofed-source', 'from-pod');
    assertOutcome(fromPod(tcp(B.ip, 4000, C.ip, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    assertOutcome(fromPod(tcp('192.0.2.9', 4000, C.ip, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    assertOutcome(fromPod(tcp(A.ip, 4000, C.ip, 80), B), SHOT, 'DROP', 'SPOOFED_SOURCE');
    assert.equal(lab.counted('spoofed-source', 'from-pod'), dropped + 3);
  });
});

describe('per-packet load balancing', () => {
  for (const [name, request, reply] of [
    ['TCP', tcp(A.ip, 4000, '10.96.0.10', 80, 'PA', 'GET /'), tcp(C.ip, 8080, A.ip, 4000, 'PA', 'hello')],
    ['UDP', udp(A.ip, 4000, '10.96.0.10', 53), udp(C.ip, 5353, A.ip, 4000, 'answer')],
    [
      'UDP without checksum',
      { ...udp(A.ip, 4000, '10.96.0.10', 53), udp: { sport: 4000, dport: 53, checksum: 'none' } },
      { ...udp(C.ip, 5353, A.ip, 4000, 'answer'), udp: { sport: 5353, dport: 4000, checksum: 'none' } },
    ],
  ] as [string, Frame, Frame][]) {
    it(`${name}: addresses the backend, and gives the reply the service's address back`, () => {
      const there = fromPod(request);
      assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      const backend = { ...request, daddr: C.ip };
      assert.deepEqual(there.out, build(retarget(backend, 'dport', request.tcp ? 8080 : 5353)));

      const back = overlay(reply);
      assertOutcome(back, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      const expected = retarget({ ...reply, saddr: '10.96.0.10' }, 'sport', request.tcp ? 80 : 53);
      assert.deepEqual(back.out, build({ ...expected, dstMac: A.mac, srcMac: A.hostMac }));
    });
  }

  it('translates also between pods of one node', () => {
    const there = fromPod(tcp(A.ip, 4000, '10.96.0.20', 80));
    assertOutcome(there, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
    assertFrame(there.out, { daddr: B.ip, dstMac: B.mac });
    const back = fromPod(tcp(B.ip, 8080, A.ip, 4000, 'SA'), B);
    assertFrame(back.out, { saddr: '10.96.0.20', daddr: A.ip, dstMac: A.mac });
  });

  it('translates replies that come through the host', async () => {
    const frontend = { ip: '10.96.0.10', port: 80, protocol: 'TCP' } as const;
    await lab.services.update([{ frontend, backends: [{ ip: D.ip, clusterId: 4, port: 8080 }], flags: 0 }]);
    fromPod(tcp(A.ip, 4000, '10.96.0.10', 80));
    const o = toPod(tcp(D.ip, 8080, A.ip, 4000, 'SA'), UPLINK);
    assertOutcome(o, OK, 'STACK', 'FROM_STACK');
    assertFrame(o.out, { saddr: '10.96.0.10' });
  });

  it('translates replies also after a late one came when its flow was forgotten', () => {
    const reply = udp(C.ip, 5353, A.ip, 4000, 'answer');
    assertFrame(overlay(reply).out, { saddr: C.ip });
    fromPod(udp(A.ip, 4000, '10.96.0.10', 53));
    assertFrame(overlay(reply).out, { saddr: '10.96.0.10' });
  });

  it('keeps a UDP checksum that would become zero as 0xffff', () => {
    // Every source port once: one of these sums to zero after translation.
    for (let sport = 1; sport < 65536; sport += 1) {
      const frame = build(udp(A.ip, sport, C.ip, 5353));
      if (frame.readUInt16BE(40) !== 0xffff) continue;
      const o = fromPod(udp(A.ip, sport, '10.96.0.10', 53));
      assert.equal(o.out.readUInt16BE(40), 0xffff);
      assertFrame(o.out, { daddr: C.ip });
      return;
    }
    assert.fail('no port gives a zero sum');
  });

  it('keeps a flow at its backend, spreads flows over all of them', async () => {
    const backends = [5, 6, 7, 8].map((n) => ({ ip: `10.2.1.${n}`, port: 8080, clusterId: 2 }));
    await lab.services.update([{ frontend: { ip: '10.96.0.10', port: 80, protocol: 'TCP' }, backends, flags: 0 }]);
    const hits = new Map<string, number>();
    for (let sport = 1000; sport < 1400; sport++) {
      const first = read(fromPod(tcp(A.ip, sport, '10.96.0.10', 80)).out).daddr;
      for (const flags of ['A', 'PA', 'A']) {
        assert.equal(read(fromPod(tcp(A.ip, sport, '10.96.0.10', 80, flags)).out).daddr, first);
      }
      hits.set(first, (hits.get(first) ?? 0) + 1);
    }
    assert.deepEqual(
      [...hits.keys()].sort(),
      backends.map((b) => b.ip),
    );
    for (const [ip, n] of hits) assert.ok(n >= 60 && n <= 140, `${ip} got ${n} of 400`);
  });

  it('moves a UDP flow, and a TCP connection that begins anew, when the backend is withdrawn', async () => {
    const other = { ip: '10.2.1.8', clusterId: 2 };
    fromPod(udp(A.ip, 4000, '10.96.0.10', 53));
    fromPod(tcp(A.ip, 4000, '10.96.0.10', 80));
    await lab.services.update([
      { frontend: { ip: '10.96.0.10', port: 53, protocol: 'UDP' }, backends: [{ ...other, port: 5353 }], flags: 0 },
      { frontend: { ip: '10.96.0.10', port: 80, protocol: 'TCP' }, backends: [{ ...other, port: 8080 }], flags: 0 },
    ]);
    assertFrame(fromPod(udp(A.ip, 4000, '10.96.0.10', 53)).out, { daddr: other.ip });
    assertFrame(fromPod(tcp(A.ip, 4000, '10.96.0.10', 80, 'S')).out, { daddr: other.ip });
  });

  it('answers TCP to a service without backends with RST', () => {
    for (const [flags, payload, expected] of [
      ['S', '', { flags: 'RA', seq: 0, ack: 1001 }],
      ['PA', 'abc', { flags: 'R', seq: 5000, ack: 0 }],
    ] as const) {
      const o = fromPod(tcp(A.ip, 4000, '10.96.0.30', 80, flags, payload));
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_BACKEND');
      assert.equal(o.decision.target, A.ifindex);
      const rst = { sport: 80, dport: 4000, ...expected };
      assertFrame(o.out, { saddr: '10.96.0.30', daddr: A.ip, dstMac: A.mac, tcp: rst, payload: '' });
    }
  });

  it('answers UDP to a service without backends with "port unreachable"', () => {
    const o = fromPod(udp(A.ip, 4000, '10.96.0.30', 53));
    assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_BACKEND');
    const quote = { saddr: A.ip, daddr: '10.96.0.30', protocol: 17, sport: 4000, dport: 53 };
    assertFrame(o.out, { daddr: A.ip, icmp: { type: 3, code: 3, id: 0, quote } });
  });

  it('from a pod to its own address without a service is dropped', () => {
    assertOutcome(fromPod(tcp(A.ip, 4000, A.ip, 80)), SHOT, 'DROP', 'HAIRPIN');
  });

  it('goes nowhere on tables that do not fit together', async () => {
    const key = { addr: '10.96.0.77', port: 80, proto: 6, scope: 0 };
    await lab.loaded.maps.cm_services.update([[key, { id: 999, generation: 999, count: 1, flags: 0, affinityS: 0 }]]);
    assertOutcome(fromPod(tcp(A.ip, 4000, '10.96.0.77', 80)), SHOT, 'DROP', 'STALE_TABLES');
    await lab.loaded.maps.cm_services.remove([key]);
  });

  it("gives ICMP errors about a translated packet the service's address, whoever sends them", async () => {
    const request = udp(A.ip, 4000, '10.96.0.10', 53);
    fromPod(request);
    const error = {
      saddr: '10.2.1.1',
      daddr: A.ip,
      icmp: { type: 3, code: 1, quote: quoteOf(udp(A.ip, 4000, C.ip, 5353)) },
    };
    const quote = { saddr: A.ip, daddr: '10.96.0.10', protocol: 17, sport: 4000, dport: 53 };
    for (const o of [overlay(error, 1), toPod(error, UPLINK)]) {
      assertFrame(o.out, { daddr: A.ip, icmp: { type: 3, code: 1, id: 0, quote } });
    }

    // The one that we make ourselves: the backend was a pod of this node and is gone.
    const frontend = { ip: '10.96.0.20', port: 80, protocol: 'TCP' } as const;
    await lab.services.update([{ frontend, backends: [{ ip: '10.1.1.99', port: 8080, clusterId: 1 }], flags: 0 }]);
    const o = fromPod(tcp(A.ip, 4001, '10.96.0.20', 80));
    assertOutcome(o, REDIRECT, 'ENDPOINT', 'NO_ENDPOINT');
    const ours = { saddr: A.ip, daddr: '10.96.0.20', protocol: 6, sport: 4001, dport: 80 };
    assertFrame(o.out, { icmp: { type: 3, code: 1, id: 0, quote: ours } });
  });
});

describe('what arrives without encapsulation', () => {
  it('goes to the pod with the identity of its source, from a cluster that is reached directly and from the world', () => {
    for (const [saddr, identity] of [
      [D.ip, D.identity],
      ['192.0.2.1', 2],
    ] as const) {
      const o = fromNetwork(tcp(saddr, 4000, A.ip, 80));
      assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assert.deepEqual([o.decision.target, o.decision.identity], [A.ifindex, identity]);
      assertFrame(o.out, { dstMac: A.mac, srcMac: A.hostMac });
    }
  });

  it('is dropped with the source of a pod that is reached by the tunnel, whatever else it is', () => {
    const odd = build({ saddr: C.ip, daddr: A.ip, protocol: 50, payload: 'x'.repeat(12) });
    for (const packet of [tcp(C.ip, 4000, A.ip, 80), tcp('10.3.4.5', 1, A.ip, 80), odd]) {
      assertOutcome(fromNetwork(packet), SHOT, 'DROP', 'NOT_ENCAPSULATED');
    }
  });

  it('is dropped with the source of one of ours', () => {
    for (const saddr of [B.ip, '10.1.1.200', GATEWAY, NODE]) {
      assertOutcome(fromNetwork(tcp(saddr, 1, A.ip, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    }
  });

  it('is the affair of the host where it is not for a pod', () => {
    for (const daddr of [NODE, GATEWAY, '10.1.1.99', '192.0.2.1']) {
      assertOutcome(fromNetwork(tcp(C.ip, 1, daddr, 22)), OK, 'STACK', 'FROM_NETWORK');
    }
  });

  it("gives a translated flow's reply the service's address back", async () => {
    const frontend = { ip: '10.96.0.10', port: 53, protocol: 'UDP' } as const;
    await lab.services.update([{ frontend, backends: [{ ip: D.ip, clusterId: 4, port: 5353 }], flags: 0 }]);
    const there = fromPod(udp(A.ip, 4000, '10.96.0.10', 53));
    // No route and no neighbour here: what cannot be routed by us is left to the host, translated.
    assertOutcome(there, OK, 'STACK', 'TO_STACK');
    assertFrame(there.out, { daddr: D.ip });
    assertFrame(fromNetwork(udp(D.ip, 5353, A.ip, 4000, 'answer')).out, { saddr: '10.96.0.10' });
  });
});

describe('what the host sends a pod', () => {
  it('is the host’s only where nobody sent it to the host, else of whoever the source is', () => {
    for (const [saddr, cameBy, identity] of [
      [NODE, 0, 1],
      [GATEWAY, 0, 1],
      [NODE, UPLINK, 2],
      [GATEWAY6, UPLINK, 10],
      ['192.0.2.1', UPLINK, 2],
      [D.ip, UPLINK, D.identity],
      [B.ip, B.ifindex, B.identity],
    ] as const) {
      const o = toPod(udp(saddr, 4000, saddr === GATEWAY6 ? A.ip6 : A.ip, 53), cameBy);
      assertOutcome(o, OK, 'STACK', 'FROM_STACK');
      assert.equal(o.decision.identity, identity, `${saddr} by ${cameBy}`);
    }
  });

  it('is dropped with a source that did not come the way of that source', () => {
    for (const cameBy of [0, UPLINK, A.ifindex]) {
      assertOutcome(toPod(udp(B.ip, 4000, A.ip, 53), cameBy), SHOT, 'DROP', 'SPOOFED_SOURCE');
      assertOutcome(toPod(udp(C.ip, 4000, A.ip, 53), cameBy), SHOT, 'DROP', 'NOT_ENCAPSULATED');
      assertOutcome(toPod(udp(C.ip6, 4000, A.ip6, 53), cameBy), SHOT, 'DROP', 'NOT_ENCAPSULATED');
    }
  });
});

describe('what comes through the tunnel', () => {
  it('is handed to the pod with the identity of the VNI', () => {
    const o = overlay(tcp(C.ip, 4000, A.ip, 80));
    assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
    assert.deepEqual([o.decision.target, o.decision.identity], [A.ifindex, C.identity]);
    assertFrame(o.out, { dstMac: A.mac, srcMac: A.hostMac });
  });

  it('is dropped from a node that we do not know', () => {
    assertOutcome(overlay(tcp(C.ip, 1, A.ip, 80), C.identity, '172.31.9.9'), SHOT, 'DROP', 'UNKNOWN_NODE');
  });

  it('is dropped with an identity that is not of the sending cluster', () => {
    assertOutcome(overlay(tcp(C.ip, 1, A.ip, 80), A.identity), SHOT, 'DROP', 'FOREIGN_IDENTITY');
    assertOutcome(overlay(tcp(C.ip, 1, A.ip, 80), 3 << 16), SHOT, 'DROP', 'FOREIGN_IDENTITY');
    assertOutcome(overlay(tcp(C.ip, 1, A.ip, 80), (3 << 16) - 1), REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
  });

  it("takes the remote node's host for a remote node, never for our host", () => {
    assert.equal(overlay(tcp('10.2.1.1', 1, A.ip, 80), 1).decision.identity, 6);
    assert.equal(overlay(tcp('10.2.1.1', 1, A.ip, 80), 2).decision.identity, 2);
  });

  it('is dropped when it claims an address of our own', () => {
    for (const saddr of [B.ip, '10.1.1.200', GATEWAY, NODE]) {
      assertOutcome(overlay(tcp(saddr, 1, A.ip, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    }
  });

  it('counts a missing or different ipcache row and believes the VNI', async () => {
    const noted = lab.counted('ipcache-mismatch', 'overlay');
    overlay(tcp(C.ip, 1, A.ip, 80));
    assert.equal(lab.counted('ipcache-mismatch', 'overlay'), noted);
    const o = overlay(tcp('10.2.1.50', 1, A.ip, 80), C.identity + 1);
    assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
    assert.equal(o.decision.identity, C.identity + 1);
    assert.equal(lab.counted('ipcache-mismatch', 'overlay'), noted + 1);
  });

  it('is answered "host unreachable" through the tunnel, as the host, for a pod that nobody has', () => {
    const o = overlay(tcp(C.ip, 4000, '10.1.1.99', 80));
    assertOutcome(o, REDIRECT, 'TUNNEL', 'NO_ENDPOINT');
    assert.deepEqual([o.decision.vni, o.decision.remote], [1, C.node]);
    const quote = { saddr: C.ip, daddr: '10.1.1.99', protocol: 6, sport: 4000, dport: 80 };
    assertFrame(o.out, { saddr: GATEWAY, daddr: C.ip, icmp: { type: 3, code: 1, id: 0, quote } });
  });

  it('is left to the host for the node itself, and dropped for anyone else', () => {
    assertOutcome(overlay(tcp(C.ip, 1, GATEWAY, 80)), OK, 'STACK', 'TO_STACK');
    assertOutcome(overlay(tcp(C.ip, 1, '10.9.9.9', 80)), SHOT, 'DROP', 'NOT_FOR_US');
  });
});

describe('conntrack', () => {
  it('files a flow once, whichever way its packets go', async () => {
    fromPod({ saddr: A.ip, daddr: C.ip, icmp: { type: 8, id: 77 }, payload: 'ping' });
    overlay({ saddr: C.ip, daddr: A.ip, icmp: { type: 0, id: 77 }, payload: 'ping' });
    fromPod(tcp(A.ip, 4000, B.ip, 80));
    fromPod(tcp(B.ip, 80, A.ip, 4000, 'SA'), B);
    fromPod(tcp(A.ip, 4000, B.ip, 80, 'A'));
    const flows = (await dumpCt(lab.loaded.maps)) as {
      protocol: string;
      state: string;
      txPackets: number;
      rxPackets: number;
    }[];
    const short = flows.map((f) => [f.protocol, f.state, f.txPackets, f.rxPackets]).sort();
    assert.deepEqual(short, [
      ['ICMP', 'established', 1, 1],
      ['TCP', 'established', 2, 1],
    ]);
  });

  it('starts over when a closed connection is opened again', async () => {
    fromPod(tcp(A.ip, 4000, B.ip, 80));
    fromPod(tcp(B.ip, 80, A.ip, 4000, 'RA'), B);
    assert.deepEqual(await states(), ['closing']);
    fromPod(tcp(A.ip, 4000, B.ip, 80));
    assert.deepEqual(await states(), ['new']);
  });

  async function states(): Promise<string[]> {
    return ((await dumpCt(lab.loaded.maps)) as { state: string }[]).map((flow) => flow.state);
  }
});

describe('odd packets get a defined verdict', () => {
  const plain = build(udp(A.ip, 4000, C.ip, 53));
  const changed = (at: number, ...bytes: number[]): Buffer => {
    const copy = Buffer.from(plain);
    copy.set(bytes, at);
    return copy;
  };
  const vlan = Buffer.concat([plain.subarray(0, 12), Buffer.from('81000064', 'hex'), plain.subarray(12)]);
  // Shorter ones than these the kernel does not let a test program see.
  const cases: [string, Buffer, keyof typeof Reason][] = [
    ['a VLAN tag', vlan, 'VLAN'],
    ['an unknown ethertype', changed(12, 0x88, 0xcc), 'NOT_IP'],
    ['a UDP header behind the end of the IP packet', changed(16, 0x00, 0x16), 'TRUNCATED'],
    ['half a UDP header', withLength(plain.subarray(0, 38)), 'TRUNCATED'],
    ['half a TCP header', withLength(build(tcp(A.ip, 1, C.ip, 2)).subarray(0, 46)), 'TRUNCATED'],
    ['a version that is not 4', changed(14, 0x65), 'BAD_HEADER'],
    ['a header length below 5', changed(14, 0x44), 'BAD_HEADER'],
    ['a total length beyond the frame', changed(16, 0x10, 0x00), 'BAD_HEADER'],
    ['IP options', changed(14, 0x46), 'IP_OPTIONS'],
    ['half an SCTP header', build({ saddr: A.ip, daddr: C.ip, protocol: 132, payload: 'x'.repeat(11) }), 'TRUNCATED'],
    ['ESP', build({ saddr: A.ip, daddr: C.ip, protocol: 50, payload: 'x'.repeat(12) }), 'UNSUPPORTED_L4'],
    ['ICMPv6 over IPv4', build({ saddr: A.ip, daddr: C.ip, protocol: 58, payload: 'x'.repeat(12) }), 'UNSUPPORTED_L4'],
    ['a total length of 0', changed(16, 0, 0), 'BAD_HEADER'],
    ['ICMP other than echo and errors', build({ saddr: A.ip, daddr: C.ip, icmp: { type: 13 } }), 'UNSUPPORTED_L4'],
  ];
  for (const [name, packet, reason] of cases) {
    it(`${name}: ${reason.toLowerCase()}`, () => {
      assertOutcome(fromPod(packet), SHOT, 'DROP', reason);
      assertOutcome(overlay(packet), SHOT, 'DROP', reason);
    });
  }

  for (const [name, packet, reason] of cases) {
    it(`${name}, from the host: ${reason.toLowerCase()}`, () => {
      assertOutcome(toPod(packet), SHOT, 'DROP', reason);
    });
  }

  it('plain ones for a pod are not left to the host, which would forward them', () => {
    const between = (saddr: string, daddr: string, extensions: Frame['extensions'] = []) =>
      build({ ...udp(saddr, 4000, daddr, 53), extensions });
    const withOptions = (saddr: string, daddr: string) => {
      const packet = between(saddr, daddr);
      packet[14] = 0x46;
      return packet;
    };
    const withoutLength = between('2001:db8::1', A.ip6, ['hop-by-hop']);
    withoutLength.writeUInt16BE(0, 18);
    for (const [packet, reason] of [
      [withOptions('192.0.2.1', A.ip), 'IP_OPTIONS'],
      [withOptions(C.ip, A.ip), 'NOT_ENCAPSULATED'],
      [withOptions(B.ip, A.ip), 'SPOOFED_SOURCE'],
      [between('2001:db8::1', A.ip6, ['routing']), 'EXT_HEADER'],
      [between('2001:db8::1', A.ip6, Array(5).fill('destination')), 'EXT_HEADER'],
      [between(C.ip6, A.ip6, ['routing']), 'NOT_ENCAPSULATED'],
      [withoutLength, 'BAD_HEADER'],
      [build({ saddr: '2001:db8::1', daddr: A.ip6, icmp: { type: 135 }, hopLimit: 255 }), 'ROGUE_ND'],
    ] as const)
      assertOutcome(fromNetwork(packet), SHOT, 'DROP', reason);
    assertOutcome(fromNetwork(withOptions('192.0.2.1', NODE)), OK, 'STACK', 'FROM_NETWORK');
  });

  for (const [first, pod, where] of [
    ['10.96.0.10', A, 'a service'],
    [C.ip, A, 'a pod'],
  ] as const) {
    it(`fragments to ${where} go where their first one went`, async () => {
      const parts = (id: number): [Frame, Frame] => [
        { ...udp(pod.ip, 4000, first, 53), fragment: { id, offset: 0, more: true } },
        { saddr: pod.ip, daddr: first, protocol: 17, payload: 'rest', fragment: { id, offset: 1480, more: false } },
      ];
      const [start, rest] = parts(77);
      const noted = lab.counted('fragment', 'from-pod');
      for (const part of [start, rest]) {
        const o = fromPod(part);
        assertOutcome(o, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
        assertFrame(o.out, { daddr: C.ip });
      }
      assert.equal(lab.counted('fragment', 'from-pod'), noted + 1);
      // The other way: one flow, and the answer's fragments are given the service's address back.
      const port = first === C.ip ? 53 : 5353;
      const back: Frame[] = [
        { ...udp(C.ip, port, pod.ip, 4000), fragment: { id: 9, offset: 0, more: true } },
        { saddr: C.ip, daddr: pod.ip, protocol: 17, payload: 'rest', fragment: { id: 9, offset: 1480, more: false } },
      ];
      for (const part of back) assertFrame(overlay(part).out, { saddr: first });
      // One that comes before its first, or of another datagram.
      assertOutcome(fromPod(parts(78)[1]), SHOT, 'DROP', 'FRAGMENT_LOST');
      assertOutcome(
        overlay({ ...back[1]!, fragment: { id: 10, offset: 8, more: false } }),
        SHOT,
        'DROP',
        'FRAGMENT_LOST',
      );
    });
  }

  it('answers for a fragmented datagram to a pod that nobody has once, for its first fragment', () => {
    const first = { ...udp(A.ip, 1, '10.1.1.99', 53), fragment: { id: 5, offset: 0, more: true } };
    const later = { ...first, fragment: { id: 5, offset: 1480, more: false } };
    assertOutcome(fromPod(first), REDIRECT, 'ENDPOINT', 'NO_ENDPOINT');
    assertOutcome(fromPod(later), SHOT, 'DROP', 'NO_ANSWER');
  });
});

/** A cut packet whose IP header owns up to it, so that only the parser of the next layer can notice. */
function withLength(frame: Buffer): Buffer {
  const copy = Buffer.from(frame);
  copy.writeUInt16BE(copy.length - 14, 16);
  return copy;
}
