/**
 * One family of one peer: the peer's etcd → checked rows → this cluster's etcd in the cache layout. A bad object is quarantined:
 * it is not taken over, its last good version (if there is one) stays, and everything around it goes on. One that is good but for an
 * address family that was not agreed is taken over without that, and is in quarantine all the same.
 */
import { setImmediate } from 'node:timers/promises';
import { type Compression, canaryKey, dataPrefix, keyName, rfc3339, type WireFamily } from '@clustermesh/contract';
import { type Etcd, type Reflector, startReflector, type Writer } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import type { AddressFacts } from './addresses.ts';
import type { Quota } from './quota.ts';
import { judgeObject, type PeerFacts, quote } from './validate.ts';

export interface FamilyOptions {
  readonly family: WireFamily;
  readonly peer: PeerFacts;
  /** Where the peer's addresses may lie, as far as is known now. */
  readonly addresses: () => AddressFacts;
  readonly hasCanaries: boolean;
  /** Of the peer's writer; monotonic. */
  readonly lastHeartbeatAt: () => number | undefined;
  readonly remote: Etcd;
  readonly local: Etcd;
  /** The peer's writer; owns this family's prefix among others. */
  readonly writer: Writer;
  readonly zstd: Compression;
  /** Shared by the families of the peer. */
  readonly quota: Quota;
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Something that the status shows has changed. */
  readonly onChange: () => void;
  /** A complete list has arrived: `announce` has work to do. */
  readonly onListed: () => void;
  readonly onQuarantine: () => void;
  /** An object was taken over, or (undefined) is gone. */
  readonly onObject: (name: string, value: Buffer | undefined) => void;
  /** What arrived this many seconds ago is in this cluster's etcd now. */
  readonly onMirrored: (action: 'upsert' | 'delete', seconds: number) => void;
  /** The peer has more than is taken of it; the caller ends all following. */
  readonly onOverLimit: (reason: string) => void;
}

export interface FamilyMirror {
  /** Lists and watches until `signal`. Called again, it lists anew; what is mirrored stays meanwhile. */
  follow(signal: AbortSignal): void;
  /** After the first complete list: leftovers go, the canary is written. Level-triggered; throws when the local etcd is away. */
  announce(): Promise<void>;
  /** Looks at what is in quarantine again: the facts that it was held against have changed. */
  judgeAgain(): void;
  /**
   * Holds also what is mirrored against the facts as they are now, as a restart would: what would be refused is withdrawn. Returns
   * whether anything was.
   */
  recheck(): Promise<boolean>;
  /** The complete list has been read. */
  listed(): boolean;
  /** The peer does not publish this family any more: it is not followed, and holds nothing of the quota. */
  stop(): void;
  /** The complete list is in the local etcd. */
  synced(): boolean;
  count(): number;
  quarantined(): number;
  lastQuarantineReason(): string | undefined;
  status(): ReturnType<Reflector['status']> | undefined;
  ended(): Promise<void>;
}

/** Judged in one go; between two of them others have their turn. */
const RECHECK_PIECE = 256;

/** Watches have lost events in the field (etcd#17529, #18089, #19179): listed again this often. */
const RESYNC_MS = 600_000;

