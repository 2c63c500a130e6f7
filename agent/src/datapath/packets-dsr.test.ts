/**
 * Direct server return: what the node does that a client came to, and what the backend's node does, each under BPF_PROG_TEST_RUN in the
 * picture of testing/packet-lab.ts. The former is asked for in the settings, the latter always done.
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmCtState } from '@clustermesh/bpf';
import { RESERVED_IDENTITY } from '@clustermesh/contract';
import { collectGarbage } from './garbage.ts';
import { hostPrefix, toMac } from './rows.ts';
import { ipcacheTable } from './tables.ts';
import { build, type Frame, noteOf, quoteOf, read } from './testing/frames.ts';
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
  type Outcome,
  openPacketLab,
  type PacketLab,
  REDIRECT,
  SHOT,
  tcp,
  udp,
  W,
} from './testing/packet-lab.ts';

/** That of the note as `read` gives it. */
const textOf = (note: Buffer): string => note.subarray(note.length === 24 ? 1 : 0).toString('hex');

const families = [
  {
    family: 'IPv4',
    client: '198.51.100.7',
    router: '198.51.100.1',
    vni: RESERVED_IDENTITY.world,
    otherWorld: RESERVED_IDENTITY.worldIpv6,
    node: NODE,
    external: LB,
    gateway: GATEWAY,
    a: A.ip,
    b: B.ip,
    c: C.ip,
    w: W.ip,
    bytes: 8,
    refused: 'IP_OPTIONS',
    tooBig: [3, 4],
    unreachable: [3, 1],
  },
  {
    family: 'IPv6',
    client: '2001:db8:7::7',
    router: '2001:db8:7::1',
    vni: RESERVED_IDENTITY.worldIpv6,
    otherWorld: RESERVED_IDENTITY.world,
    node: NODE6,
    external: LB6,
    gateway: GATEWAY6,
    a: A.ip6,
    b: B.ip6,
    c: C.ip6,
    w: W.ip6,
    bytes: 24,
    refused: 'EXT_HEADER',
    tooBig: [2, 0],
    unreachable: [1, 3],
  },
] as const;

