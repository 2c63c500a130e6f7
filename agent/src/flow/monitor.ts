/**
 * Carries flow events from the ring to whoever watches. Refused packets are always read, so that the last ones can still be asked
 * for afterwards; forwarded ones only while somebody wants samples of them.
 *
 *   ring ─► poll (10 ms while watched, else 200 ms; at most a portion each time) ─► describe ─► history, watchers
 *
 * A watcher that does not keep up loses events; it is told how many.
 */
import type { Clock, Log } from '@clustermesh/runtime';
import type { CmEvent, EventRates, EventSource } from '../datapath/events.ts';
import { compileFilter, type FlowFilter } from './filter.ts';
import { describeEvent, type FlowEvent, type FlowLookups } from './flow-event.ts';

const POLL_MS = { watched: 10, unwatched: 200 };
/** A portion takes about 5 ms of the event loop when all of it is described. */
const PORTION = 500;
const HISTORY = 1_000;
/** Events that wait for a slow watcher. */
const QUEUE = 10_000;

export interface WatchRequest {
  readonly filter: FlowFilter;
  /** First, so many of the events that were there before, at most. */
  readonly last: number;
  /** Also one of so many forwarded packets; 0: none. While several watch, the smallest counts for all. */
  readonly sampleEvery: number;
  /** End after the events that were there before. */
  readonly follow: boolean;
}

export interface FlowStats {
  /** Shown by the kernel since this agent started. */
  readonly sent: number;
  /** Not shown: over the rate, or no room in the ring. */
  readonly lost: number;
}

export interface FlowMonitor {
  /** Throws for a filter that can match nothing. `lost`: so many matching events did not fit between the two. */
  watch(request: WatchRequest, signal: AbortSignal): AsyncIterable<FlowEvent | { readonly lost: number }>;
  stats(): FlowStats;
  readonly ended: Promise<void>;
}

interface Watcher {
  readonly matches: (event: FlowEvent) => boolean;
  readonly sampleEvery: number;
  queue: FlowEvent[];
  lost: number;
  wake: () => void;
}

export interface FlowMonitorOptions {
  readonly source: EventSource;
  readonly lookups: FlowLookups;
  /** Without forwarded packets: those are for watchers. */
  readonly rates: Pick<EventRates, 'perSecond' | 'burst'>;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

export async function startFlowMonitor(options: FlowMonitorOptions): Promise<FlowMonitor> {
  const { source, clock, log, signal } = options;
  const watchers = new Set<Watcher>();
  let history: CmEvent[] = [];
  let cutSleep: (() => void) | undefined;

  const describe = (event: CmEvent): FlowEvent => describeEvent(event, options.lookups);

  async function applyRates(): Promise<void> {
    const wanted = [...watchers].map(({ sampleEvery }) => sampleEvery).filter((every) => every > 0);
    const forwardedEvery = wanted.length === 0 ? 0 : Math.min(...wanted);
    await source.configure({ ...options.rates, refusedEvery: 1, forwardedEvery });
  }

  function take(event: CmEvent): void {
    history.push(event);
    if (watchers.size === 0) return;
    const described = describe(event);
    for (const watcher of watchers) {
      if (!watcher.matches(described)) continue;
      if (watcher.queue.length < QUEUE) watcher.queue.push(described);
      else watcher.lost++;
      watcher.wake();
    }
  }

  async function loop(): Promise<void> {
    while (!signal.aborted) {
      let isMore = false;
      try {
        isMore = source.read(take, PORTION) === PORTION;
      } catch (error) {
        log.error({ err: error }, 'flow events could not be read; going on with the next ones');
      }
      if (history.length > 2 * HISTORY) history = history.slice(-HISTORY);
      const cut = new AbortController();
      cutSleep = () => cut.abort();
      signal.addEventListener('abort', cutSleep, { once: true });
      await clock.sleep(isMore ? 1 : watchers.size > 0 ? POLL_MS.watched : POLL_MS.unwatched, cut.signal);
      signal.removeEventListener('abort', cutSleep);
    }
    for (const watcher of watchers) watcher.wake();
  }

  async function* watch(request: WatchRequest, gone: AbortSignal): AsyncIterable<FlowEvent | { lost: number }> {
    const matches = compileFilter(request.filter);
    if (request.last > 0) {
      // What is in the ring already counts as before.
      source.read(take, PORTION);
      const before = history.map(describe).filter(matches);
      yield* before.slice(-request.last);
    }
    if (!request.follow) return;
    const watcher: Watcher = { matches, sampleEvery: request.sampleEvery, queue: [], lost: 0, wake: () => undefined };
    const wake = () => watcher.wake();
    gone.addEventListener('abort', wake, { once: true });
    watchers.add(watcher);
    try {
      await applyRates();
      cutSleep?.();
      while (!gone.aborted && !signal.aborted) {
        const events = watcher.queue;
        const { lost } = watcher;
        watcher.queue = [];
        watcher.lost = 0;
        if (events.length === 0) {
          await new Promise<void>((resolve) => {
            watcher.wake = resolve;
          });
          continue;
        }
        yield* events;
        if (lost > 0) yield { lost };
      }
    } finally {
      gone.removeEventListener('abort', wake);
      watchers.delete(watcher);
      await applyRates();
    }
  }

  await applyRates();
  return { watch, stats: () => source.stats(), ended: loop() };
}
