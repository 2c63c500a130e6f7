import { MeshError, messageOf } from '@clustermesh/contract';
import type { Clock } from '@clustermesh/runtime';
import { OverLimit } from './reflector-limits.ts';
import type { RowIndex } from './row-index.ts';
import type { Header, ReflectorOptions, ReflectorState, ReflectorStatus } from './types.ts';

/** One session = one list and the watch that continues it. `setState` is the only place that changes it. */
export type State =
  | { readonly name: 'connecting' }
  | { readonly name: 'waiting-for-canary' }
  | { readonly name: 'listing'; readonly header: Header }
  | { readonly name: 'verifying'; readonly from: number }
  | { readonly name: 'watching'; readonly header: Header }
  | { readonly name: 'over-limit'; readonly reason: string }
  | { readonly name: 'reconnecting'; readonly attempt: number }
  | { readonly name: 'closed' };

type ProgressOptions = Pick<ReflectorOptions, 'prefix' | 'sink' | 'log' | 'signal'> & {
  readonly clock: Clock;
  readonly index: RowIndex;
};

/** How far a reflector has come: its state, what it may claim to have applied, what went wrong last, and who waits for the first list. */
export class ReflectorProgress {
  readonly #options: ProgressOptions;
  #state: State = { name: 'connecting' };
  #everSynced = false;
  #revision = 0;
  #dataRevision = 0;
  #clusterId: string | undefined;
  #lastProofOfLifeAt: number | undefined;
  #reconnects = 0;
  #repairs = 0;
  #resumes = 0;
  #lastError: string | undefined;
  /** Failures since the last session that was a good one. */
  #attempt = 0;
  readonly #waiters: { resolve(): void; reject(error: MeshError): void }[] = [];

  constructor(options: ProgressOptions) {
    this.#options = options;
  }

  get state(): State {
    return this.#state;
  }

  get attempt(): number {
    return this.#attempt;
  }

  setState(next: State): void {
    if (this.#state.name === 'closed') return;
    const { log, prefix } = this.#options;
    if (next.name !== this.#state.name) log.debug({ prefix, from: this.#state.name, to: next.name }, 'reflector state');
    this.#state = next;
  }

  alive(): void {
    this.#lastProofOfLifeAt = this.#options.clock.nowMs();
  }

  /** What is held is what etcd had at this revision; only here does a reflector become synced. */
  complete(header: Header): void {
    this.#revision = header.revision;
    this.#dataRevision = header.revision;
    this.#clusterId = header.clusterId;
    this.setState({ name: 'watching', header });
    this.#everSynced = true;
    this.#lastError = undefined;
    this.#options.sink.synced?.(header.revision);
    for (const waiter of this.#waiters.splice(0)) waiter.resolve();
  }

  /** The sink has the changes up to this revision. */
  applied(revision: number): void {
    this.seen(revision);
    this.#dataRevision = Math.max(this.#dataRevision, revision);
  }

  /** etcd has come to this revision without more changes for us. */
  seen(revision: number): void {
    this.#revision = Math.max(this.#revision, revision);
  }

  resumed(): void {
    this.#resumes++;
  }

  repaired(rows: number): void {
    this.#repairs += rows;
  }

  /** The session was a good one: the next failure is a first one. */
  stable(): void {
    this.#attempt = 0;
  }

  /** The sink refused changes. To be seen now: it may take its time before the session can end. */
  refused(reason: string): void {
    this.#lastError = reason;
    this.#options.log.info({ prefix: this.#options.prefix, reason }, 'changes could not be applied; listing again');
  }

  /** A session ended. */
  failed(error: unknown): void {
    this.#attempt++;
    this.#reconnects++;
    const { log, prefix, index } = this.#options;
    const message = messageOf(error);
    const fields = { prefix, rows: index.size, attempt: this.#attempt, reason: message };
    // The first failure and a change of reason are news; the same failure again is not.
    if (message !== this.#lastError)
      log.info(fields, this.#everSynced ? 'rows are stale; listing again' : 'not listed yet; trying again');
    else log.debug(fields, 'still failing');
    this.#lastError = message;
    this.setState(
      error instanceof OverLimit
        ? { name: 'over-limit', reason: message }
        : { name: 'reconnecting', attempt: this.#attempt },
    );
  }

  closed(): void {
    this.setState({ name: 'closed' });
    for (const waiter of this.#waiters.splice(0)) waiter.reject(this.#stopped());
  }

  waitSynced(): Promise<void> {
    if (this.#everSynced) return Promise.resolve();
    if (this.#options.signal.aborted) return Promise.reject(this.#stopped());
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  status(held: number): ReflectorStatus {
    const { prefix, index } = this.#options;
    return {
      state: this.#state.name satisfies ReflectorState,
      prefix,
      synced: this.#state.name === 'watching',
      everSynced: this.#everSynced,
      revision: this.#revision,
      dataRevision: this.#dataRevision,
      clusterId: this.#clusterId,
      count: index.size,
      bytes: index.bytes,
      held,
      lastProofOfLifeAt: this.#lastProofOfLifeAt,
      reconnects: this.#reconnects,
      lastError: this.#lastError,
      repairs: this.#repairs,
      resumes: this.#resumes,
    };
  }

  #stopped(): MeshError {
    const { prefix } = this.#options;
    return new MeshError({
      code: 'cancelled',
      message: `waiting for the first list of ${prefix}: the reflector was stopped`,
    });
  }
}
