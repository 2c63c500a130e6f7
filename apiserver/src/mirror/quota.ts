/** How much of one peer is taken: a bound on what a stranger can put into this cluster's etcd and memory (reliability F25). */
import { mib } from '../limits.ts';

export interface PeerLimits {
  readonly maxKeys: number;
  readonly maxBytes: number;
}

export class Quota {
  readonly #limits: PeerLimits;
  #keys = 0;
  #bytes = 0;

  constructor(limits: PeerLimits) {
    this.#limits = limits;
  }

  get keys(): number {
    return this.#keys;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Undefined when there was room, else why there is none; then nothing is counted. */
  take(keys: number, bytes: number): string | undefined {
    const { maxKeys, maxBytes } = this.#limits;
    if (keys > 0 && this.#keys + keys > maxKeys)
      return `it has more than the ${maxKeys} objects that are taken of one peer`;
    if (bytes > 0 && this.#bytes + bytes > maxBytes)
      return `its data has more than the ${mib(maxBytes)} that are taken of one peer`;
    this.#keys += keys;
    this.#bytes += bytes;
    return undefined;
  }

  /** Everything is counted anew, by a new list. */
  reset(): void {
    this.#keys = 0;
    this.#bytes = 0;
  }
}
