import { randomBytes } from 'node:crypto';
import { MeshError, messageOf } from '@clustermesh/contract';
import { type Clock, type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { startReflector } from './reflector.ts';
import type { Compare, Etcd, KeyValue, Lease } from './types.ts';
import type { Leadership } from './writer-types.ts';

export interface ElectionOptions {
  readonly etcd: Etcd;
  /** `clustermesh/election/<name>`. */
  readonly key: string;
  /**
   * Names the candidate, for people, and lets a replica that was killed succeed itself at once: two processes must never run with
   * one name (their state directory is locked).
   */
  readonly replica: string;
  /** How long a leader that died is waited for (default 15 s). */
  readonly ttlSeconds?: number | undefined;
  /** Must hold for a campaign to be won; e.g. that etcd has been bootstrapped. */
  readonly fence?: (() => readonly Compare[]) | undefined;
  readonly log: Log;
  readonly clock?: Clock | undefined;
  readonly signal: AbortSignal;
}

/**
 * `leading` is a belief: a process that was paused, or cut off, holds it for a while after it stopped being true. Mutual exclusion
 * comes from the fence alone, which etcd checks in every transaction.
 */
type State =
  | { readonly name: 'waiting'; readonly reason: string | undefined }
  | { readonly name: 'following'; readonly holder: string }
  | { readonly name: 'leading'; readonly createRevision: number; readonly value: string }
  | { readonly name: 'closed' };

export interface Election extends Leadership {
  isLeading(): boolean;
  status(): {
    readonly state: State['name'];
    readonly holder: string | undefined;
    readonly revision: number | undefined;
    readonly reason: string | undefined;
    /** Times that leadership was won. */
    readonly terms: number;
  };
  /** Gives up leadership and does not campaign again. Also done, best effort, when the signal aborts. */
  resign(): Promise<void>;
  readonly done: Promise<void>;
}

const DEFAULT_TTL_SECONDS = 15;
const RESIGN_TIMEOUT_MS = 1_000;
const NOT_READY_POLL_MS = 200;

interface Candidate {
  readonly replica: string;
  /** Differs in every process, also of one replica. */
  readonly session: string;
  /** Differs in every campaign: a fence must not hold again in an etcd that was rebuilt and counts the same revisions. */
  readonly campaign: number;
}

function readCandidate(kv: KeyValue): Pick<Candidate, 'replica' | 'session'> {
  try {
    const { replica, session } = JSON.parse(kv.value.toString()) as Partial<Candidate>;
    return { replica: String(replica), session: String(session) };
  } catch {
    return { replica: kv.value.toString(), session: '' };
  }
}

/** Campaigns for one key, for ever: whoever creates it leads for as long as it exists. */
export function startElection(options: ElectionOptions): Election {
  const { etcd, key, log } = options;
  const clock = options.clock ?? systemClock;
  const ttlSeconds = options.ttlSeconds ?? DEFAULT_TTL_SECONDS;
  const self = { replica: options.replica, session: randomBytes(8).toString('hex') };
  const stopping = new AbortController();
  const signal = AbortSignal.any([options.signal, stopping.signal]);
  const listeners = new Set<() => void>();
  let state: State = { name: 'waiting', reason: undefined };
  let lease: Lease | undefined;
  let terms = 0;
  let campaigns = 0;
  let lastValue: string | undefined;
  /** A campaign was sent and nothing is known of its outcome. */
  let isUndecided = false;

  function setState(next: State): void {
    if (state.name === 'closed') return;
    const before = state;
    state = next;
    const changed =
      before.name !== next.name ||
      (before.name === 'leading' && next.name === 'leading' && before.value !== next.value) ||
      (before.name === 'following' && next.name === 'following' && before.holder !== next.holder);
    if (!changed) return;
    if (next.name === 'leading') terms++;
    if (before.name === 'leading' || next.name === 'leading' || next.name === 'following')
      log.info({ election: key, from: before.name, ...next, to: next.name }, 'election');
    for (const listener of [...listeners]) listener();
  }

  async function campaign(): Promise<void> {
    lease ??= await etcd.lease({ ttlSeconds, onRegranted: () => runner.trigger() }, { signal });
    const value = JSON.stringify({ ...self, campaign: ++campaigns } satisfies Candidate);
    lastValue = value;
    isUndecided = true;
    const result = await etcd.txn(
      {
        compare: [{ key, absent: true }, ...(options.fence?.() ?? [])],
        success: [{ put: key, value, lease: lease.id }],
        failure: [{ get: key }],
      },
      { signal },
    );
    isUndecided = false;
    if (result.succeeded) return setState({ name: 'leading', createRevision: result.header.revision, value });
    const [there] = result.gets;
    if (there === undefined) {
      setState({ name: 'waiting', reason: 'this etcd is not ready for writers yet' });
      return lookAgainSoon();
    }
    const holder = readCandidate(there);
    if (holder.session === self.session && there.lease === lease.id) {
      lastValue = there.value.toString();
      return setState({ name: 'leading', createRevision: there.createRevision, value: lastValue });
    }
    if (holder.replica !== self.replica) return setState({ name: 'following', holder: holder.replica });
    // This replica's process before this one, or this process's lease before this one.
    await removeTerm({ key, createRevision: there.createRevision });
    runner.trigger();
  }

  /** What is missing comes by another hand, and neither a failure's growing delay nor the next regular look should be waited for. */
  function lookAgainSoon(): void {
    void clock.sleep(NOT_READY_POLL_MS, signal).then(() => runner.trigger());
  }

  /** Only the term that was seen: whoever has won meanwhile stays. */
  async function removeTerm(term: Compare, timeoutMs?: number): Promise<void> {
    await etcd.txn({ compare: [term], success: [{ delete: key }] }, { timeoutMs });
  }

  const runner = startRunner({
    run: async () => {
      try {
        await campaign();
      } catch (error) {
        // "requested lease not found": the keepalive grants another.
        if (error instanceof MeshError && error.code === 'not-found') await lease?.renew().catch(() => {});
        // The fence says that this etcd is not one to write to yet.
        if (!(error instanceof MeshError) || error.code !== 'conflict') throw error;
        if (state.name !== 'leading') setState({ name: 'waiting', reason: error.message });
        lookAgainSoon();
      }
    },
    minIntervalMs: 10,
    retryMs: 100,
    maxIntervalMs: (ttlSeconds * 1000) / 3,
    signal,
    clock,
    onError: (error) => {
      if (signal.aborted) return;
      // A leader that cannot reach etcd goes on believing: it cannot write either, and the fence decides afterwards.
      if (state.name !== 'leading') setState({ name: 'waiting', reason: messageOf(error) });
    },
  });
  const stopListening = etcd.onEvent((event) => {
    if (event.type !== 'connected') return;
    // It may be another etcd, in which nobody leads.
    runner.trigger();
    runner.retryNow();
  });
  const reflector = startReflector({
    etcd,
    prefix: key,
    log,
    clock,
    signal,
    sink: { apply: () => runner.trigger() },
  });
  runner.trigger();

  const done = Promise.all([runner.ended, reflector.done]).then(async () => {
    stopListening();
    const last = state;
    setState({ name: 'closed' });
    listeners.clear();
    await lease?.close({ revoke: false });
    // Best effort: without an answer the term ends with its lease. A campaign that was under way may have been won.
    if ((last.name === 'following' && !isUndecided) || lastValue === undefined) return;
    for (const value of new Set(last.name === 'leading' ? [last.value, lastValue] : [lastValue]))
      await removeTerm({ key, value }, RESIGN_TIMEOUT_MS).catch(() => {});
  });

  return {
    isLeading: () => state.name === 'leading',
    fence: () =>
      state.name === 'leading'
        ? [
            { key, createRevision: state.createRevision },
            { key, value: state.value },
          ]
        : undefined,
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    get holder() {
      if (state.name === 'following') return state.holder;
      return state.name === 'leading' ? self.replica : undefined;
    },
    status: () => ({
      state: state.name,
      holder: state.name === 'following' ? state.holder : state.name === 'leading' ? self.replica : undefined,
      revision: state.name === 'leading' ? state.createRevision : undefined,
      reason: state.name === 'waiting' ? state.reason : undefined,
      terms,
    }),
    async resign() {
      stopping.abort();
      await done;
    },
    done,
  };
}
