/**
 * More flows than there are rows for. Tables of flows recycle the longest unused row, so nothing is refused: shown here is what becomes of
 * the flow that had it. In the picture of testing/packet-lab.ts.
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import type { CmNatEntry, CmNatKey } from '@clustermesh/bpf';
import { silentLog, systemClock, waitFor } from '@clustermesh/runtime';
import { Registry } from 'prom-client';
import { startMapPressure } from '../status/map-pressure.ts';
import { usageOf } from './dump.ts';
import { read } from './testing/frames.ts';
import {
  A,
  assertFrame,
  assertOutcome,
  B,
  C,
  GATEWAY,
  NODE,
  OK,
  openPacketLab,
  type PacketLab,
  REDIRECT,
  tcp,
  udp,
} from './testing/packet-lab.ts';
import type { Protocol, ServiceRow } from './types.ts';

const ROWS = 1024;
const CLIENT = '198.51.100.7';
/** Several backends, told apart by their ports. */
const MANY = { outside: '192.0.2.9', inside: '10.96.0.90' };

let lab: PacketLab;

const many = (ip: string, protocol: Protocol, scope: object): ServiceRow => ({
  frontend: { ip, port: 80, protocol, ...scope },
  backends: Array.from({ length: 7 }, (_, i) => ({ ip: C.ip, port: 9000 + i, clusterId: 2 })),
  flags: 0,
});

before(async () => {
  lab = await openPacketLab({ mapSizes: { cm_nat: ROWS, cm_ct: ROWS } });
});
beforeEach(async () => {
  await lab.reset();
  await lab.services.update([
    many(MANY.outside, 'TCP', { scope: 'outside' }),
    many(MANY.outside, 'UDP', { scope: 'outside' }),
    many(MANY.inside, 'TCP', {}),
  ]);
});
after(() => lab?.close());

const usage = async (): Promise<Record<string, number>> =>
  Object.fromEntries((await usageOf(lab.loaded.maps)).map(({ name, rows }) => [name, rows]));

async function othersThan(...flows: string[]): Promise<Record<string, number>> {
  return Object.fromEntries(Object.entries(await usage()).filter(([name]) => !flows.includes(name)));
}

async function pressureMetric(map: string): Promise<number> {
  const registry = new Registry();
  const stop = new AbortController();
  const { ended } = startMapPressure({
    ...{ registry, usage: () => usageOf(lab.loaded.maps), clock: systemClock, log: silentLog() },
    signal: stop.signal,
  });
  const line = new RegExp(`^cilium_bpf_map_pressure\\{map_name="${map}"\\} (.*)$`, 'm');
  const found = await waitFor(async () => line.exec(await registry.metrics()) ?? undefined, {
    what: 'the count',
    timeoutMs: 60_000,
  });
  stop.abort();
  await ended;
  return Number(found[1]);
}

const source = (n: number): string => `203.0.${113 + (n >> 8)}.${n & 255}`;

/** New flows of other hosts, three times as many as there are rows; after each, `meanwhile`. */
function storm(frontend: string, meanwhile: (n: number) => void = () => undefined): void {
  for (let n = 0; n < 1.5 * ROWS; n++) {
    const there = lab.fromNetwork(tcp(source(n), 5000, frontend, 80));
    assert.equal(there.verdict, REDIRECT, `flow ${n}`);
    const { saddr, tcp: ports } = read(there.out);
    if (frontend === NODE) {
      assertFrame(lab.toNetwork(tcp(B.ip, 8080, saddr, ports!.sport, 'SA')).out, { saddr: NODE, daddr: source(n) });
    } else {
      const back = lab.overlay(tcp(C.ip, ports!.dport, saddr, ports!.sport, 'SA'));
      assertFrame(back.out, { saddr: frontend, daddr: source(n) });
    }
    meanwhile(n);
  }
}

const natRows = async (client: string): Promise<[CmNatKey, CmNatEntry][]> =>
  (await lab.loaded.maps.cm_nat.entries()).filter(([key, value]) => key.saddr === client || value.daddr === client);