export function startFamilyMirror(options: FamilyOptions): FamilyMirror {
  const { family, peer, writer, local, quota, clock, signal } = options;
  const source = dataPrefix(peer.cluster, family, 'state');
  const target = dataPrefix(peer.cluster, family, 'cache');
  const targetCanary = canaryKey(peer.cluster, family, 'cache');
  const log = options.log.child({ family });
  const stopping = new AbortController();
  /** Names of which the writer has a good value. */
  const mirrored = new Set<string>();
  const quarantine = new Map<string, { readonly problem: string; readonly value: Buffer }>();
  /** What of the quota each object holds, bad ones included: those are remembered too. */
  let sizes = new Map<string, number>();
  let lastReason: string | undefined;
  let isListed = false;
  let isAnnounced = false;
  let isFlushed = false;
  let flushing = false;
  let reflector: Reflector | undefined;
  const sessions: Promise<void>[] = [];

  /** False when there is no room for it. */
  const account = (name: string, bytes: number): boolean => {
    const before = sizes.get(name);
    const problem = quota.take(before === undefined ? 1 : 0, bytes - (before ?? 0));
    if (problem !== undefined) {
      options.onOverLimit(problem);
      return false;
    }
    sizes.set(name, bytes);
    return true;
  };

  const judge = (name: string, value: Buffer, addresses: AddressFacts) =>
    judgeObject(family, name, value, peer, addresses, options.zstd);

  const mirror = (name: string, value: Buffer) => {
    mirrored.add(name);
    writer.set(`${target}${name}`, value);
    options.onObject(name, value);
  };

  const upsert = (name: string, value: Buffer, addresses: AddressFacts) => {
    const { value: good, problem } = judge(name, value, addresses);
    if (good !== undefined) mirror(name, good);
    if (problem === undefined) return void quarantine.delete(name);
    if (quarantine.get(name)?.problem !== problem) {
      const outcome =
        good !== undefined ? 'taken in part' : mirrored.has(name) ? 'last good version stays' : 'left out';
      log.warn({ name: quote(name), reason: problem, outcome }, 'object quarantined');
      options.onQuarantine();
    }
    quarantine.set(name, { problem, value });
    lastReason = problem;
  };

  /** False: it is fine. */
  const withdrawIfRefused = (name: string, addresses: AddressFacts): boolean => {
    const value = mirrored.has(name) ? writer.get(`${target}${name}`) : undefined;
    if (value === undefined) return false;
    const { value: good, problem } = judge(name, value, addresses);
    if (good !== undefined || problem === undefined) return false;
    log.warn({ name: quote(name), reason: problem, outcome: 'withdrawn' }, 'object quarantined');
    options.onQuarantine();
    // A newer version that was refused before is what will be looked at again.
    if (!quarantine.has(name)) quarantine.set(name, { problem, value });
    lastReason = problem;
    mirrored.delete(name);
    writer.delete(`${target}${name}`);
    options.onObject(name, undefined);
    return true;
  };

  const judgeAgain = () => {
    if (quarantine.size === 0) return;
    const addresses = options.addresses();
    for (const [name, { value }] of [...quarantine]) upsert(name, value, addresses);
    reportFlush('upsert');
  };

  const remove = (name: string) => {
    const bytes = sizes.get(name);
    if (bytes !== undefined) quota.take(-1, -bytes);
    sizes.delete(name);
    quarantine.delete(name);
    mirrored.delete(name);
    writer.delete(`${target}${name}`);
    options.onObject(name, undefined);
  };

  /** Tells once what was applied has reached etcd, because the status carries the revision of that write. */
  const reportFlush = (action: 'upsert' | 'delete') => {
    options.onChange();
    if (flushing) return;
    flushing = true;
    const receivedAt = clock.nowMs();
    const done = () => {
      options.onMirrored(action, (clock.nowMs() - receivedAt) / 1000);
      options.onChange();
    };
    writer
      .flush()
      .then(done, () => {}) // rejects only when the writer has ended
      .finally(() => {
        flushing = false;
      });
  };

  const follow = (until: AbortSignal) => {
    const session = AbortSignal.any([until, signal, stopping.signal]);
    let isComplete = false;
    sizes = new Map();
    reflector = startReflector({
      etcd: options.remote,
      prefix: source,
      canaryKey: options.hasCanaries ? canaryKey(peer.cluster, family, 'state') : undefined,
      log,
      clock,
      signal: session,
      backoff: { minMs: 100, maxMs: 10_000 },
      resyncIntervalMs: RESYNC_MS,
      // Cilium's keys are leased: when its writer dies they go, and what they stand for need not.
      holdDeletes: { lastHeartbeatAt: options.lastHeartbeatAt },
      sink: {
        apply({ upserts, removes }) {
          for (const key of removes) {
            const name = keyName(key, source);
            if (name !== undefined && !session.aborted) remove(name);
          }
          const addresses = options.addresses();
          for (const { key, value } of upserts) {
            const name = keyName(key, source);
            if (name === undefined || session.aborted) continue;
            if (account(name, key.length + value.length)) upsert(name, value, addresses);
          }
          reportFlush(upserts.length > 0 ? 'upsert' : 'delete');
        },
        synced() {
          if (session.aborted) return;
          // Of a session before this one, and gone since.
          if (!isComplete) for (const name of [...mirrored, ...quarantine.keys()]) if (!sizes.has(name)) remove(name);
          isComplete = true;
          isListed = true;
          options.onListed();
        },
      },
    });
    sessions.push(reflector.done);
  };

  /** A good version from before a restart stays in force as one from before the bad update would have. */
  const adoptLastGood = async () => {
    for (const name of quarantine.keys()) {
      if (mirrored.has(name)) continue;
      const there = await local.get(`${target}${name}`, { signal });
      if (there === undefined || judge(name, there.value, options.addresses()).problem !== undefined) continue;
      mirror(name, there.value);
    }
  };

  return {
    follow,
    async announce() {
      if (!isListed || isAnnounced) return;
      await adoptLastGood();
      isAnnounced = true;
      writer.ready(target);
      writer.canary(targetCanary, () => rfc3339(clock.wallMs()));
      writer.flush().then(
        () => {
          isFlushed = true;
          options.onChange();
        },
        () => {}, // rejects only when the writer has ended
      );
    },
    judgeAgain,
    async recheck() {
      judgeAgain();
      let withdrawn = 0;
      let judged = 0;
      for (const name of [...mirrored]) {
        if (stopping.signal.aborted || signal.aborted) break;
        if (withdrawIfRefused(name, options.addresses())) withdrawn++;
        if (++judged % RECHECK_PIECE === 0) await setImmediate();
      }
      if (withdrawn > 0) reportFlush('delete');
      return withdrawn > 0;
    },
    listed: () => isListed,
    stop() {
      stopping.abort();
      for (const bytes of sizes.values()) quota.take(-1, -bytes);
      sizes.clear();
    },
    synced: () => isFlushed,
    count: () => mirrored.size,
    quarantined: () => quarantine.size,
    lastQuarantineReason: () => (quarantine.size === 0 ? undefined : lastReason),
    status: () => reflector?.status(),
    ended: async () => {
      await Promise.all(sessions);
    },
  };
}
