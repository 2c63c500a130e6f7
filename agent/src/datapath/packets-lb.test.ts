/** Which backend a packet's flow is given: the bodies under BPF_PROG_TEST_RUN, in the picture of testing/packet-lab.ts. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmReason as Reason } from '@clustermesh/bpf';
import { build, quoteOf, read } from './testing/frames.ts';
import {
  A,
  assertFrame,
  assertOutcome,
  B,
  C,
  GATEWAY,
  GATEWAY6,
  type LabPod,
  OK,
  openPacketLab,
  type PacketLab,
  REDIRECT,
  tcp,
  udp,
} from './testing/packet-lab.ts';
import { SERVICE_FLAG, type ServiceRow, serviceKey } from './types.ts';

let lab: PacketLab;
before(async () => {
  lab = await openPacketLab();
});
beforeEach(() => lab.reset());
after(() => lab?.close());

/** A service of `n` backends behind the tunnel, gone again after the body. */
async function withService(n: number, body: (row: ServiceRow) => Promise<void>): Promise<void> {
  const row: ServiceRow = {
    frontend: { ip: '10.96.0.88', port: 80, protocol: 'TCP' },
    backends: Array.from({ length: n }, (_, i) => ({ ip: `10.3.9.${i + 1}`, port: 8080, clusterId: 2 })),
    flags: 0,
  };
  try {
    await body(row);
  } finally {
    await lab.services.remove([serviceKey(row.frontend)]);
  }
}

/** Where the first packets of `n` connections go. */
const reached = (n: number, pod: LabPod = A): string[] =>
  Array.from({ length: n }, (_, i) => read(lab.fromPod(tcp(pod.ip, 5000 + i, '10.96.0.88', 80), pod).out).daddr);

