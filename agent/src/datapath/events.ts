/** Flow events as the kernel gives them: see bpf/lib/events.h. */
import { type CmEvent, type CmEventState, cmEvent, cmEventState } from '@clustermesh/bpf';
import * as libbpf from './libbpf.ts';
import type { TypedMaps } from './loader.ts';
import { openRingBuffer } from './ring-buffer.ts';

export type { CmEvent } from '@clustermesh/bpf';

export interface EventRates {
  /** Events a second that each CPU may show, however many packets there are; above 0. */
  perSecond: number;
  /** What a CPU did not use, up to so many, it may show later. */
  burst: number;
  /** Of so many refused packets, one is shown; 0: none. */
  refusedEvery: number;
  /** Of so many others, one; 0: none. */
  forwardedEvery: number;
}

export interface EventSource {
  /** Nothing is shown before the first call. */
  configure(rates: EventRates): Promise<void>;
  /** Hands over what is there, at most `limit`, and returns how many it was. */
  read(visit: (event: CmEvent) => void, limit: number): number;
  /** Since the programs were loaded. `lost`: not shown because of the rate or a full ring. */
  stats(): { sent: number; lost: number };
  close(): void;
}

const NS_PER_SECOND = 1_000_000_000;

export function openEvents(maps: TypedMaps): EventSource {
  const ring = openRingBuffer(maps.cm_events.fd);
  const key = Buffer.alloc(4);
  const perCpu = Buffer.alloc(cmEventState.size * libbpf.possibleCpus());

  return {
    async configure({ perSecond, burst, refusedEvery, forwardedEvery }) {
      const intervalNs = BigInt(Math.max(1, Math.round(NS_PER_SECOND / perSecond)));
      const config = { intervalNs, burst, refusedEvery, forwardedEvery };
      const [error] = await maps.cm_event_config.update([[0, config]]);
      if (error !== undefined) throw error;
    },
    read: (visit, limit) => ring.consume((record) => visit(cmEvent.decode(record)), limit),
    stats() {
      const rc = libbpf.mapLookup(maps.cm_event_state.fd, key, perCpu);
      if (rc < 0) throw libbpf.kernelError('reading from cm_event_state', rc);
      const states: CmEventState[] = [];
      for (let at = 0; at < perCpu.length; at += cmEventState.size) states.push(cmEventState.decode(perCpu, at));
      const sum = (of: (state: CmEventState) => bigint) => Number(states.reduce((all, state) => all + of(state), 0n));
      return { sent: sum((state) => state.sent), lost: sum((state) => state.lost) };
    },
    close: ring.close,
  };
}
