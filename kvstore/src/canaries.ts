/** Keys that promise to readers that all that was wanted before them is in etcd. */

interface Canary {
  readonly value: () => string;
  /** The first pass after which it may be written: it began after the canary was asked for. */
  readonly fromPass: number;
  isPending: boolean;
}

export class Canaries {
  readonly #canaries = new Map<string, Canary>();

  has(key: string): boolean {
    return this.#canaries.has(key);
  }

  ask(key: string, value: () => string, fromPass: number): void {
    this.#canaries.set(key, { value, fromPass, isPending: true });
  }

  /** True if there was one. */
  delete(key: string): boolean {
    return this.#canaries.delete(key);
  }

  /** To be written again: what they promise may have been untrue meanwhile. */
  renew(): void {
    for (const canary of this.#canaries.values()) canary.isPending = true;
  }

  *pending(): Generator<string, void, void> {
    for (const [key, { isPending }] of this.#canaries) if (isPending) yield key;
  }

  /** After a pass that has written everything: what was set while it went on belongs to the next one's promise. */
  async write(pass: number, put: (key: string, value: Buffer) => Promise<unknown>): Promise<void> {
    for (const [key, canary] of this.#canaries) {
      if (!canary.isPending || canary.fromPass > pass) continue;
      canary.isPending = false;
      try {
        await put(key, Buffer.from(canary.value()));
      } catch (error) {
        canary.isPending = true;
        throw error;
      }
    }
  }
}
