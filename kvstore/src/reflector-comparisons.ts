import { MeshError } from '@clustermesh/contract';
import { audit } from './audit.ts';
import type { Delivery } from './delivery.ts';
import { readCanary } from './reflector-canary.ts';
import { type ReflectorContext, toUpsert } from './reflector-context.ts';
import type { Header, KeyValue } from './types.ts';

/** How long a difference that a resync found must last before it is believed: the watch may only be late. */
const RESYNC_GRACE_MS = 1_000;
/** The same after a resume, where the watch has everything to send that was missed. */
const VERIFY_GRACE_MS = 5_000;

/** What one watch session learns from complete lists that are made while the watch goes on. */
export class Comparisons {
  readonly #context: ReflectorContext;
  readonly #delivery: Delivery;
  /** What the session began with. */
  readonly #header: Header;
  readonly #session: AbortSignal;
  /** Of each comparison that is under way, the keys of the events that came meanwhile. */
  readonly #touched = new Set<Set<string>>();

  constructor(context: ReflectorContext, delivery: Delivery, header: Header, session: AbortSignal) {
    this.#context = context;
    this.#delivery = delivery;
    this.#header = header;
    this.#session = session;
  }

  /** An event of this key has come. */
  touch(key: string): void {
    for (const touched of this.#touched) touched.add(key);
  }

  /** After a resume: throws `conflict` when rows are otherwise than the watch has made them. Returns the header of the list. */
  async verify(): Promise<Header> {
    const { prefix } = this.#context.options;
    const { header, changed, gone } = await this.#compare(VERIFY_GRACE_MS);
    const lost = changed.length + gone.filter((key) => !this.#isHeld(key)).length;
    if (lost === 0) return header;
    throw new MeshError({
      code: 'conflict',
      message: `watching ${prefix} again from revision ${this.#header.revision}: a list shows ${lost} rows otherwise`,
    });
  }

  /** Watches have lost events in the field (etcd#17529, #18089, #19179): lists again now and then, and repairs what differs. */
  async resync(): Promise<void> {
    const { index, progress, options, holdback, clock } = this.#context;
    const steady = holdback?.steadySince(clock.nowMs());
    const { header, changed, gone, missing } = await this.#compare(RESYNC_GRACE_MS);
    const { revision } = header;
    const nowMs = clock.nowMs();
    this.#take(changed);
    for (const { key } of changed) holdback?.putAgain(key, nowMs);
    const leased = gone.filter((key) => index.isLeased(key));
    // Also those that are held: some of one burst may be by the watch already, and the rest are of it all the same.
    holdback?.afterResync(leased, missing, steady, { revision, epoch: options.etcd.epoch, nowMs });
    const removed = this.#remove(
      gone.filter((key) => !this.#isHeld(key)),
      revision,
    );
    const found = changed.length + removed;
    if (found === 0) return;
    progress.repaired(found);
    const { log, prefix } = options;
    log.warn({ prefix, rows: found, revision }, 'resync found rows that the watch had missed');
    this.#delivery.commit(revision);
  }

  /** Lets go of the rows that were held back, once their writer has been steady and has put again what it wants. */
  async release(): Promise<void> {
    const { holdback, clock, options } = this.#context;
    const { canaryKey, log, prefix } = options;
    // Asked for even while nothing is held: it is how a silence is noticed.
    if (holdback?.mayRelease(clock.nowMs()) !== true) return;
    const canary = await readCanary(this.#context, this.#session, this.#header.connection);
    if (canaryKey !== undefined && canary === undefined) return;
    // A lease may have ended while the canary was read.
    if (!holdback.mayRelease(clock.nowMs())) return;
    const before = [...holdback.held];
    const { header, changed, gone, touched } = await this.#compare(0);
    // As the list has them: a delete that is still on its way is of a time before.
    const again = changed.filter(({ key }) => this.#isHeld(key));
    this.#take(again);
    const removed = this.#remove(
      gone.filter((key) => this.#isHeld(key)),
      header.revision,
    );
    // What has been held, or held again, since the list is not in it.
    for (const key of before) if (!touched.has(key)) holdback.held.delete(key);
    log.info({ prefix, kept: before.length - removed, removed }, 'the writer is back');
    if (removed + again.length > 0) this.#delivery.commit(header.revision);
  }

  #take(rows: readonly KeyValue[]): void {
    for (const kv of rows) {
      this.#context.index.listed(kv);
      this.#delivery.put(toUpsert(kv));
    }
  }

  /** As of the list, no later: a put that follows it is no replay. */
  #remove(keys: readonly string[], revision: number): number {
    const removed = keys.filter((key) => this.#context.index.remove(key, revision));
    for (const key of removed) this.#delivery.remove(key);
    return removed.length;
  }

  #isHeld(key: string): boolean {
    return this.#context.holdback?.held.has(key) === true;
  }

  async #compare(graceMs: number) {
    const { options, index, clock } = this.#context;
    const { etcd, prefix } = options;
    const touched = new Set<string>();
    this.#touched.add(touched);
    try {
      const { connection } = this.#header;
      const common = { etcd, prefix, index, touched, graceMs, clock, signal: this.#session, connection };
      return { ...(await audit(common)), touched };
    } finally {
      this.#touched.delete(touched);
    }
  }
}
