/** What is over goes, what is used stays: on real maps, with rows as the programs write them and a clock of the test's own. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmCtState } from '@clustermesh/bpf';
import { collectGarbage } from './garbage.ts';
import { A, C, LB, openPacketLab, type PacketLab, tcp, udp } from './testing/packet-lab.ts';

let lab: PacketLab;
before(async () => {
  lab = await openPacketLab();
});
beforeEach(() => lab.reset());
after(() => lab?.close());

/** So many seconds from now. */
const collect = (seconds: number) =>
  collectGarbage(lab.loaded.maps, () => process.hrtime.bigint() + BigInt(seconds) * 1_000_000_000n);
const flowsLeft = async () => (await lab.loaded.maps.cm_ct.entries()).map(([key]) => key.dport).sort((a, b) => a - b);

describe('flows', () => {
  it('live as long as their kind does after the last packet', async () => {
    lab.fromPod(udp(A.ip, 4000, C.ip, 53));
    lab.fromPod(tcp(A.ip, 4000, C.ip, 80));
    lab.fromPod(tcp(A.ip, 4000, C.ip, 81));
    lab.overlay(tcp(C.ip, 81, A.ip, 4000, 'SA'));
    lab.fromPod(tcp(A.ip, 4000, C.ip, 82));
    lab.overlay(tcp(C.ip, 82, A.ip, 4000, 'SA'));
    lab.fromPod(tcp(A.ip, 4000, C.ip, 82, 'FA'));
    assert.deepEqual((await collect(50)).flows, { alive: 4, removed: 0 });
    assert.deepEqual((await collect(70)).flows, { alive: 2, removed: 2 });
    assert.deepEqual(await flowsLeft(), [81, 82]);
    await collect(130);
    assert.deepEqual(await flowsLeft(), [81]);
    await collect(7990);
    assert.deepEqual(await flowsLeft(), [81]);
    await collect(8010);
    assert.deepEqual(await flowsLeft(), []);
  });

  it("a service's choice is kept as long as the connection that it was made for", async () => {
    lab.fromPod(tcp(A.ip, 4000, '10.96.0.10', 80));
    lab.overlay(tcp(C.ip, 8080, A.ip, 4000, 'SA'));
    assert.deepEqual((await collect(7000)).flows, { alive: 2, removed: 0 });
    assert.ok((await lab.loaded.maps.cm_ct.entries()).some(([, { state }]) => state === CmCtState.NEW));
    assert.deepEqual((await collect(9000)).flows, { alive: 0, removed: 2 });
  });
});

describe('flows from outside', () => {
  const CLIENT = '198.51.100.7';
  const left = async () => (await lab.loaded.maps.cm_nat.entries()).length;

  it('lose both rows when neither direction was used for as long as their kind may wait', async () => {
    lab.fromNetwork(udp(CLIENT, 4000, LB, 53));
    lab.fromNetwork(tcp(CLIENT, 4000, LB, 80));
    assert.deepEqual((await collect(50)).flows, { alive: 4, removed: 0 });
    assert.deepEqual((await collect(70)).flows, { alive: 2, removed: 2 });
    assert.deepEqual((await collect(7990)).flows, { alive: 2, removed: 0 });
    assert.deepEqual((await collect(8010)).flows, { alive: 0, removed: 2 });
    assert.equal(await left(), 0);
  });

  it('keep both while one direction is used', async () => {
    const { cm_nat } = lab.loaded.maps;
    lab.fromNetwork(udp(CLIENT, 4000, LB, 53));
    const [key, entry] = (await cm_nat.entries()).find(([, row]) => row.isReply === 1)!;
    await cm_nat.update([[key, { ...entry, lastSeenNs: 0n }]]);
    assert.deepEqual((await collect(50)).flows, { alive: 2, removed: 0 });
  });
});

describe('choices of session affinity', () => {
  it("go when the service's time is over, and when it has none any more", async () => {
    const frontend = { ip: '10.96.0.10', port: 80, protocol: 'TCP' } as const;
    const row = { frontend, backends: [{ ip: C.ip, clusterId: 2, port: 8080 }], flags: 0 };
    await lab.services.update([{ ...row, affinitySeconds: 100 }]);
    lab.fromPod(tcp(A.ip, 4000, '10.96.0.10', 80));
    assert.deepEqual((await collect(90)).affinity, { alive: 1, removed: 0 });
    assert.deepEqual((await collect(110)).affinity, { alive: 0, removed: 1 });
    lab.fromPod(tcp(A.ip, 4001, '10.96.0.10', 80));
    await lab.services.update([row]);
    assert.deepEqual((await collect(0)).affinity, { alive: 0, removed: 1 });
  });
});
