/**
 * Label set ↔ number, agreed between all agents of a cluster through etcd alone: one create-only transaction writes both keys,
 *
 *   clustermesh/identities/id/<n>          = <labels>
 *   clustermesh/identities/value/<labels>  = <n>
 *
 * so of two agents racing for one label set (or for one number) exactly one writes, and the other reads what it wrote.
 */
import {
  FIRST_ALLOCATABLE,
  IDENTITIES_PREFIX,
  identityByIdKey,
  identityByLabelsKey,
  identityRange,
  type MaxConnectedClusters,
  MeshError,
} from '@clustermesh/contract';
import type { Etcd, KeyValue } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';

export interface Registration {
  readonly identity: number;
  /** Why the preferred number could not be had. */
  readonly instead?: string;
}

export interface IdentityAllocator {
  /** The number of a label set, allocated if it has none. `preferred` is what this node has been using for it. */
  register(labels: string, preferred?: number): Promise<Registration>;
}

export interface AllocatorOptions {
  readonly etcd: Etcd;
  readonly clusterId: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
  readonly log: Log;
  /** 0 ≤ x < 1; for tests. */
  readonly random?: () => number;
}

const REQUEST_TIMEOUT_MS = 3_000;
/** Numbers tried blindly before asking etcd which are free. */
const BLIND_TRIES = 4;
/** Rounds before giving up for now: each lost round means that another agent made progress. */
const MAX_ROUNDS = 32;

export function createAllocator(options: AllocatorOptions): IdentityAllocator {
  const { etcd, log } = options;
  const random = options.random ?? Math.random;
  const range = identityRange(options.clusterId, options.maxConnectedClusters);
  const first = Math.max(range.first, FIRST_ALLOCATABLE);
  const size = range.last - first + 1;
  const inRange = (id: number) => Number.isInteger(id) && id >= first && id <= range.last;
  const call = { timeoutMs: REQUEST_TIMEOUT_MS };

  /** A free number that etcd confirms, from a random start. */
  async function pickFree(): Promise<number> {
    const prefix = `${IDENTITIES_PREFIX}id/`;
    const taken = new Set((await etcd.range(prefix, call)).kvs.map((kv) => Number(kv.key.slice(prefix.length))));
    const start = Math.floor(random() * size);
    for (let step = 0; step < size; step++) {
      const id = first + ((start + step) % size);
      if (!taken.has(id)) return id;
    }
    throw new MeshError({
      code: 'exhausted',
      message: `allocating an identity: all ${size} numbers of cluster ${options.clusterId} (${first}…${range.last}) are taken`,
      hint: 'identities are never freed by themselves: delete those of label sets that no pod has, under clustermesh/identities/ (both id/<n> and value/<labels>)',
    });
  }

  /** The number that `value/<labels>` names, if its `id/<n>` agrees or can be made to. */
  async function confirm(labels: string, value: KeyValue): Promise<number | undefined> {
    const id = Number(value.value.toString());
    const idKey = identityByIdKey(id);
    if (inRange(id)) {
      const holder = await etcd.get(idKey, call);
      if (holder?.value.toString() === labels) return id;
      if (holder === undefined) {
        // Half a pair (a foreign delete): mend it, unless someone takes the number at this moment.
        const mended = await etcd.createOnly(new Map([[idKey, labels]]), call);
        return mended.created || mended.existing[0]?.value.toString() === labels ? id : undefined;
      }
    }
    log.warn({ labels, identity: id }, 'identity record is no good: removing it');
    await etcd.txn(
      { compare: [{ key: value.key, modRevision: value.modRevision }], success: [{ delete: value.key }] },
      call,
    );
    return undefined;
  }

  return {
    async register(labels, preferred) {
      const valueKey = identityByLabelsKey(labels);
      let instead: string | undefined;
      let candidate = preferred !== undefined && inRange(preferred) ? preferred : undefined;
      for (let round = 0; round < MAX_ROUNDS; round++) {
        const isPreferred = candidate !== undefined;
        const id = candidate ?? (round < BLIND_TRIES ? first + Math.floor(random() * size) : await pickFree());
        candidate = undefined;
        const { created, existing } = await etcd.createOnly(
          new Map([
            [valueKey, String(id)],
            [identityByIdKey(id), labels],
          ]),
          call,
        );
        const result = (identity: number): Registration => {
          const changed = preferred !== undefined && identity !== preferred;
          return changed
            ? { identity, instead: instead ?? `etcd has identity ${identity} for these labels` }
            : { identity };
        };
        if (created) return result(id);
        const [value, holder] = existing;
        if (value !== undefined) {
          const confirmed = await confirm(labels, value);
          if (confirmed !== undefined) return result(confirmed);
        } else if (holder?.value.toString() === labels) {
          // The other half of a broken pair.
          const mended = await etcd.createOnly(new Map([[valueKey, String(id)]]), call);
          if (mended.created) return result(id);
        } else if (isPreferred) {
          instead = `identity ${id} belongs to other labels by now`;
        }
      }
      throw new MeshError({
        code: 'conflict',
        message: `allocating an identity for ${JSON.stringify(labels)}: lost ${MAX_ROUNDS} rounds against other agents`,
        retryable: true,
      });
    },
  };
}
