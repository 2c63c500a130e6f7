import type { Etcd, Lease } from './types.ts';

export interface LeasePoolOptions {
  readonly etcd: Pick<Etcd, 'lease'>;
  readonly ttlSeconds: number;
  readonly maxKeysPerLease: number;
  /** A lease is gone, and these keys with it; they keep their place on the lease that was granted instead. */
  readonly onLost: (keys: ReadonlySet<string>) => void;
}

interface Slot {
  readonly lease: Lease;
  readonly keys: Set<string>;
}

/**
 * As many leases as the keys need. A key stays on its lease for as long as it is wanted, so that the accounting cannot drift: a
 * slot's `keys` are all that may hang on its lease, and only `assign` and `release` change them.
 */
export class LeasePool {
  readonly #options: LeasePoolOptions;
  readonly #slots = new Set<Slot>();
  readonly #slotOf = new Map<string, Slot>();

  constructor(options: LeasePoolOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#slots.size;
  }

  idOf(key: string): string | undefined {
    return this.#slotOf.get(key)?.lease.id;
  }

  /** Grants what is missing; afterwards `idOf` answers for every one of the keys. */
  async assign(keys: Iterable<string>, signal: AbortSignal): Promise<void> {
    for (const key of keys) {
      if (this.#slotOf.has(key)) continue;
      const slot = this.#slotWithRoom() ?? (await this.#grant(signal));
      slot.keys.add(key);
      this.#slotOf.set(key, slot);
    }
  }

  /** The key is not in etcd any more. */
  release(key: string): void {
    this.#slotOf.get(key)?.keys.delete(key);
    this.#slotOf.delete(key);
  }

  /** etcd knows one of the leases no more: finds out which, now. */
  async renewAll(): Promise<void> {
    await Promise.all([...this.#slots].map((slot) => slot.lease.renew()));
  }

  /** Ends leases that hold nothing, but for one. */
  async trim(): Promise<void> {
    for (const slot of [...this.#slots]) {
      if (this.#slots.size === 1) return;
      if (slot.keys.size > 0) continue;
      this.#slots.delete(slot);
      await slot.lease.close();
    }
  }

  /** Not revoked: a daemon that restarts must not look dead to its readers meanwhile. */
  async close(): Promise<void> {
    await Promise.all([...this.#slots].map((slot) => slot.lease.close({ revoke: false })));
  }

  #slotWithRoom(): Slot | undefined {
    for (const slot of this.#slots) if (slot.keys.size < this.#options.maxKeysPerLease) return slot;
    return undefined;
  }

  async #grant(signal: AbortSignal): Promise<Slot> {
    const { etcd, ttlSeconds, onLost } = this.#options;
    const keys = new Set<string>();
    const lease = await etcd.lease({ ttlSeconds, onRegranted: () => onLost(keys) }, { signal });
    const slot = { lease, keys };
    this.#slots.add(slot);
    return slot;
  }
}
