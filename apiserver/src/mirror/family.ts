/**
 * One family of one peer: the peer's etcd → checked rows → this cluster's etcd in the cache layout. A bad object is quarantined:
 * it is not taken over, its last good version (if there is one) stays, and everything around it goes on.
 */
import { type CanaryFamily, canaryKey, dataPrefix, keyName, rfc3339 } from '@clustermesh/contract';
import { type Etcd, type Reflector, startReflector, type Writer } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';
import type { AddressFacts } from './addresses.ts';
import { objectProblem, type PeerFacts } from './validate.ts';

export interface FamilyOptions {
  readonly family: CanaryFamily;
  readonly peer: PeerFacts;
  /** Where the peer's addresses may lie, as far as is known now. */
  readonly addresses: () => AddressFacts;
  readonly hasCanaries: boolean;
  readonly remote: Etcd;
  readonly local: Etcd;
  /** The peer's writer; owns this family's prefix among others. */
  readonly writer: Writer;
  readonly log: Log;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Something that the status shows has changed. */
  readonly onChange: () => void;
  /** A complete list has arrived: `announce` has work to do. */
  readonly onListed: () => void;
  readonly onQuarantine: () => void;
  /** An object was taken over, or (undefined) is gone. */
  readonly onMirrored: (name: string, value: Buffer | undefined) => void;
}

export interface FamilyMirror {
  /** After the first complete list: leftovers go, the canary is written. Level-triggered; throws when the local etcd is away. */
  announce(): Promise<void>;
  /** Looks at what is in quarantine again: the facts that it was held against have changed. */
  judgeAgain(): void;
  /** The complete list has been read. */
  listed(): boolean;
  /** The complete list is in the local etcd. */
  synced(): boolean;
  count(): number;
  quarantined(): number;
  lastQuarantineReason(): string | undefined;
  status(): ReturnType<Reflector['status']>;
  readonly ended: Promise<void>;
}

/** Watches have lost events in the field (etcd#17529, #18089, #19179): listed again this often. */
const RESYNC_MS = 600_000;

export function startFamilyMirror(options: FamilyOptions): FamilyMirror {
  const { family, peer, writer, local, clock, signal } = options;
  const source = dataPrefix(peer.cluster, family, 'state');
  const target = dataPrefix(peer.cluster, family, 'cache');
  const log = options.log.child({ family });
  /** Names whose good value the writer has. */
  const mirrored = new Set<string>();
  const quarantine = new Map<string, { readonly problem: string; readonly value: Buffer }>();
  let lastReason: string | undefined;
  let isListed = false;
  let isAnnounced = false;
  let isFlushed = false;
  let flushing = false;

  const mirror = (name: string, value: Buffer) => {
    mirrored.add(name);
    writer.set(`${target}${name}`, value);
    options.onMirrored(name, value);
  };

  const upsert = (name: string, value: Buffer, addresses: AddressFacts) => {
    const problem = objectProblem(family, name, value, peer, addresses);
    if (problem === undefined) {
      quarantine.delete(name);
      return mirror(name, value);
    }
    if (quarantine.get(name)?.problem !== problem) {
      log.warn({ name, reason: problem, keepsLastGood: mirrored.has(name) }, 'object quarantined');
      options.onQuarantine();
    }
    quarantine.set(name, { problem, value });
    lastReason = problem;
  };

  /** Tells once what was applied has reached etcd, because the status carries the revision of that write. */
  const reportFlush = () => {
    options.onChange();
    if (flushing) return;
    flushing = true;
    writer
      .flush()
      .then(options.onChange, () => {}) // rejects only when the writer has ended
      .finally(() => {
        flushing = false;
      });
  };

  const reflector = startReflector({
    etcd: options.remote,
    prefix: source,
    canaryKey: options.hasCanaries ? canaryKey(peer.cluster, family, 'state') : undefined,
    log,
    clock,
    signal,
    backoff: { minMs: 100, maxMs: 10_000 },
    resyncIntervalMs: RESYNC_MS,
    sink: {
      apply({ upserts, removes }) {
        for (const key of removes) {
          const name = keyName(key, source);
          if (name === undefined) continue;
          quarantine.delete(name);
          mirrored.delete(name);
          writer.delete(`${target}${name}`);
          options.onMirrored(name, undefined);
        }
        const addresses = options.addresses();
        for (const { key, value } of upserts) {
          const name = keyName(key, source);
          if (name !== undefined) upsert(name, value, addresses);
        }
        reportFlush();
      },
      synced() {
        isListed = true;
        options.onListed();
      },
    },
  });

  /** A good version from before a restart stays in force as one from before the bad update would have. */
  const adoptLastGood = async () => {
    for (const name of quarantine.keys()) {
      if (mirrored.has(name)) continue;
      const there = await local.get(`${target}${name}`, { signal });
      if (there === undefined || objectProblem(family, name, there.value, peer, options.addresses()) !== undefined)
        continue;
      mirror(name, there.value);
    }
  };

  return {
    async announce() {
      if (!isListed || isAnnounced) return;
      await adoptLastGood();
      isAnnounced = true;
      writer.ready(target);
      writer.canary(canaryKey(peer.cluster, family, 'cache'), () => rfc3339(clock.wallMs()));
      writer.flush().then(
        () => {
          isFlushed = true;
          options.onChange();
        },
        () => {}, // rejects only when the writer has ended
      );
    },
    judgeAgain() {
      if (quarantine.size === 0) return;
      const addresses = options.addresses();
      for (const [name, { value }] of [...quarantine]) upsert(name, value, addresses);
      reportFlush();
    },
    listed: () => isListed,
    synced: () => isFlushed,
    count: () => mirrored.size,
    quarantined: () => quarantine.size,
    lastQuarantineReason: () => (quarantine.size === 0 ? undefined : lastReason),
    status: () => reflector.status(),
    ended: reflector.done,
  };
}
