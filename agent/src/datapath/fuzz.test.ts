/** A slice of what `npm run fuzz:datapath` does at length. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { describeFinding, fuzz } from './fuzz/run.ts';
import { fuzzSockets } from './fuzz/sockets.ts';
import { describeXdpFinding, fuzzXdp } from './fuzz/xdp.ts';
import { openPacketLab, type PacketLab } from './testing/packet-lab.ts';

async function inLab<T>(
  options: Parameters<typeof openPacketLab>[0],
  body: (lab: PacketLab) => Promise<T>,
): Promise<T> {
  const lab = await openPacketLab(options);
  try {
    return await body(lab);
  } finally {
    await lab.close();
  }
}

for (const isDsr of [false, true]) {
  const where = isDsr ? ' (direct server return)' : '';
  it(`random packets get a verdict in range, and none that must be dropped is forwarded${where}`, async () => {
    const options = { seed: 1, packets: 60_000 };
    const { packets, forwarded, demanded, denied, taken, findings } = await inLab({ isDsr }, (lab) =>
      fuzz(lab, options),
    );
    assert.deepEqual(findings.map(describeFinding), []);
    assert.equal(packets, 60_000);
    // It would find nothing if nothing were forwarded, or nothing had to be dropped.
    assert.ok(forwarded > packets / 10, `${forwarded} forwarded`);
    assert.ok(demanded > packets / 10, `${demanded} had to be dropped`);
    assert.ok(denied > 100, `${denied} were denied by policy`);
    assert.ok(taken > 200, `of ${taken} a service was taken off and they were delivered`);
  });
}

it('what XDP makes of random packets is what tc makes of them, or is left to it unchanged', async () => {
  const options = { seed: 1, packets: 30_000 };
  const { packets, tunnelled, routed, answers, dropped, findings } = await inLab({ routed: true }, (lab) =>
    fuzzXdp(lab, options),
  );
  assert.deepEqual(findings.map(describeXdpFinding), []);
  assert.equal(packets, 30_000);
  // It would find nothing if all were left.
  for (const [what, count] of Object.entries({ tunnelled, routed, answers, dropped }))
    assert.ok(count > packets / 100, `${count} ${what}`);
});

it('sockets that are asked for anything get an answer in range, and their peers are whom they asked for', async () => {
  const { connects, sends, translated, withoutBackend } = await fuzzSockets({ operations: 100_000, seed: 1 });
  assert.ok(connects + sends >= 100_000);
  // It would find nothing if no address were exchanged, or no service refused.
  assert.ok(translated > 1_000, `${translated} exchanged`);
  assert.ok(withoutBackend > 1_000, `${withoutBackend} refused`);
});
