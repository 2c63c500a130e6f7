/** Flow events: packets in by BPF_PROG_TEST_RUN, events out of the ring. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmAction as Action, type CmEvent, CmDirection as Direction, CmReason as Reason } from '@clustermesh/bpf';
import { type EventRates, type EventSource, openEvents } from './events.ts';
import { build, type Frame } from './testing/frames.ts';
import { openPacketLab, type PacketLab, A as POD } from './testing/packet-lab.ts';

const EVERYTHING: EventRates = { perSecond: 1_000_000, burst: 1_000_000, refusedEvery: 1, forwardedEvery: 1 };
const { ip: A, ifindex: IFINDEX, identity: IDENTITY } = POD;

let lab: PacketLab;
let events: EventSource;

before(async () => {
  lab = await openPacketLab();
  events = openEvents(lab.loaded.maps);
});
after(async () => {
  events?.close();
  await lab?.close();
});
beforeEach(() => void drain());

function drain(limit = 1_000_000): CmEvent[] {
  const seen: CmEvent[] = [];
  events.read((event) => void seen.push(event), limit);
  return seen;
}

const udp = (saddr: string, daddr: string, payload = 'question'): Frame => ({
  saddr,
  daddr,
  udp: { sport: 4000, dport: 53 },
  payload,
});
const send = (frame: Frame): Buffer => {
  const packet = build(frame);
  lab.run('cm_test_from_pod', packet, { ifindex: IFINDEX });
  return packet;
};

describe('flow events', () => {
  it('show nothing until they are asked for', () => {
    send(udp('10.9.9.9', A));
    assert.deepEqual(drain(), []);
  });

  it('show a dropped packet with its reason, place and first bytes', async () => {
    await events.configure({ ...EVERYTHING, forwardedEvery: 0 });
    const packet = send(udp('10.9.9.9', '192.0.2.1', 'x'.repeat(300)));
    const [event, ...more] = drain();
    assert.deepEqual(more, []);
    const { reason, direction, action, ifindex, bytes, headLen, identity, every } = event!;
    assert.deepEqual(
      { reason, direction, action, ifindex, bytes, headLen, identity, every },
      {
        reason: Reason.SPOOFED_SOURCE,
        direction: Direction.FROM_POD,
        action: Action.DROP,
        ifindex: IFINDEX,
        bytes: packet.length,
        headLen: 128,
        identity: 0,
        every: 1,
      },
    );
    assert.deepEqual(Buffer.from(event!.head), packet.subarray(0, 128));
  });

  it('show short packets as far as they go', async () => {
    await events.configure(EVERYTHING);
    const packet = send({ ...udp('10.9.9.9', A), payload: '' });
    const [event] = drain();
    assert.equal(event!.headLen, packet.length);
    assert.deepEqual(Buffer.from(event!.head.subarray(0, packet.length)), packet);
  });

  it('show forwarded packets only when sampled, with the identity that was believed', async () => {
    await events.configure({ ...EVERYTHING, forwardedEvery: 0 });
    send(udp(A, '192.0.2.1'));
    assert.deepEqual(drain(), []);
    await events.configure(EVERYTHING);
    send(udp(A, '192.0.2.1'));
    const [event] = drain();
    assert.deepEqual([event!.reason, event!.identity], [Reason.TO_STACK, IDENTITY]);
  });

  it('show about one in so many', async () => {
    await events.configure({ ...EVERYTHING, forwardedEvery: 10 });
    for (let i = 0; i < 5_000; i++) send(udp(A, '192.0.2.1'));
    const seen = drain();
    assert.ok(seen.length > 350 && seen.length < 650, `${seen.length} of 5000`);
    assert.ok(seen.every((event) => event.every === 10));
  });

  it('keep to their rate in a flood, and count what they did not show', async () => {
    await events.configure({ ...EVERYTHING, perSecond: 1, burst: 100 });
    const before = events.stats();
    for (let i = 0; i < 2_000; i++) send(udp('10.9.9.9', A));
    const seen = drain().length;
    const after = events.stats();
    // Each CPU has its own allowance, and a second or two may pass.
    assert.ok(seen >= 100 && seen <= 2 * 130, `${seen} shown`);
    assert.equal(after.sent - before.sent, seen);
    assert.equal(after.lost - before.lost, 2_000 - seen);
  });

  it('are counted when nobody makes room for them', async () => {
    await events.configure(EVERYTHING);
    const before = events.stats();
    for (let i = 0; i < 8_000; i++) send(udp('10.9.9.9', A)); // the ring holds about 5000
    const after = events.stats();
    assert.ok(after.lost > before.lost);
    assert.equal(after.sent - before.sent + (after.lost - before.lost), 8_000);
    assert.equal(drain().length, after.sent - before.sent);
  });

  it('are read in portions, none twice', async () => {
    await events.configure(EVERYTHING);
    for (let i = 0; i < 25; i++) send(udp('10.9.9.9', A, String(i)));
    assert.deepEqual([drain(10).length, drain(10).length, drain(10).length, drain(10).length], [10, 10, 5, 0]);
  });

  it('come through a visitor that fails: its error is thrown, the next reading goes on', async () => {
    await events.configure(EVERYTHING);
    for (let i = 0; i < 3; i++) send(udp('10.9.9.9', A));
    const failing = () => events.read(() => assert.fail('no more'), 10);
    assert.throws(failing, /no more/);
    assert.equal(drain().length, 2);
  });
});