describe('per-packet load balancing', () => {
  it('with affinity, sends all flows of one client to one backend', () =>
    withService(8, async (row) => {
      await lab.services.update([row]);
      assert.ok(new Set(reached(40)).size > 4);
      await lab.reset();
      await lab.services.update([{ ...row, affinitySeconds: 60 }]);
      for (const pod of [A, B]) assert.equal(new Set(reached(40, pod)).size, 1);
      const clients = (await lab.loaded.maps.cm_affinity.entries()).map(([{ client }]) => client);
      assert.deepEqual(clients.sort(), [A.ip, B.ip]);
    }));

  it('by a Maglev table, sends a flow to the same backend on every node, whatever came before', () =>
    withService(5, async (row) => {
      const anew = async (): Promise<string[]> => {
        await lab.services.remove([serviceKey(row.frontend)]);
        await lab.reset();
        await lab.services.update([{ ...row, flags: SERVICE_FLAG.maglev }]);
        return reached(200);
      };
      const first = await anew();
      assert.equal(new Set(first).size, 5);
      assert.deepEqual(await anew(), first);
    }));

  it('gives SCTP a backend, and the reply the service, with every other byte as it was', async () => {
    const frontend = { ip: '10.96.0.90', port: 99, protocol: 'SCTP' } as const;
    const backend = { ip: C.ip, port: 99, clusterId: 2 };
    try {
      await lab.services.update([{ frontend, backends: [backend], flags: 0 }]);
      const sctp = (saddr: string, sport: number, daddr: string, dport: number) => ({
        saddr,
        daddr,
        sctp: { sport, dport },
      });
      const sent = lab.fromPod(sctp(A.ip, 4000, frontend.ip, 99));
      assertOutcome(sent, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      assertFrame(sent.out, { daddr: C.ip });
      assert.deepEqual(sent.out.subarray(34), build(sctp(A.ip, 4000, C.ip, 99)).subarray(34));
      assertFrame(lab.overlay(sctp(C.ip, 99, A.ip, 4000)).out, { saddr: frontend.ip });
      assertFrame(lab.fromPod(sctp(B.ip, 4000, frontend.ip, 99), B).out, { daddr: C.ip });
    } finally {
      await lab.services.remove([serviceKey(frontend)]);
    }
  });

  it('finds the new slots when the row that was read names slots that are gone by now', async () => {
    const { cm_services, cm_slots } = lab.loaded.maps;
    const [key, row] = (await cm_services.entries()).find(([{ addr }]) => addr === '10.96.0.20')!;
    const { id: serviceId, generation: now } = row;
    const [backend] = cm_slots.lookup({ serviceId, generation: now, block: 0 })!.backend;
    const packet = build(tcp(A.ip, 4000, key.addr, key.port));
    for (const generation of [now, now + 1000]) {
      const { decision } = lab.run('cm_test_stale_row', packet, { vni: generation, ifindex: A.ifindex });
      assert.deepEqual(
        [decision.reason, decision.backendId],
        [Reason.TO_ENDPOINT, backend],
        `generation ${generation}`,
      );
    }
  });
});

describe('a service that leads a pod to itself', () => {
  for (const { family, pod, ip, gateway } of [
    { family: 'IPv4', pod: A.ip, ip: '10.96.0.10', gateway: GATEWAY },
    { family: 'IPv6', pod: A.ip6, ip: 'fd96::10', gateway: GATEWAY6 },
  ]) {
    const lead = (protocol: 'TCP' | 'UDP', port: number) =>
      lab.services.update([
        { frontend: { ip, port, protocol }, backends: [{ ip: pod, port: 8080, clusterId: 1 }], flags: 0 },
      ]);

    it(`${family}: gets its packets from the gateway, and the answers from the service`, async () => {
      await lead('TCP', 80);
      const there = lab.fromPod(tcp(pod, 4000, ip, 80));
      assertOutcome(there, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assert.equal(there.decision.target, A.ifindex);
      assertFrame(there.out, { saddr: gateway, daddr: pod, dstMac: A.mac });
      const { sport, dport } = read(there.out).tcp!;
      assert.equal(dport, 8080);
      const again = lab.fromPod(tcp(pod, 4000, ip, 80, 'A'));
      assert.equal(read(again.out).tcp!.sport, sport);
      const back = lab.fromPod(tcp(pod, 8080, gateway, sport, 'SA'));
      assertOutcome(back, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assertFrame(back.out, { saddr: ip, daddr: pod, dstMac: A.mac });
      assert.deepEqual([read(back.out).tcp!.sport, read(back.out).tcp!.dport], [80, 4000]);
    });

    it(`${family}: learns from the service that nobody listens`, async () => {
      await lead('UDP', 53);
      const { sport } = read(lab.fromPod(udp(pod, 4000, ip, 53)).out).udp!;
      const [type, code] = family === 'IPv4' ? [3, 3] : [1, 4];
      const quote = quoteOf(udp(gateway, sport, pod, 8080));
      const back = lab.fromPod({ saddr: pod, daddr: gateway, icmp: { type, code, quote, rest: 0 } });
      assertOutcome(back, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assertFrame(back.out, { saddr: ip, daddr: pod });
      const about = read(back.out).icmp!.quote!;
      assert.deepEqual([about.saddr, about.sport, about.daddr, about.dport], [pod, 4000, ip, 53]);
    });
  }

  it('is no reason to turn what the pod sends the node itself', () => {
    assertOutcome(lab.fromPod(tcp(A.ip, 8080, GATEWAY, 4000, 'SA')), OK, 'STACK', 'TO_STACK');
  });
});

describe('a backend that is withdrawn', () => {
  const OTHER = '10.3.9.200';
  const ack = (sport: number) => tcp(A.ip, sport, '10.96.0.88', 80, 'A');
  const syn = (sport: number) => tcp(A.ip, sport, '10.96.0.88', 80);

  it('has its TCP connections reset at once; new ones go where the service is now', () =>
    withService(1, async (row) => {
      await lab.services.update([row]);
      lab.fromPod(syn(4000));
      assertOutcome(lab.fromPod(ack(4000)), REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      await lab.services.update([{ ...row, backends: [{ ip: OTHER, port: 8080, clusterId: 2 }] }]);
      const reset = lab.fromPod(ack(4000));
      assertOutcome(reset, REDIRECT, 'ENDPOINT', 'BACKEND_GONE');
      const { flags, seq } = read(reset.out).tcp!;
      assert.deepEqual([flags, seq], ['R', 5000]);
      assertFrame(reset.out, { saddr: '10.96.0.88', daddr: A.ip });
      assertFrame(lab.fromPod(syn(4000)).out, { daddr: OTHER });
    }));

  it('is reset also when it was the last one, and new connections are refused', () =>
    withService(1, async (row) => {
      await lab.services.update([row]);
      lab.fromPod(syn(4000));
      await lab.services.update([{ ...row, backends: [] }]);
      assertOutcome(lab.fromPod(ack(4000)), REDIRECT, 'ENDPOINT', 'BACKEND_GONE');
      assertOutcome(lab.fromPod(syn(4001)), REDIRECT, 'ENDPOINT', 'NO_BACKEND');
    }));

  it('and only drains keeps its TCP connections, and gets no new ones, even as the last one', () =>
    withService(1, async (row) => {
      const [backend] = row.backends;
      await lab.services.update([row]);
      lab.fromPod(syn(4000));
      for (const backends of [[{ ip: OTHER, port: 8080, clusterId: 2 }], []]) {
        await lab.services.update([{ ...row, backends, draining: row.backends }]);
        assertFrame(lab.fromPod(ack(4000)).out, { daddr: backend!.ip });
        const next = lab.fromPod(syn(4001 + backends.length));
        if (backends.length > 0) assertFrame(next.out, { daddr: OTHER });
        else assertOutcome(next, REDIRECT, 'ENDPOINT', 'NO_BACKEND');
      }
    }));

  it('loses its UDP flows to the others, also when it only drains', async () => {
    const frontend = { ip: '10.96.0.91', port: 53, protocol: 'UDP' } as const;
    const [first, second] = ['10.3.9.1', OTHER].map((ip) => ({ ip, port: 53, clusterId: 2 }));
    const ask = () => lab.fromPod(udp(A.ip, 4000, frontend.ip, 53)).out;
    try {
      await lab.services.update([{ frontend, backends: [first!], flags: 0 }]);
      assertFrame(ask(), { daddr: first!.ip });
      await lab.services.update([{ frontend, backends: [second!], draining: [first!], flags: 0 }]);
      assertFrame(ask(), { daddr: second!.ip });
      await lab.services.update([{ frontend, backends: [first!], flags: 0 }]);
      assertFrame(ask(), { daddr: first!.ip });
    } finally {
      await lab.services.remove([serviceKey(frontend)]);
    }
  });
});
