/** Counters and flows for people to look at: plain JSON values. */
import { CmCtKind, CmCtState, CmDirection, CmReason, cmCount, maps as layouts, type MapName } from '@clustermesh/bpf';
import { isIpv4, MeshError } from '@clustermesh/contract';
import type { BpfMap } from './bpf-map.ts';
import * as libbpf from './libbpf.ts';
import { isPinned, type TypedMaps } from './loader.ts';
import { classOf, namesOf } from './names.ts';
import { fromProtocol, NO_ADDRESS } from './rows.ts';
import type { MapUsage } from './types.ts';

const reasons = namesOf(CmReason);
const directions = namesOf(CmDirection);
const states = namesOf(CmCtState);
const kinds = namesOf(CmCtKind);

export interface Counter {
  reason: string;
  number: number;
  class: string;
  direction: string;
  packets: number;
  bytes: number;
}

/** Sums over CPUs; reasons that never happened are left out. */
export function dumpDrops(maps: TypedMaps): Counter[] {
  const counters: Counter[] = [];
  const perCpu = Buffer.alloc(cmCount.size * libbpf.possibleCpus());
  const key = Buffer.alloc(4);
  for (const [number, reason] of reasons) {
    for (const [index, direction] of directions) {
      key.writeUInt32LE(number * CmDirection.MAX + index);
      const rc = libbpf.mapLookup(maps.cm_drops.fd, key, perCpu);
      if (rc < 0) throw libbpf.kernelError('reading from cm_drops', rc);
      let [packets, bytes] = [0, 0];
      for (let at = 0; at < perCpu.length; at += cmCount.size) {
        const part = cmCount.decode(perCpu, at);
        packets += Number(part.packets);
        bytes += Number(part.bytes);
      }
      if (packets > 0) counters.push({ reason, number, class: classOf(number), direction, packets, bytes });
    }
  }
  return counters;
}

const endOf = (ip: string, port: number): string => (isIpv4(ip) ? `${ip}:${port}` : `[${ip}]:${port}`);

export async function dumpCt(maps: TypedMaps): Promise<object[]> {
  const nowNs = process.hrtime.bigint(); // CLOCK_MONOTONIC, as bpf_ktime_get_ns()
  return (await maps.cm_ct.entries()).map(([key, e]) => ({
    kind: kinds.get(key.kind) ?? String(key.kind),
    protocol: fromProtocol(key.proto),
    source: endOf(key.saddr, key.sport),
    destination: endOf(key.daddr, key.dport),
    state: states.get(e.state) ?? String(e.state),
    sourceIdentity: e.sourceIdentity,
    serviceId: e.serviceId,
    backendId: e.backendId,
    translated: e.natAddr === NO_ADDRESS ? null : endOf(e.natAddr, e.natPort),
    txPackets: Number(e.txPackets),
    txBytes: Number(e.txBytes),
    rxPackets: Number(e.rxPackets),
    rxBytes: Number(e.rxBytes),
    idleMs: Number(nowNs - e.lastSeenNs) / 1e6,
  }));
}

/** Flows of other hosts with services; `becomes`: what the packet is on the other side of this node. */
export async function dumpNat(maps: TypedMaps): Promise<object[]> {
  const nowNs = process.hrtime.bigint();
  return (await maps.cm_nat.entries()).map(([key, e]) => ({
    direction: e.isReply === 1 ? 'reply' : 'forward',
    protocol: fromProtocol(key.proto),
    source: endOf(key.saddr, key.sport),
    destination: endOf(key.daddr, key.dport),
    becomes: { source: endOf(e.saddr, e.sport), destination: endOf(e.daddr, e.dport) },
    state: states.get(e.state) ?? String(e.state),
    dsr: e.isDsr === 1,
    serviceId: e.serviceId,
    backendId: e.backendId,
    idleMs: Number(nowNs - e.lastSeenNs) / 1e6,
  }));
}

/** Arrays always hold all of their rows, and what is per CPU has one value for each. */
const MAP_TYPE = { hash: 1, array: 2, percpuArray: 6, lruHash: 9, lpmTrie: 11 } as const;
const COUNTED: ReadonlySet<number> = new Set([MAP_TYPE.hash, MAP_TYPE.lruHash, MAP_TYPE.lpmTrie]);
const READABLE: ReadonlySet<number> = new Set([...COUNTED, MAP_TYPE.array]);

const namesIn = (maps: TypedMaps, types: ReadonlySet<number>): MapName[] =>
  (Object.keys(maps) as MapName[]).filter((name) => isPinned(name) && types.has(layouts[name].type)).sort();

export async function usageOf(maps: TypedMaps): Promise<MapUsage[]> {
  const usage: MapUsage[] = [];
  for (const name of namesIn(maps, COUNTED)) {
    const { maxEntries } = maps[name];
    usage.push({ name, rows: await maps[name].count(), maxEntries });
  }
  return usage;
}

export async function dumpRaw(maps: TypedMaps, wanted: string): Promise<object[]> {
  const names = namesIn(maps, READABLE);
  const name = names.find((known) => known === wanted);
  if (name === undefined) {
    throw new MeshError({
      code: 'not-found',
      message: `reading the map ${JSON.stringify(wanted)}: there is none of that name with rows to show`,
      hint: `Maps are ${names.join(', ')}.`,
    });
  }
  const map = maps[name] as unknown as BpfMap<unknown, unknown>;
  return (await map.entries()).map(([key, value]) => ({ key: plain(key), value: plain(value) }));
}

/** As JSON can say it: large numbers as numbers, bytes as hexadecimal text. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, plain(inner)]));
}