describe('the node that the client came to', () => {
  let lab: PacketLab;
  before(async () => {
    lab = await openPacketLab({ isDsr: true });
  });
  beforeEach(() => lab.reset());
  after(() => lab?.close());

  for (const { family, client, router, vni, external, node, gateway, b, c, bytes, ...more } of families) {
    const assertSent = (sent: Outcome, note: Buffer | undefined, to = c, by: string = C.node) => {
      assertOutcome(sent, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assert.deepEqual([sent.decision.remote, sent.decision.vni], [by, vni]);
      assertFrame(sent.out, { saddr: client, daddr: to });
      assert.equal(read(sent.out).note, note && textOf(note));
    };
    const isV6 = family === 'IPv6';
    const of = (quote: Buffer, [type, code]: readonly [number, number], rest = 0) => ({
      icmp: { type, code, quote, rest },
    });

    describe(family, () => {
      it('sends on what opens a connection with the service noted in it, and the rest of it without', () => {
        const note = noteOf(external, 80);
        for (const _ of ['first', 'sent again']) {
          const there = lab.fromNetwork(tcp(client, 4000, external, 80));
          assertSent(there, note);
          assertFrame(there.out, { tcp: { sport: 4000, dport: 8080, flags: 'S', seq: 1000, ack: 0 } });
        }
        const later = lab.fromNetwork(tcp(client, 4000, external, 80, 'PA', 'GET /'));
        assertSent(later, undefined);
        assert.equal(read(later.out).payload, 'GET /');
      });

      it('notes it in every datagram', () => {
        for (const payload of ['question', 'x'.repeat(1000)]) {
          const there = lab.fromNetwork(udp(client, 4000, external, 53, payload));
          assertSent(there, noteOf(external, 53));
          assertFrame(there.out, { udp: { sport: 4000, dport: 5353 }, payload });
        }
      });

      it('notes it in the first packet of a connection that it does not know', () => {
        assertSent(lab.fromNetwork(tcp(client, 4000, external, 80, 'A')), noteOf(external, 80));
        assertSent(lab.fromNetwork(tcp(client, 4000, external, 80, 'A')), undefined);
      });

      it('and in the first fragment of a datagram', () => {
        const part = (offset: number, more: boolean): Frame => ({
          ...udp(client, 4000, external, 53, 'x'.repeat(64)),
          fragment: { offset, more, id: 9 },
        });
        assertSent(lab.fromNetwork(part(0, true)), noteOf(external, 53));
        assertSent(lab.fromNetwork(part(8, false)), undefined);
      });

      it('takes SCTP as it is', async () => {
        const frontend = { ip: external, port: 9, protocol: 'SCTP', scope: 'outside' } as const;
        await lab.services.update([{ frontend, backends: [{ ip: c, port: 9, clusterId: 2 }], flags: 0 }]);
        const there = lab.fromNetwork({ saddr: client, daddr: external, sctp: { sport: 4000, dport: 9 } });
        assertSent(there, noteOf(external, 9));
        await lab.services.remove([`${isV6 ? `[${external}]` : external}:9/SCTP/outside`]);
      });

      it('serves what has its backend here as ever', () => {
        const there = lab.fromNetwork(tcp(client, 4000, node, 80));
        assertOutcome(there, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
        assertFrame(there.out, { saddr: client, daddr: b });
        assert.equal(read(there.out).note, undefined);
        assertFrame(lab.toNetwork(tcp(b, 8080, client, 4000, 'SA')).out, { saddr: node, daddr: client });
      });

      it('tells the client the size that fits with the note, and needs none within a connection', () => {
        const full = 1450 - (isV6 ? 40 : 20);
        const sized = (frame: Frame) => lab.fromNetwork({ ...frame, dontFragment: true });
        const datagram = (size: number) => sized(udp(client, 4000, external, 53, 'x'.repeat(size - 8)));
        assertSent(datagram(full - bytes), noteOf(external, 53));
        const answered = datagram(full - bytes + 1);
        assertOutcome(answered, REDIRECT, 'NETWORK', 'TOO_BIG');
        assertFrame(answered.out, { saddr: external, daddr: client });
        assert.equal(read(answered.out).icmp?.mtu, 1450 - bytes);

        const segment = (size: number) => sized(tcp(client, 4000, external, 80, 'A', 'x'.repeat(size - 20)));
        assertSent(segment(full), undefined);
        const cut = segment(full + 1);
        assertOutcome(cut, REDIRECT, 'NETWORK', 'TOO_BIG');
        assert.equal(read(cut.out).icmp?.mtu, 1450);
        const opening = sized(tcp(client, 4001, external, 80, 'S', 'x'.repeat(full - 20)));
        assert.equal(read(opening.out).icmp?.mtu, 1450 - bytes);
      });

      it('exchanges the source after all where the answers of two services could not be told apart', async () => {
        const second = { ip: external, port: 443, protocol: 'TCP', scope: 'outside' } as const;
        await lab.services.update([{ frontend: second, backends: [{ ip: c, port: 8080, clusterId: 2 }], flags: 0 }]);
        assertSent(lab.fromNetwork(tcp(client, 4000, external, 80)), noteOf(external, 80));
        const two = lab.fromNetwork(tcp(client, 4000, external, 443));
        assertFrame(two.out, { saddr: gateway, daddr: c });
        const { note, tcp: there } = read(two.out);
        assert.equal(note, undefined);
        const back = lab.overlay(tcp(c, 8080, gateway, there!.sport, 'SA'));
        assertFrame(back.out, { saddr: external, daddr: client });
        assert.equal(read(back.out).tcp!.sport, 443);
        await lab.services.remove([`${isV6 ? `[${external}]` : external}:443/TCP/outside`]);
      });

      it('passes on to the backend what the network says of its answers', () => {
        lab.fromNetwork(tcp(client, 4000, external, 80));
        const quote = quoteOf(tcp(external, 80, client, 4000, 'A'));
        const error = { saddr: router, daddr: external, ...of(quote, more.tooBig, 1280) };
        const there = lab.fromNetwork(error);
        assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
        assert.deepEqual([there.decision.remote, there.decision.vni], [C.node, vni]);
        assertFrame(there.out, { saddr: router, daddr: c });
        const { mtu, quote: about } = read(there.out).icmp!;
        assert.equal(mtu, 1280);
        assert.deepEqual([about?.saddr, about?.sport, about?.daddr, about?.dport], [c, 8080, client, 4000]);
      });

      it('passes on to the client what the backend’s node says of its packets, and of nobody else’s', () => {
        lab.fromNetwork(udp(client, 4000, external, 53));
        const about = (sport: number) => ({
          saddr: isV6 ? 'fd00:2:1::1' : '10.2.1.1',
          daddr: client,
          ...of(quoteOf(udp(client, sport, c, 5353)), more.unreachable),
        });
        const back = lab.overlay(about(4000), 1);
        assertOutcome(back, SHOT, 'DROP', 'NO_ROUTE'); // The test's namespace has none.
        const { quote } = read(back.out).icmp!;
        assertFrame(back.out, { daddr: client });
        assert.deepEqual([quote?.saddr, quote?.sport, quote?.daddr, quote?.dport], [client, 4000, external, 53]);
        assertOutcome(lab.overlay(about(4001), 1), SHOT, 'DROP', 'NOT_FOR_US');
        assertOutcome(lab.overlay({ ...about(4000), daddr: router }, 1), SHOT, 'DROP', 'NOT_FOR_US');
        // What is about answers comes by the network, and is not for another node to say.
        const other = { saddr: router, daddr: external, ...of(quoteOf(udp(external, 53, client, 4000)), more.tooBig) };
        assertOutcome(lab.overlay(other, vni), SHOT, 'DROP', 'NOT_FOR_US');
      });

      it('resets connections whose backend is withdrawn, and gives datagrams another', async () => {
        lab.fromNetwork(tcp(client, 4000, external, 80));
        lab.fromNetwork(udp(client, 4000, external, 53));
        const moved = [{ ip: b, port: 9090, clusterId: 1 }];
        const frontend = { ip: external, port: 80, protocol: 'TCP', scope: 'outside' } as const;
        const cluster = isV6 ? 'fd96::10' : '10.96.0.10';
        await lab.services.update([
          { frontend, backends: moved, flags: 0 },
          { frontend: { ip: cluster, port: 80, protocol: 'TCP' }, backends: moved, flags: 0 },
          { frontend: { ...frontend, port: 53, protocol: 'UDP' }, backends: moved, flags: 0 },
        ]);
        const reset = lab.fromNetwork(tcp(client, 4000, external, 80, 'A'));
        assertOutcome(reset, REDIRECT, 'NETWORK', 'BACKEND_GONE');
        assertFrame(reset.out, { saddr: external, daddr: client });
        assertOutcome(lab.fromNetwork(udp(client, 4000, external, 53)), REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      });

      it('leaves a packet to the host that says itself which service it is for', () => {
        const named = { ...tcp(client, 4000, external, 80), note: noteOf('192.0.2.66', 80) };
        const forged = isV6 ? { ...named, note: noteOf('2001:db8::66', 80) } : named;
        assertOutcome(lab.fromNetwork(forged), OK, 'STACK', 'FROM_NETWORK');
      });
    });
  }

  it('sends by the tunnel also what reaches its backend’s node without, errors included', () => {
    const [client, service] = ['198.51.100.7', LB];
    const there = lab.fromNetwork(tcp(client, 4000, service, 8080));
    assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
    assert.deepEqual([there.decision.remote, there.decision.vni], [D.node, RESERVED_IDENTITY.world]);
    assertFrame(there.out, { saddr: client, daddr: D.ip });
    const quote = quoteOf(tcp(service, 8080, client, 4000, 'A'));
    const error = lab.fromNetwork({
      saddr: '198.51.100.1',
      daddr: service,
      icmp: { type: 3, code: 4, quote, rest: 1280 },
    });
    assertOutcome(error, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
    assert.deepEqual([error.decision.remote, read(error.out).daddr], [D.node, D.ip]);
  });

  it('speaks for clients of the world only: who is of the mesh is answered through this node', () => {
    const there = lab.fromNetwork(tcp(D.ip, 4000, LB, 80));
    assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
    assertFrame(there.out, { saddr: GATEWAY, daddr: C.ip });
    assert.equal(read(there.out).note, undefined);
  });

  it('keeps a flow of which it sees one side: a minute until the client has answered, then as any connection', async () => {
    const left = async (seconds: number) =>
      (await collectGarbage(lab.loaded.maps, () => process.hrtime.bigint() + BigInt(seconds) * 1_000_000_000n)).flows;
    lab.fromNetwork(tcp('198.51.100.7', 4000, LB, 80));
    lab.fromNetwork(tcp('198.51.100.7', 4001, LB, 80));
    lab.fromNetwork(tcp('198.51.100.7', 4001, LB, 80, 'A'));
    assert.deepEqual(await left(50), { alive: 4, removed: 0 });
    assert.deepEqual(await left(70), { alive: 2, removed: 2 });
    assert.deepEqual(await left(7990), { alive: 2, removed: 0 });
    assert.deepEqual(await left(8010), { alive: 0, removed: 2 });
  });
});

describe('the node of the backend', () => {
  let lab: PacketLab;
  before(async () => {
    lab = await openPacketLab();
  });
  beforeEach(() => lab.reset());
  after(() => lab?.close());

  for (const { family, client, router, vni, external, gateway, a, b, c, w, refused, ...more } of families) {
    const isV6 = family === 'IPv6';
    const noted = (frame: Frame, port = 80, ip: string = external): Frame => ({ ...frame, note: noteOf(ip, port) });
    const syn = (sport = 4000) => tcp(client, sport, a, 8080);
    const isDelivered = (o: Outcome) => assertOutcome(o, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
    const rows = async () => (await lab.loaded.maps.cm_nat.entries()).map(([, row]) => row);

    describe(family, () => {
      it('delivers what a client sent as it was, and answers from the service', () => {
        for (const _ of ['first', 'sent again']) {
          const there = lab.overlay(noted(syn()), vni);
          isDelivered(there);
          assert.deepEqual([there.decision.target, there.decision.identity], [A.ifindex, vni]);
          assertFrame(there.out, { saddr: client, daddr: a, dstMac: A.mac, payload: '' });
          assert.deepEqual([there.out.length, read(there.out).note], [build(syn()).length, undefined]);
        }
        const answer = tcp(a, 8080, client, 4000, 'SA');
        assertOutcome(lab.fromPod(answer), OK, 'STACK', 'TO_STACK');
        const back = lab.toNetwork(answer);
        assertOutcome(back, OK, 'STACK', 'TO_NETWORK');
        assertFrame(back.out, {
          saddr: external,
          daddr: client,
          tcp: { sport: 80, dport: 4000, flags: 'SA', seq: 1000, ack: 5000 },
        });
        isDelivered(lab.overlay(tcp(client, 4000, a, 8080, 'A'), vni));
      });

      it('datagrams, the same, in fragments too', () => {
        const whole = lab.overlay(noted(udp(client, 4000, a, 5353), 53), vni);
        isDelivered(whole);
        assertFrame(whole.out, { saddr: client, udp: { sport: 4000, dport: 5353 }, payload: 'question' });
        const part = (offset: number, more: boolean): Frame => ({
          ...udp(client, 4000, a, 5353, 'x'.repeat(64)),
          fragment: { offset, more, id: 9 },
        });
        isDelivered(lab.overlay(noted(part(0, true), 53), vni));
        isDelivered(lab.overlay(part(8, false), vni));
        const back = lab.toNetwork(udp(a, 5353, client, 4000, 'answer'));
        assertFrame(back.out, { saddr: external, udp: { sport: 53, dport: 4000 } });
      });

      it('takes the client for whom policies here name it, in every packet', async () => {
        const range = (1 << 24) + 5;
        const table = ipcacheTable(lab.loaded.maps.cm_ipcache, lab.loaded.maps.cm_ipcache_lpm);
        const row = { identity: range, clusterId: 0, tunnelEndpoint: null, encryptKey: 0, prefix: hostPrefix(client) };
        await table.update([row]);
        try {
          assert.equal(lab.overlay(noted(syn()), vni).decision.identity, range);
          assert.equal(lab.overlay(tcp(client, 4000, a, 8080, 'A'), vni).decision.identity, range);
          // Whoever says `world` of it without a service is believed no more than before.
          assert.equal(lab.overlay(syn(4001), vni).decision.identity, vni);
        } finally {
          await table.remove([row.prefix]);
        }
      });

      it('files nothing for whom policies keep out', async () => {
        const { cm_policy_state } = lab.loaded.maps;
        await cm_policy_state.update([[0, { revision: 7, flags: 4 }]]);
        try {
          assertOutcome(lab.overlay(noted(syn()), vni), SHOT, 'DROP', 'POLICY_LOCKED');
          assert.deepEqual(await rows(), []);
        } finally {
          await cm_policy_state.update([[0, { revision: 8, flags: 0 }]]);
        }
      });

      it('believes a known node only, and only of the world', () => {
        const unbelieved = (
          frame: Frame,
          reason: Parameters<typeof assertOutcome>[3],
          who: number = vni,
          by = C.node,
        ) => assertOutcome(lab.overlay(frame, who, by), SHOT, 'DROP', reason);
        unbelieved(noted(syn()), 'UNKNOWN_NODE', vni, '172.31.9.9');
        for (const identity of [C.identity, 0, 1, 6, more.otherWorld]) unbelieved(noted(syn()), refused, identity);
        unbelieved(noted(syn()), 'FOREIGN_IDENTITY', D.identity);
        unbelieved(noted(tcp(w, 4000, a, 8080)), 'FOREIGN_IDENTITY');
        unbelieved(noted(tcp(b, 4000, a, 8080)), 'SPOOFED_SOURCE');
        for (const service of [a, gateway, c]) unbelieved(noted(syn(), 80, service), 'SPOOFED_SOURCE');
        const echo = { saddr: client, daddr: a, icmp: { type: isV6 ? 128 : 8, id: 7 } };
        unbelieved(noted(echo), 'UNSUPPORTED_L4');
        const [type, code] = more.unreachable;
        const error = { type, code, rest: 0, quote: quoteOf(tcp(a, 8080, client, 4000)) };
        unbelieved(noted({ saddr: client, daddr: a, icmp: error }), 'UNSUPPORTED_L4');
      });

      it('takes a note from nowhere else', () => {
        assertOutcome(lab.fromPod(noted(tcp(a, 4000, c, 80))), SHOT, 'DROP', refused);
        assertOutcome(lab.fromNetwork(noted(syn())), SHOT, 'DROP', refused);
        assertOutcome(lab.toPod(noted(syn())), SHOT, 'DROP', refused);
      });

      it('drops a note that is not exactly one', async () => {
        const note = noteOf(external, 80);
        const bent = (at: number, byte: number) => Buffer.from(note).fill(byte, at, at + 1);
        const portless = noteOf(external, 0);
        const notes = isV6
          ? [bent(3, 0), bent(3, 19), bent(3, 21), bent(3, 255), portless, noteOf('::', 80), noteOf('ff02::1', 80)]
          : [bent(0, 0x1e), bent(1, 0), bent(1, 7), bent(1, 9), bent(1, 255), portless, noteOf('0.0.0.0', 80)];
        if (!isV6) notes.push(noteOf('224.0.0.1', 80), noteOf('127.0.0.1', 80), Buffer.alloc(4), Buffer.alloc(12));
        else notes.push(noteOf('fe80::1', 80), Buffer.concat([bent(1, 3), Buffer.alloc(8)]));
        for (const one of notes) assertOutcome(lab.overlay({ ...syn(), note: one }, vni), SHOT, 'DROP', refused);
        // Longer than what is there, or than the packet says it is.
        const frame = build(noted(syn()));
        for (const length of isV6 ? [frame.length, 16] : [frame.length, 24]) {
          const lying = Buffer.from(frame);
          lying.writeUInt16BE(length, isV6 ? 18 : 16);
          assert.equal(lab.run('cm_test_overlay', lying, { vni, remote: C.node, ifindex: 9 }).verdict, SHOT);
        }
        assert.deepEqual(await rows(), []);
      });

      it('refuses another service the ports that are in use, until they are free', () => {
        isDelivered(lab.overlay(noted(syn(), 80), vni));
        isDelivered(lab.overlay(tcp(client, 4000, a, 8080, 'A'), vni));
        assertOutcome(lab.overlay(noted(syn(), 443), vni), SHOT, 'DROP', 'NAT_EXHAUSTED');
        assert.equal(read(lab.toNetwork(tcp(a, 8080, client, 4000, 'A')).out).tcp?.sport, 80);
        lab.overlay(tcp(client, 4000, a, 8080, 'FA'), vni);
        isDelivered(lab.overlay(noted(syn(), 443), vni));
        assert.equal(read(lab.toNetwork(tcp(a, 8080, client, 4000, 'SA')).out).tcp?.sport, 443);
      });

      it('without its row answers leave as they are; the next datagram or SYN makes it again', async () => {
        const { cm_nat } = lab.loaded.maps;
        const forget = async () => cm_nat.remove((await cm_nat.entries()).map(([key]) => key));
        lab.overlay(noted(syn()), vni);
        lab.overlay(noted(udp(client, 4000, a, 5353), 53), vni);
        await forget();
        const answer = tcp(a, 8080, client, 4000, 'A');
        isDelivered(lab.overlay(tcp(client, 4000, a, 8080, 'A'), vni));
        assertOutcome(lab.toNetwork(answer), OK, 'STACK', 'TO_STACK');
        assertOutcome(lab.toNetwork(udp(a, 5353, client, 4000)), OK, 'STACK', 'TO_STACK');
        lab.overlay(noted(syn()), vni);
        lab.overlay(noted(udp(client, 4000, a, 5353), 53), vni);
        assertFrame(lab.toNetwork(answer).out, { saddr: external });
        assertFrame(lab.toNetwork(udp(a, 5353, client, 4000)).out, { saddr: external });
      });

      it('its row lives by what either side sends', async () => {
        const seen = async () => (await rows())[0]!;
        lab.overlay(noted(syn()), vni);
        const first = await seen();
        assert.deepEqual([first.isReply, first.isDsr, first.state], [1, 1, CmCtState.NEW]);
        lab.overlay(tcp(client, 4000, a, 8080, 'A'), vni);
        const second = await seen();
        assert.ok(second.lastSeenNs > first.lastSeenNs);
        assert.equal(second.state, CmCtState.ESTABLISHED);
        lab.toNetwork(tcp(a, 8080, client, 4000, 'FA'));
        assert.equal((await seen()).state, CmCtState.CLOSING);
      });

      it('what the network says of answers reaches the pod; what the pod says of packets, the client', () => {
        lab.overlay(noted(udp(client, 4000, a, 5353), 53), vni);
        const [type, code] = more.tooBig;
        const about = { type, code, rest: 1280, quote: quoteOf(udp(a, 5353, client, 4000)) };
        const there = lab.overlay({ saddr: router, daddr: a, icmp: about }, vni);
        isDelivered(there);
        assert.equal(read(there.out).icmp?.mtu, 1280);
        const unreachable = {
          type: isV6 ? 1 : 3,
          code: isV6 ? 4 : 3,
          rest: 0,
          quote: quoteOf(udp(client, 4000, a, 5353)),
        };
        const back = lab.toNetwork({ saddr: a, daddr: client, icmp: unreachable });
        assertFrame(back.out, { saddr: external, daddr: client });
        const { quote } = read(back.out).icmp!;
        assert.deepEqual([quote?.saddr, quote?.sport, quote?.daddr, quote?.dport], [client, 4000, external, 53]);
      });

      it('where nobody has the address, says so to the node that sent it', () => {
        const nobody = isV6 ? 'fd00:1:1::99' : '10.1.1.99';
        const back = lab.overlay(noted(tcp(client, 4000, nobody, 8080)), vni);
        assertOutcome(back, REDIRECT, 'TUNNEL', 'NO_ENDPOINT');
        assert.deepEqual([back.decision.remote, back.decision.vni], [C.node, RESERVED_IDENTITY.host]);
        assertFrame(back.out, { saddr: gateway, daddr: client });
      });
    });
  }
});

it('what one node sends the other takes, and what a smaller network on the way back says of answers reaches the pod', async () => {
  const lab = await openPacketLab({ isDsr: true });
  try {
    const mac = { ifindex: 31, podMac: toMac('02:aa:00:00:00:07'), hostMac: toMac('02:bb:00:00:00:07') };
    for (const [client, router, service, pod, vni, tooBig] of [
      ['198.51.100.7', '198.51.100.1', LB, C.ip, RESERVED_IDENTITY.world, { type: 3, code: 4 }],
      ['2001:db8:7::7', '2001:db8:7::1', LB6, C.ip6, RESERVED_IDENTITY.worldIpv6, { type: 2, code: 0 }],
    ] as const) {
      await lab.reset();
      const frames = [tcp(client, 4000, service, 80), udp(client, 4000, service, 53)];
      const sent = frames.map((frame) => lab.fromNetwork(frame).out);
      const icmp = { ...tooBig, rest: 1280, quote: quoteOf(tcp(service, 80, client, 4000, 'A')) };
      const error = lab.fromNetwork({ saddr: router, daddr: service, icmp }).out;
      await lab.reset();
      const { cm_endpoints } = lab.loaded.maps;
      await cm_endpoints.update([[pod, { ...mac, identity: C.identity, endpointId: 2 }]]);
      for (const [i, frame] of sent.entries()) {
        const there = lab.overlay(frame, vni, '172.31.1.12');
        assertOutcome(there, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
        const { note, payload } = read(there.out);
        assert.deepEqual([note, payload], [undefined, frames[i]!.payload]);
        assertFrame(there.out, { saddr: client, daddr: pod });
      }
      const told = lab.overlay(error, vni, '172.31.1.12');
      assertOutcome(told, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assertFrame(told.out, { saddr: router, daddr: pod });
      const { mtu, quote } = read(told.out).icmp!;
      assert.deepEqual([mtu, quote?.saddr, quote?.sport, quote?.daddr, quote?.dport], [1280, pod, 8080, client, 4000]);
      await cm_endpoints.remove([pod]);
    }
  } finally {
    await lab.close();
  }
});
