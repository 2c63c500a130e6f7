/**
 * Which peer holds which cluster id. The first one stays undisturbed, also across a restart: what is mirrored already counts as
 * reserved, because its identities and addresses are in the kernels of this cluster.
 */
import { CLUSTER_CONFIG_PREFIX, decodeClusterConfig } from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';

export class ClusterIds {
  readonly #ids = new Map<string, number>();
  #seeded = false;

  /** Reads what is mirrored, once. Throws while the local etcd is away. */
  async seed(local: Etcd, own: string, signal: AbortSignal): Promise<void> {
    if (this.#seeded) return;
    const { kvs } = await local.range(CLUSTER_CONFIG_PREFIX, { signal });
    if (this.#seeded) return;
    for (const kv of kvs) {
      const cluster = kv.key.slice(CLUSTER_CONFIG_PREFIX.length);
      const config = decodeClusterConfig(kv.value.toString('utf8'));
      if (cluster !== own && config.ok && config.value.capabilities.cached === true)
        this.#ids.set(cluster, config.value.id);
    }
    this.#seeded = true;
  }

  /** The id under which a peer's data is mirrored here. */
  idOf(cluster: string): number | undefined {
    return this.#ids.get(cluster);
  }

  /** Undefined when `cluster` has the id now, else the cluster that holds it. */
  reserve(id: number, cluster: string): string | undefined {
    for (const [holder, held] of this.#ids) if (held === id && holder !== cluster) return holder;
    this.#ids.set(cluster, id);
    return undefined;
  }

  release(cluster: string): void {
    this.#ids.delete(cluster);
  }
}
