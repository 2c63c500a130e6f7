/**
 * Of the replicas that share one etcd, one writes `cilium/…`. What writes is begun when this replica is elected and ended when
 * another one leads; the etcd itself refuses what a replica writes that only believes that it leads (write-right.ts).
 */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { electionKey, MeshError } from '@clustermesh/contract';
import { type Compare, type Etcd, type Leadership, startElection } from '@clustermesh/kvstore';
import { atomicWrite, type Clock, type Log, startRunner } from '@clustermesh/runtime';

export interface TermOptions<Term extends { readonly ended: Promise<void> }> {
  readonly etcd: Etcd;
  readonly replica: string;
  readonly ttlSeconds: number;
  readonly isBootstrapped: () => boolean;
  readonly fence: () => readonly Compare[];
  /** What a leader runs, until `signal`. */
  readonly begin: (leadership: Leadership, signal: AbortSignal) => Term;
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export interface Terms<Term> {
  /** Undefined while standing by. */
  current(): Term | undefined;
  isLeading(): boolean;
  /** The replica that leads, as far as is known. */
  leader(): string | undefined;
  readonly ended: Promise<void>;
}

/** Names this replica for as long as its state directory lives, so that it succeeds itself at once after a crash. */
export function replicaId(file: string): string {
  try {
    const id = readFileSync(file, 'utf8').trim();
    if (id !== '') return id;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const id = randomUUID();
  atomicWrite(file, `${id}\n`);
  return id;
}

export function startTerms<Term extends { readonly ended: Promise<void> }>(options: TermOptions<Term>): Terms<Term> {
  const { etcd, log, clock, signal } = options;
  let running: { readonly term: Term; readonly stop: AbortController } | undefined;

  const election = startElection({
    etcd,
    key: electionKey('apiserver'),
    replica: options.replica,
    ttlSeconds: options.ttlSeconds,
    fence: () => {
      // Thrown rather than answered, so that it is tried again soon.
      if (!options.isBootstrapped())
        throw new MeshError({
          code: 'conflict',
          message: 'campaigning: users and roles are not in place yet',
          retryable: true,
        });
      return options.fence();
    },
    log,
    clock,
    signal,
  });

  /**
   * Only the sight of another leader ends a term. A leader whose etcd is away, or was wiped, goes on and is elected again: what it
   * has mirrored it must not forget meanwhile.
   */
  const pass = async () => {
    const { state, holder } = election.status();
    if (state === 'leading' && running === undefined) {
      const stop = new AbortController();
      const term = options.begin(election, AbortSignal.any([signal, stop.signal]));
      running = { term, stop };
      log.info('leading: this replica writes');
    } else if (state === 'following' && running !== undefined) {
      log.warn({ leader: holder }, 'another replica leads: standing by');
      const { term, stop } = running;
      stop.abort();
      await term.ended;
      running = undefined;
    }
  };
  const runner = startRunner({
    run: pass,
    minIntervalMs: 0,
    retryMs: 100,
    maxIntervalMs: 2_000,
    signal,
    clock,
    onError: (error) => log.error({ err: error }, 'changing who writes'),
  });
  const stopListening = election.onChange(runner.trigger);
  runner.trigger();

  return {
    current: () => running?.term,
    isLeading: election.isLeading,
    leader: () => election.holder,
    ended: runner.ended.then(async () => {
      await running?.term.ended;
      await election.done;
      stopListening();
    }),
  };
}
