/** Services as other hosts reach them: the uplinks' bodies under BPF_PROG_TEST_RUN, in the picture of testing/packet-lab.ts. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { RESERVED_IDENTITY } from '@clustermesh/contract';
import { quoteOf, read } from './testing/frames.ts';
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
  OK,
  openPacketLab,
  type PacketLab,
  REDIRECT,
  SHOT,
  tcp,
  UPLINK,
  udp,
} from './testing/packet-lab.ts';

let lab: PacketLab;
before(async () => {
  lab = await openPacketLab();
});
beforeEach(() => lab.reset());
after(() => lab?.close());

for (const { family, client, world, node, external, gateway, b, c } of [
  {
    family: 'IPv4',
    client: '198.51.100.7',
    world: RESERVED_IDENTITY.world,
    node: NODE,
    external: LB,
    gateway: GATEWAY,
    b: B.ip,
    c: C.ip,
  },
  {
    family: 'IPv6',
    client: '2001:db8:7::7',
    world: RESERVED_IDENTITY.worldIpv6,
    node: NODE6,
    external: LB6,
    gateway: GATEWAY6,
    b: B.ip6,
    c: C.ip6,
  },
]) {
  const portOf = (out: Buffer): number => (read(out).tcp ?? read(out).udp)!.sport;

  describe(`${family}: a backend of this node`, () => {
    it('sees the client itself; its answer leaves under the service’s address', () => {
      const there = lab.fromNetwork(tcp(client, 4000, node, 80));
      assertOutcome(there, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assertFrame(there.out, {
        saddr: client,
        daddr: b,
        tcp: { sport: 4000, dport: 8080, flags: 'S', seq: 1000, ack: 0 },
      });
      const answer = tcp(b, 8080, client, 4000, 'SA');
      assertOutcome(lab.fromPod(answer, B), OK, 'STACK', 'TO_STACK');
      const back = lab.toNetwork(answer);
      assertOutcome(back, OK, 'STACK', 'TO_NETWORK');
      assertFrame(back.out, { saddr: node, daddr: client });
      assert.equal(portOf(back.out), 80);
    });

    it('and two flows of one client’s port keep apart, though they end at one backend', async () => {
      const second = { ip: external, port: 443, protocol: 'TCP', scope: 'outside' } as const;
      await lab.services.update([{ frontend: second, backends: [{ ip: b, port: 8080, clusterId: 1 }], flags: 0 }]);
      const [one, two] = [
        lab.fromNetwork(tcp(client, 4000, node, 80)),
        lab.fromNetwork(tcp(client, 4000, external, 443)),
      ];
      assert.equal(portOf(one.out), 4000);
      assert.notEqual(portOf(two.out), 4000);
      assertFrame(lab.toNetwork(tcp(b, 8080, client, 4000, 'SA')).out, { saddr: node, daddr: client });
      const back = lab.toNetwork(tcp(b, 8080, client, portOf(two.out), 'SA'));
      assertFrame(back.out, { saddr: external, daddr: client });
      assert.equal(read(back.out).tcp!.dport, 4000);
      await lab.services.remove([`${family === 'IPv6' ? `[${external}]` : external}:443/TCP/outside`]);
    });
  });

  describe(`${family}: a backend behind the tunnel`, () => {
    it('sees the gateway, as a part of the world; its answer goes to the client', () => {
      const there = lab.fromNetwork(tcp(client, 4000, external, 80));
      assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assert.deepEqual([there.decision.remote, there.decision.vni], [C.node, world]);
      assertFrame(there.out, { saddr: gateway, daddr: c });
      const port = portOf(there.out);
      assert.ok(port >= 1024 && port < 32_768, `port ${port} is one of the kernel's own`);
      const back = lab.overlay(tcp(c, 8080, gateway, port, 'SA'));
      // Where to is for routes to say, and the test's namespace has none.
      assertOutcome(back, SHOT, 'DROP', 'NO_ROUTE');
      assertFrame(back.out, {
        saddr: external,
        daddr: client,
        tcp: { sport: 80, dport: 4000, flags: 'SA', seq: 1000, ack: 5000 },
      });
    });

    it('UDP, the same', () => {
      const there = lab.fromNetwork(udp(client, 4000, external, 53));
      assertFrame(there.out, { saddr: gateway, daddr: c });
      const back = lab.overlay(udp(c, 5353, gateway, portOf(there.out), 'answer'));
      assertFrame(back.out, { saddr: external, daddr: client, udp: { sport: 53, dport: 4000 } });
    });

    it('is believed only by the tunnel', () => {
      const there = lab.fromNetwork(tcp(client, 4000, external, 80));
      assertOutcome(lab.fromNetwork(tcp(c, 8080, gateway, portOf(there.out), 'SA')), SHOT, 'DROP', 'NOT_ENCAPSULATED');
    });

    it('what the node itself began with it is the node’s', () => {
      lab.fromNetwork(tcp(client, 4000, external, 80));
      assertOutcome(lab.overlay(tcp(c, 8080, gateway, 40_000, 'SA')), OK, 'STACK', 'TO_STACK');
    });

    it('a packet that does not fit through it is answered with the size that does, from the service', () => {
      const big = { ...tcp(client, 4000, external, 80, 'A', 'x'.repeat(1440)), dontFragment: true };
      const answered = lab.fromNetwork(big, { ifindex: UPLINK });
      assertOutcome(answered, REDIRECT, 'NETWORK', 'TOO_BIG');
      assert.equal(answered.decision.target, UPLINK);
      const { icmp } = read(answered.out);
      assertFrame(answered.out, {
        saddr: external,
        daddr: client,
        srcMac: '02:00:00:00:00:02',
        dstMac: '02:00:00:00:00:01',
      });
      assert.equal(icmp?.mtu, 1450);
      assert.deepEqual([icmp?.quote?.saddr, icmp?.quote?.daddr], [client, external]);
    });

    it('an ICMP error about what was translated reaches the client as one about what it sent', () => {
      const { out } = lab.fromNetwork(udp(client, 4000, external, 53));
      const quote = quoteOf(udp(gateway, portOf(out), c, 5353));
      const [type, code] = family === 'IPv4' ? [3, 3] : [1, 4];
      const back = lab.overlay({ saddr: c, daddr: gateway, icmp: { type, code, quote, rest: 0 } });
      assertFrame(back.out, { saddr: external, daddr: client });
      const about = read(back.out).icmp!.quote!;
      assert.deepEqual([about.saddr, about.sport, about.daddr, about.dport], [client, 4000, external, 53]);
    });
  });

  describe(`${family}: a service`, () => {
    it('without backends refuses at once: RST, ICMP port unreachable, back to the router that asked', () => {
      const reset = lab.fromNetwork(tcp(client, 4000, external, 4000));
      assertOutcome(reset, REDIRECT, 'NETWORK', 'NO_BACKEND');
      assert.equal(reset.decision.target, UPLINK);
      assertFrame(reset.out, { saddr: external, daddr: client, dstMac: '02:00:00:00:00:01' });
      assert.equal(read(reset.out).tcp!.flags, 'RA');
      const unreachable = lab.fromNetwork(udp(client, 4000, external, 4000));
      assertOutcome(unreachable, REDIRECT, 'NETWORK', 'NO_BACKEND');
      assertFrame(unreachable.out, { saddr: external, daddr: client });
    });

    it('whose backend is withdrawn resets its connections, and gives datagrams another', async () => {
      const frontend = { ip: external, port: 80, protocol: 'TCP', scope: 'outside' } as const;
      lab.fromNetwork(tcp(client, 4000, external, 80));
      lab.fromNetwork(udp(client, 4000, external, 53));
      const moved = [{ ip: b, port: 9090, clusterId: 1 }];
      // Everything else that leads there goes as well, or the backend would still be one.
      const cluster = family === 'IPv4' ? '10.96.0.10' : 'fd96::10';
      await lab.services.update([
        { frontend, backends: moved, flags: 0 },
        { frontend: { ip: cluster, port: 80, protocol: 'TCP' }, backends: moved, flags: 0 },
        { frontend: { ...frontend, port: 53, protocol: 'UDP' }, backends: moved, flags: 0 },
      ]);
      assertOutcome(lab.fromNetwork(tcp(client, 4000, external, 80, 'A')), REDIRECT, 'NETWORK', 'BACKEND_GONE');
      assertFrame(lab.fromNetwork(udp(client, 4000, external, 53)).out, { saddr: client, daddr: b });
      assertFrame(lab.fromNetwork(tcp(client, 4001, external, 80)).out, { saddr: client, daddr: b });
    });

    it('is not reached by its cluster address from outside, nor is a node by what is for the inside only', () => {
      const cluster = family === 'IPv4' ? '10.96.0.10' : 'fd96::10';
      assertOutcome(lab.fromNetwork(tcp(client, 4000, cluster, 80)), OK, 'STACK', 'FROM_NETWORK');
      assertOutcome(lab.fromNetwork(tcp(client, 4000, node, 22)), OK, 'STACK', 'FROM_NETWORK');
    });

    it('is no way around for sources that must come by the tunnel, or are ours', () => {
      assertOutcome(lab.fromNetwork(tcp(c, 4000, node, 80)), SHOT, 'DROP', 'NOT_ENCAPSULATED');
      const own = family === 'IPv4' ? A.ip : A.ip6;
      assertOutcome(lab.fromNetwork(tcp(own, 4000, node, 80)), SHOT, 'DROP', 'SPOOFED_SOURCE');
    });

    it('takes fragments where the first one went', () => {
      const part = (offset: number, more: boolean) => ({
        ...udp(client, 4000, external, 53, 'x'.repeat(64)),
        fragment: { offset, more, id: 9 },
      });
      assertOutcome(lab.fromNetwork(part(8, false)), OK, 'STACK', 'FROM_NETWORK');
      assertOutcome(lab.fromNetwork(part(0, true)), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      const later = lab.fromNetwork(part(8, false));
      assertOutcome(later, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      const { saddr, daddr } = read(later.out);
      assert.deepEqual([saddr, daddr], [gateway, c]);
    });
  });
}

describe('a backend that is routed to', () => {
  it('sees the node itself', () => {
    const there = lab.fromNetwork(tcp('198.51.100.7', 4000, LB, 8080));
    assertOutcome(there, SHOT, 'DROP', 'NO_ROUTE');
    assertFrame(there.out, { saddr: NODE, daddr: D.ip });
  });
});

describe('source ports', () => {
  it('of many clients towards one backend are told apart, each answer goes to its own', () => {
    const ports = new Map<number, string>();
    for (let i = 0; i < 200; i++) {
      const client = `198.51.${100 + (i >> 7)}.${1 + (i & 127)}`;
      ports.set(read(lab.fromNetwork(tcp(client, 4000, LB, 80)).out).tcp!.sport, client);
    }
    assert.equal(ports.size, 200);
    for (const [port, client] of ports)
      assertFrame(lab.overlay(tcp(C.ip, 8080, GATEWAY, port, 'SA')).out, { saddr: LB, daddr: client });
  });

  it('run out with a reason, and the flows that have one go on', async () => {
    const { cm_nat } = lab.loaded.maps;
    const first = lab.fromNetwork(tcp('198.51.100.7', 4000, LB, 80));
    const [key, value] = (await cm_nat.entries()).find(([, entry]) => entry.isReply === 1)!;
    const others = { ...value, daddr: '198.51.100.8' };
    const all = Array.from({ length: 31_744 }, (_, i) => 1024 + i).filter((port) => port !== key.dport);
    await cm_nat.update(all.map((dport) => [{ ...key, dport }, others]));
    assertOutcome(lab.fromNetwork(tcp('198.51.100.9', 4000, LB, 80)), SHOT, 'DROP', 'NAT_EXHAUSTED');
    const again = lab.fromNetwork(tcp('198.51.100.7', 4000, LB, 80, 'A'));
    assert.equal(read(again.out).tcp!.sport, read(first.out).tcp!.sport);
  });
});