describe('F26: more flows from outside than cm_nat has rows for', () => {
  it('each new one is served and answered; the metric says how full it is, and no other map is touched', async () => {
    const before = await othersThan('cm_nat', 'cm_ct');
    storm(MANY.outside);
    const { cm_nat: rows = 0 } = await usage();
    assert.ok(rows > ROWS / 2 && rows <= ROWS, `${rows} rows`);
    assert.equal(await pressureMetric('cm_nat'), rows / ROWS);
    assert.deepEqual(await othersThan('cm_nat', 'cm_ct'), before);
    assert.equal(lab.counted('nat-exhausted', 'from-network'), 0);
    assert.equal(lab.counted('write-failed', 'from-network'), 0);
  });

  it('one that is in use keeps its rows all the while', async () => {
    const ask = () => read(lab.fromNetwork(tcp(CLIENT, 4000, MANY.outside, 80, 'A')).out).tcp!;
    const first = read(lab.fromNetwork(tcp(CLIENT, 4000, MANY.outside, 80)).out).tcp!;
    storm(MANY.outside, (n) => {
      if (n % 20 > 0) return;
      const { sport, dport } = ask();
      assert.deepEqual([sport, dport], [first.sport, first.dport], `after ${n} others`);
      const back = lab.overlay(tcp(C.ip, dport, GATEWAY, sport, 'A'));
      assertFrame(back.out, { saddr: MANY.outside, daddr: CLIENT });
    });
    assert.equal((await natRows(CLIENT)).length, 2);
  });

  for (const [where, frontend, action, reason] of [
    ['this node', NODE, 'ENDPOINT', 'TO_ENDPOINT'],
    ['another node', MANY.outside, 'TUNNEL', 'TO_TUNNEL'],
  ] as const) {
    it(`an idle one loses its rows, and goes on at its backend of ${where} with its client's next packet`, async () => {
      const before = read(lab.fromNetwork(tcp(CLIENT, 4000, frontend, 80)).out);
      storm(frontend);
      assert.deepEqual(await natRows(CLIENT), []);
      const again = lab.fromNetwork(tcp(CLIENT, 4000, frontend, 80, 'A'));
      assertOutcome(again, REDIRECT, action, reason);
      const { saddr, daddr, tcp: ports } = read(again.out);
      assert.deepEqual([saddr, daddr, ports!.dport], [before.saddr, before.daddr, before.tcp!.dport]);
      // The same port too, unless another flow has it since.
      assert.equal(ports!.sport, before.tcp!.sport);
      assert.equal((await natRows(CLIENT)).length, 2);
    });
  }

  it('what answers one that lost its rows is not taken for anybody else’s', async () => {
    const { sport, dport } = read(lab.fromNetwork(tcp(CLIENT, 4000, MANY.outside, 80)).out).tcp!;
    storm(MANY.outside);
    assertOutcome(lab.overlay(tcp(C.ip, dport, GATEWAY, sport, 'A')), OK, 'STACK', 'TO_STACK');
  });

  for (const [protocol, packet] of [
    ['TCP', (frontend: string) => tcp(CLIENT, 4000, frontend, 80, 'A')],
    ['UDP', (frontend: string) => udp(CLIENT, 4000, frontend, 80)],
  ] as const) {
    it(`${protocol}: one that lost the row of its answers only gets it again while its client goes on sending`, async () => {
      const { maps } = lab.loaded;
      const first = protocol === 'TCP' ? tcp(CLIENT, 4000, MANY.outside, 80) : packet(MANY.outside);
      const before = read(lab.fromNetwork(first).out);
      const [forward, reply] = (await natRows(CLIENT)).sort(([, a], [, b]) => a.isReply - b.isReply);
      await maps.cm_nat.remove([reply![0]]);
      // As if two seconds had passed since.
      await maps.cm_nat.update([
        [forward![0], { ...forward![1], lastSeenNs: forward![1].lastSeenNs - 2_000_000_000n }],
      ]);
      const there = read(lab.fromNetwork(packet(MANY.outside)).out);
      const portsOf = (frame: typeof there) => frame.tcp ?? frame.udp!;
      assert.deepEqual([portsOf(there).sport, portsOf(there).dport], [portsOf(before).sport, portsOf(before).dport]);
      const { sport, dport } = portsOf(there);
      const answer = protocol === 'TCP' ? tcp(C.ip, dport, GATEWAY, sport, 'A') : udp(C.ip, dport, GATEWAY, sport);
      assertFrame(lab.overlay(answer).out, { saddr: MANY.outside, daddr: CLIENT });
    });
  }
});

describe('F26: more flows of pods than cm_ct has rows for', () => {
  /** Flows of pod a through a service, each with its answer. */
  function podStorm(meanwhile: (n: number) => void = () => undefined): void {
    for (let n = 0; n < 1.5 * ROWS; n++) {
      const there = lab.fromPod(tcp(A.ip, 10_000 + n, MANY.inside, 80));
      assertOutcome(there, REDIRECT, 'TUNNEL', 'TO_TUNNEL');
      const back = lab.overlay(tcp(C.ip, read(there.out).tcp!.dport, A.ip, 10_000 + n, 'SA'));
      assertOutcome(back, REDIRECT, 'ENDPOINT', 'TO_ENDPOINT');
      assertFrame(back.out, { saddr: MANY.inside, daddr: A.ip });
      meanwhile(n);
    }
  }
  const rowsOf = async (port: number): Promise<number> =>
    (await lab.loaded.maps.cm_ct.entries()).filter(([key]) => key.sport === port).length;
  const backendOf = (flags: string): number =>
    read(lab.fromPod(tcp(A.ip, 4000, MANY.inside, 80, flags)).out).tcp!.dport;

  it('each new one passes and is answered; the metric says how full it is, and no other map is touched', async () => {
    const before = await othersThan('cm_ct');
    podStorm();
    const { cm_ct: rows = 0 } = await usage();
    assert.ok(rows > ROWS / 2 && rows <= ROWS, `${rows} rows`);
    assert.equal(await pressureMetric('cm_ct'), rows / ROWS);
    assert.deepEqual(await othersThan('cm_ct'), before);
  });

  it('one that is in use keeps its rows, an idle one goes on at its backend with its next packet', async () => {
    const backend = backendOf('S');
    podStorm((n) => void (n % 20 === 0 && assert.equal(backendOf('A'), backend)));
    assert.equal(await rowsOf(4000), 2);
    podStorm();
    assert.equal(await rowsOf(4000), 0);
    assert.equal(backendOf('A'), backend);
    const back = lab.overlay(tcp(C.ip, backend, A.ip, 4000, 'A'));
    assertFrame(back.out, { saddr: MANY.inside, daddr: A.ip });
  });
});
