/** Counters and flows for people to look at: plain JSON values. */
import { CmCtKind, CmCtState, CmDirection, CmReason, cmCount } from '@clustermesh/bpf';
import { isIpv4 } from '@clustermesh/contract';
import * as libbpf from './libbpf.ts';
import type { TypedMaps } from './loader.ts';
import { fromProtocol, NO_ADDRESS } from './rows.ts';

/** CmReason.TO_STACK reads as 'to-stack'. */
function namesOf(constants: Record<string, number>): Map<number, string> {
  const named = Object.entries(constants).filter(([name]) => name !== 'MAX');
  return new Map(named.map(([name, value]) => [value, name.toLowerCase().replaceAll('_', '-')]));
}

const reasons = namesOf(CmReason);
const directions = namesOf(CmDirection);
const states = namesOf(CmCtState);
const kinds = namesOf(CmCtKind);

/** Ranges of bpf/lib/reasons.h. */
function classOf(reason: number): string {
  if (reason < 32) return 'forwarded';
  if (reason < 64) return 'noted';
  return reason < 128 ? 'answered' : 'dropped';
}

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
