/** From kernel events to what somebody sees: description, filters, and the way through the monitor. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { CmAction, CmDirection, type CmEvent, CmReason } from '@clustermesh/bpf';
import { silentLog, systemClock } from '@clustermesh/runtime';
import type { EventRates, EventSource } from '../datapath/events.ts';
import { build, type Frame, quoteOf } from '../datapath/testing/frames.ts';
import { compileFilter, type FlowFilter } from './filter.ts';
import { describeEvent, type FlowEvent, type FlowLookups } from './flow-event.ts';
import { startFlowMonitor } from './monitor.ts';

const lookups: FlowLookups = {
  identityOf: (ip) => ({ '10.2.1.7': 131_079 })[ip],
  interfaceName: (ifindex) => (ifindex === 21 ? 'cmp-a' : undefined),
  serviceName: (id) => (id === 3 ? '10.96.0.10:80/TCP' : undefined),
  wallMs: (ns) => Number(ns) / 1e6,
};

function event(frame: Frame | undefined, given: Partial<CmEvent> = {}): CmEvent {
  const bytes = frame === undefined ? Buffer.alloc(0) : build(frame);
  const head = new Uint8Array(128);
  head.set(bytes.subarray(0, 128));
  return {
    timeNs: 1_000_000n,
    reason: CmReason.SPOOFED_SOURCE,
    direction: CmDirection.FROM_POD,
    action: CmAction.DROP,
    ifindex: 21,
    target: 0,
    identity: 0,
    serviceId: 0,
    backendId: 0,
    every: 1,
    bytes: bytes.length,
    addr: '::',
    port: 0,
    proto: 0,
    headLen: Math.min(128, bytes.length),
    head,
    ...given,
  };
}
const request: Frame = { saddr: '10.1.1.5', daddr: '10.2.1.7', tcp: { sport: 4000, dport: 80, flags: 'S' } };
const described = (frame: Frame | undefined, given?: Partial<CmEvent>) => describeEvent(event(frame, given), lookups);

describe('a flow event', () => {
  it('says what happened to whom, where', () => {
    assert.deepEqual(described(request), {
      time: '1970-01-01T00:00:00.001Z',
      verdict: 'dropped',
      reason: 'spoofed-source',
      direction: 'from-pod',
      bytes: 54,
      every: 1,
      source: { ip: '10.1.1.5', port: 4000 },
      destination: { ip: '10.2.1.7', port: 80, identity: 131_079 },
      protocol: 'TCP',
      tcpFlags: 'S',
      interface: 'cmp-a',
      to: 'drop',
    });
  });

  it('names the service, and the identity that the program believed', () => {
    const { service, source } = described(request, { serviceId: 3, identity: 65_541, reason: CmReason.TO_TUNNEL });
    assert.deepEqual([service, source?.identity], ['10.96.0.10:80/TCP', 65_541]);
  });

  it('of an answer names the packet that was answered', () => {
    const rst: Frame = { saddr: '10.96.0.30', daddr: '10.1.1.5', tcp: { sport: 80, dport: 4000, flags: 'RA' } };
    const reset = described(rst, { reason: CmReason.NO_BACKEND });
    assert.deepEqual(
      [reset.verdict, reset.source, reset.destination, reset.tcpFlags],
      ['answered', { ip: '10.1.1.5', port: 4000 }, { ip: '10.96.0.30', port: 80 }, undefined],
    );
    const quote = quoteOf({ saddr: '10.1.1.5', daddr: '10.1.1.99', udp: { sport: 7, dport: 53 } });
    const unreachable = described(
      { saddr: '10.1.1.1', daddr: '10.1.1.5', icmp: { type: 3, code: 1, quote } },
      { reason: CmReason.NO_ENDPOINT },
    );
    assert.deepEqual([unreachable.destination, unreachable.protocol], [{ ip: '10.1.1.99', port: 53 }, 'UDP']);
  });

  it('of a socket names whom it asked for', () => {
    const refused = described(undefined, {
      reason: CmReason.NO_BACKEND,
      direction: CmDirection.SOCK,
      addr: '10.96.0.30',
      port: 80,
      proto: 6,
      ifindex: 0,
    });
    assert.deepEqual(
      [refused.destination, refused.service, refused.direction],
      [{ ip: '10.96.0.30', port: 80 }, '10.96.0.30:80/TCP', 'sock'],
    );
  });

  it('of what is not IP names the ethertype', () => {
    const lldp = event(request);
    lldp.head.set([0x88, 0xcc], 12);
    const { ethertype, source } = describeEvent(lldp, lookups);
    assert.deepEqual([ethertype, source], ['0x88cc', undefined]);
  });
});

describe('a filter', () => {
  const shown = described(request, { serviceId: 3 });
  const cases: [FlowFilter, boolean][] = [
    [{}, true],
    [{ verdict: ['dropped'] }, true],
    [{ verdict: ['forwarded', 'answered'] }, false],
    [{ reason: ['vlan', 'spoofed-source'] }, true],
    [{ reason: ['vlan'] }, false],
    [{ identity: [131_079] }, true],
    [{ identity: [1] }, false],
    [{ address: ['10.1.1.5'] }, true],
    [{ address: ['10.2.0.0/16'] }, true],
    [{ address: ['10.1.1.4/31'] }, true],
    [{ address: ['10.1.1.6/31', 'fd00::/8'] }, false],
    [{ address: ['::/0'] }, true],
    [{ port: [80] }, true],
    [{ port: [81] }, false],
    [{ service: ['10.96.0.10'] }, true],
    [{ service: ['10.96.0.11'] }, false],
    [{ port: [80], address: ['10.9.9.9'] }, false],
  ];
  for (const [filter, expected] of cases) {
    it(`${JSON.stringify(filter)} ${expected ? 'takes' : 'leaves out'} it`, () => {
      assert.equal(compileFilter(filter)(shown), expected);
    });
  }

  it('that can match nothing is refused', () => {
    assert.throws(() => compileFilter({ verdict: ['lost'] }), /known are forwarded, answered, dropped/);
    assert.throws(() => compileFilter({ reason: ['no-such'] }), /by reason "no-such"/);
    for (const address of ['10.1.1', '10.1.1.0/33', '10.1.1.0/', 'fd00::/129', '10.0.0.0/8/8', '10.0.0.0/-1'])
      assert.throws(() => compileFilter({ address: [address] }), /by address/, address);
  });
});

describe('the monitor', () => {
  async function open() {
    const stop = new AbortController();
    const queue: CmEvent[] = [];
    const configured: EventRates[] = [];
    const source: EventSource = {
      configure: async (rates) => void configured.push(rates),
      read(visit, limit) {
        const portion = queue.splice(0, limit);
        portion.forEach(visit);
        return portion.length;
      },
      stats: () => ({ sent: 0, lost: 0 }),
      close: () => undefined,
    };
    const rates = { perSecond: 10, burst: 10 };
    const monitor = await startFlowMonitor({
      source,
      lookups,
      rates,
      clock: systemClock,
      log: silentLog(),
      signal: stop.signal,
    });
    const close = async () => {
      stop.abort();
      await monitor.ended;
    };
    return { monitor, queue, configured, close, [Symbol.asyncDispose]: close };
  }
  const everything = { filter: {}, last: 0, sampleEvery: 0, follow: true };
  const portOf = (seen: FlowEvent | { lost: number }) => ('lost' in seen ? undefined : seen.destination?.port);
  const to = (dport: number): CmEvent => event({ ...request, tcp: { sport: 1, dport, flags: 'S' } });

  it('gives each watcher what it asked for', async () => {
    await using opened = await open();
    const stop = new AbortController();
    const collect = async (filter: FlowFilter, n: number) => {
      const seen: (number | undefined)[] = [];
      for await (const one of opened.monitor.watch({ ...everything, filter }, stop.signal)) {
        if (seen.push(portOf(one)) === n) break;
      }
      return seen;
    };
    const both = Promise.all([collect({}, 3), collect({ port: [2] }, 1)]);
    opened.queue.push(to(1), to(2), to(3));
    assert.deepEqual(await both, [[1, 2, 3], [2]]);
  });

  it('remembers the last refused packets for whoever asks later', async () => {
    await using opened = await open();
    opened.queue.push(to(1), to(2), to(3));
    const seen: (number | undefined)[] = [];
    const request = { ...everything, last: 2, follow: false };
    for await (const one of opened.monitor.watch(request, new AbortController().signal)) seen.push(portOf(one));
    assert.deepEqual(seen, [2, 3]);
  });

  it('has forwarded packets sampled only while somebody wants them, at the smallest rate asked for', async () => {
    await using opened = await open();
    const stop = new AbortController();
    const watch = (sampleEvery: number) =>
      opened.monitor
        .watch({ ...everything, sampleEvery }, stop.signal)
        [Symbol.asyncIterator]()
        .next();
    const [first, second] = [watch(100), watch(10)];
    stop.abort();
    await Promise.all([first, second]);
    const sampled = opened.configured.map(({ forwardedEvery }) => forwardedEvery);
    assert.deepEqual([sampled[0], Math.min(...sampled.filter((every) => every > 0)), sampled.at(-1)], [0, 10, 0]);
    assert.ok(opened.configured.every(({ refusedEvery, perSecond }) => refusedEvery === 1 && perSecond === 10));
  });

  it('tells a slow watcher how much it missed', async () => {
    await using opened = await open();
    const stop = new AbortController();
    const watching = opened.monitor.watch(everything, stop.signal)[Symbol.asyncIterator]();
    const first = watching.next();
    opened.queue.push(to(1));
    await first;
    opened.queue.push(...Array.from({ length: 12_000 }, () => to(2)));
    while (opened.queue.length > 0) await systemClock.sleep(5);
    let [events, lost] = [0, 0];
    while (lost === 0) {
      const { value } = await watching.next();
      if ('lost' in value) lost = value.lost;
      else events++;
    }
    assert.deepEqual([events, lost], [10_000, 2_000]);
  });
});
