/**
 * The families of one peer: those that its config says it publishes are followed, within its quota. Over the quota none of them is:
 * what is here stays as it is, and no partial list is taken for a whole one.
 */
import { dataPrefix, WIRE_FAMILIES, type WireFamily } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import type { FamilyMirror, FamilyOptions } from './family.ts';
import { type PeerLimits, Quota } from './quota.ts';
import type { AcceptedConfig } from './validate.ts';

/** What traffic follows: withdrawn from a peer that is being drained, while addresses and identities stay for what is open. */
export const TRAFFIC_FAMILIES = [
  'services',
  'serviceexports',
  'endpointslices',
] as const satisfies readonly WireFamily[];

/** What is followed of a peer that is being drained. */
export function withoutTraffic(accepted: AcceptedConfig): AcceptedConfig {
  const isTraffic = (family: WireFamily) => (TRAFFIC_FAMILIES as readonly WireFamily[]).includes(family);
  return { ...accepted, families: accepted.families.filter((family) => !isTraffic(family)) };
}

export interface FamiliesOptions {
  readonly cluster: string;
  readonly makeFamily: (
    family: WireFamily,
    accepted: AcceptedConfig,
    shared: Pick<FamilyOptions, 'quota' | 'onOverLimit'>,
  ) => FamilyMirror;
  /** Nothing of this family is to be here. */
  readonly removeRows: (family: WireFamily) => void;
  readonly remote: Etcd;
  readonly limits: PeerLimits & { readonly retryMs: number };
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** `follow` is to be called again after `limits.retryMs`. */
  readonly onHalted: () => void;
}

export interface Families {
  /**
   * Level-triggered: begins what is published and not followed yet (the nodes first, the others once those are listed), withdraws
   * what is not published any more, and tries again what was halted. True when the set has changed.
   */
  follow(accepted: AcceptedConfig): Promise<boolean>;
  current(): ReadonlyMap<WireFamily, FamilyMirror>;
  /** Why the peer is not followed, if it is not. */
  halted(): string | undefined;
  readonly quota: Pick<Quota, 'keys' | 'bytes'>;
  ended(): Promise<void>;
}

export function startFamilies(options: FamiliesOptions): Families {
  const { cluster, remote, limits, log, clock, signal } = options;
  const quota = new Quota(limits);
  const current = new Map<WireFamily, FamilyMirror>();
  /** Not published by the peer, and removed here. */
  const gone = new Set<WireFamily>();
  const stopped: FamilyMirror[] = [];
  /** Ends the following of all families at once. */
  let following = new AbortController();
  let halted: { readonly reason: string; readonly retryAt: number } | undefined;

  const halt = (reason: string) => {
    if (halted?.reason !== reason) log.warn({ reason }, 'peer is over its limits: not followed');
    halted = { reason, retryAt: clock.nowMs() + limits.retryMs };
    following.abort();
    options.onHalted();
  };

  /** Asked before anything is listed: a list that is too long is not even begun. */
  const isTooMuch = async (): Promise<boolean> => {
    let keys = 0;
    for (const family of current.keys()) keys += await remote.count(dataPrefix(cluster, family, 'state'), { signal });
    if (keys <= limits.maxKeys) return false;
    halt(`it has ${keys} objects, more than the ${limits.maxKeys} that are taken of one peer`);
    return true;
  };

  /** Made, but not followed yet. */
  const fresh = new Set<FamilyMirror>();

  /** Also what a process before this one mirrored, when the peer still published it. */
  const withdraw = (family: WireFamily) => {
    gone.add(family);
    options.removeRows(family);
    const mirror = current.get(family);
    if (mirror === undefined) return;
    log.info({ family }, 'the peer does not publish this any more: withdrawn');
    mirror.stop();
    current.delete(family);
    fresh.delete(mirror);
    stopped.push(mirror);
  };

  const follow = async (accepted: AcceptedConfig): Promise<boolean> => {
    let isChanged = false;
    for (const family of WIRE_FAMILIES) {
      if (accepted.families.includes(family)) gone.delete(family);
      else if (!gone.has(family)) {
        withdraw(family);
        isChanged = true;
      }
    }
    for (const family of accepted.families) {
      if (current.has(family)) continue;
      const mirror = options.makeFamily(family, accepted, { quota, onOverLimit: halt });
      current.set(family, mirror);
      fresh.add(mirror);
      isChanged = true;
    }
    const isDue = halted === undefined ? fresh.size > 0 : clock.nowMs() >= halted.retryAt;
    if (!isDue || (await isTooMuch())) return isChanged;
    if (halted !== undefined) {
      halted = undefined;
      following = new AbortController();
      quota.reset();
      for (const mirror of current.values()) fresh.add(mirror);
    }
    // Addresses and backends are held against the nodes: without them, all of a first list would be quarantined and judged again.
    const nodes = current.get('nodes');
    const areNodesKnown = nodes?.listed() ?? true;
    for (const mirror of fresh) {
      if (mirror !== nodes && !areNodesKnown) continue;
      mirror.follow(following.signal);
      fresh.delete(mirror);
    }
    return isChanged;
  };

  return {
    follow,
    current: () => current,
    halted: () => halted?.reason,
    quota,
    ended: async () => {
      await Promise.all([...stopped, ...current.values()].map((mirror) => mirror.ended()));
    },
  };
}
