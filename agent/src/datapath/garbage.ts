/**
 * Flows and choices that nobody uses any more: the kernel's LRU maps would keep them until room is wanted, and a flow of yesterday is not
 * to be found when its ports are used again. Programs note when they saw a row last; they keep no timers.
 */
import {
  type CmAffinity,
  type CmCtEntry,
  type CmCtKey,
  CmCtKind,
  CmCtState,
  type CmNatEntry,
  type CmNatKey,
} from '@clustermesh/bpf';
import type { TypedMaps } from './loader.ts';
import type { Collected } from './types.ts';

const SECOND = 1_000_000_000n;
const TCP = 6;
const SCTP = 132;

/**
 * Seconds after its last packet, as Cilium has them (`bpf-ct-timeout-*`); but a connection of which one side has finished may be used by
 * the other for as long as Linux waits (nf_conntrack_tcp_timeout_fin_wait).
 */
const LIFETIME = { connection: 8000n, opening: 60n, closing: 120n, datagram: 60n } as const;

export function lifetimeOf({ proto, kind }: CmCtKey, { state }: CmCtEntry): bigint {
  if (proto !== TCP && proto !== SCTP) return LIFETIME.datagram;
  if (state === CmCtState.CLOSING) return LIFETIME.closing;
  // The memory of a service's choice sees one direction only: it does not learn whether there was an answer.
  return state === CmCtState.NEW && kind === CmCtKind.FLOW ? LIFETIME.opening : LIFETIME.connection;
}

export const isFlowOver = (key: CmCtKey, entry: CmCtEntry, nowNs: bigint): boolean =>
  nowNs - entry.lastSeenNs > lifetimeOf(key, entry) * SECOND;

/** The row of the other direction: what this one leads to, turned round. */
const otherDirection = ({ proto }: CmNatKey, { saddr, daddr, sport, dport }: CmNatEntry): CmNatKey => ({
  saddr: daddr,
  daddr: saddr,
  sport: dport,
  dport: sport,
  proto,
});

function natLifetimeOf({ proto }: CmNatKey, { state, isDsr }: CmNatEntry): bigint {
  if (proto !== TCP && proto !== SCTP) return LIFETIME.datagram;
  if (state === CmCtState.CLOSING) return LIFETIME.closing;
  // Answers do not pass: what the client says after them tells that there were some, and only TCP tells such a packet from the first.
  return isDsr === 1 && proto === TCP && state === CmCtState.NEW ? LIFETIME.opening : LIFETIME.connection;
}

const isNatRowOver = (key: CmNatKey, entry: CmNatEntry, nowNs: bigint): boolean =>
  nowNs - entry.lastSeenNs > natLifetimeOf(key, entry) * SECOND;

/** A flow's two rows go together: one of them may wait for long while the other is used. */
async function collectNat({ cm_nat }: TypedMaps, nowNs: () => bigint): Promise<Collected['flows']> {
  let alive = 0;
  const removed: CmNatKey[] = [];
  await cm_nat.scan((key, entry) => {
    const other = otherDirection(key, entry);
    const found = isNatRowOver(key, entry, nowNs()) ? cm_nat.lookup(other) : entry;
    if (found !== undefined && !isNatRowOver(other, found, nowNs())) alive++;
    else removed.push(key);
  });
  await cm_nat.remove(removed);
  return { alive, removed: removed.length };
}

/** `seconds`: the service's affinity; undefined: it has none any more. */
export const isAffinityOver = ({ lastUsedNs }: CmAffinity, seconds: number | undefined, nowNs: bigint): boolean =>
  seconds === undefined || nowNs - lastUsedNs > BigInt(seconds) * SECOND;

/**
 * One pass over these maps, in slices. `nowNs`: CLOCK_MONOTONIC. A row that is used between being read and being removed is made anew by its
 * next packet.
 */
export async function collectGarbage(maps: TypedMaps, nowNs: () => bigint): Promise<Collected> {
  const flows = { alive: 0, removed: [] as CmCtKey[] };
  await maps.cm_ct.scan((key, entry) => {
    if (isFlowOver(key, entry, nowNs())) flows.removed.push(key);
    else flows.alive++;
  });
  await maps.cm_ct.remove(flows.removed);

  const outside = await collectNat(maps, nowNs);

  const affinitySeconds = new Map<number, number>();
  await maps.cm_services.scan((_, { id, affinityS }) => {
    if (affinityS > 0) affinitySeconds.set(id, affinityS);
  });
  const choices = { alive: 0, removed: [] as Parameters<typeof maps.cm_affinity.remove>[0][number][] };
  await maps.cm_affinity.scan((key, choice) => {
    if (isAffinityOver(choice, affinitySeconds.get(key.serviceId), nowNs())) choices.removed.push(key);
    else choices.alive++;
  });
  await maps.cm_affinity.remove(choices.removed);
  return {
    flows: { alive: flows.alive + outside.alive, removed: flows.removed.length + outside.removed },
    affinity: { alive: choices.alive, removed: choices.removed.length },
  };
}
