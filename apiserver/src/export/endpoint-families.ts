/** Hands what has changed of nodes, identities and addresses to the writer, stamped; and all of it at once where leftovers may be there. */
import type { WireFamily } from '@clustermesh/contract';
import type { Writer } from '@clustermesh/kvstore';
import type { NodesDelta } from '../sources/nodes/node-table.ts';
import { ENDPOINT_FAMILIES, type EndpointFamily, EndpointProjection } from './endpoint-projection.ts';
import type { ExportingCluster } from './endpoints.ts';
import { stampChanges } from './stamp.ts';

export interface EndpointFamiliesOptions {
  readonly cluster: ExportingCluster;
  readonly writer: Pick<Writer, 'set' | 'delete' | 'replace'>;
  readonly prefix: (family: EndpointFamily) => string;
  readonly wallMs: () => number;
}

export class EndpointFamilies {
  readonly #options: EndpointFamiliesOptions;
  readonly #projection: EndpointProjection;
  /** What is desired has no leftover of an earlier process: from here on changes are all there is to do. */
  #isWhole = false;

  constructor(options: EndpointFamiliesOptions) {
    this.#options = options;
    this.#projection = new EndpointProjection(options.cluster);
  }

  /** Endpoints of this cluster, exported or not. */
  get size(): number {
    return this.#projection.size;
  }

  problems(): readonly string[] {
    return this.#projection.problems();
  }

  /** `stamped`: values as they are in etcd or will be. While the nodes are not complete nothing is removed. */
  write(
    nodes: NodesDelta,
    isGlobalNamespace: (namespace: string) => boolean,
    stamped: Map<WireFamily, Map<string, string>>,
  ): void {
    this.#projection.apply(nodes, isGlobalNamespace);
    const isFirst = nodes.complete && !this.#isWhole;
    this.#isWhole = nodes.complete;
    for (const family of ENDPOINT_FAMILIES) {
      const before = stamped.get(family) ?? new Map<string, string>();
      stamped.set(family, before);
      if (isFirst) this.#writeAll(family, stamped, before);
      else this.#writeChanges(family, before, nodes.complete);
    }
  }

  #writeAll(family: EndpointFamily, stamped: Map<WireFamily, Map<string, string>>, before: Map<string, string>): void {
    this.#projection.takeChanges(family);
    const values = this.#stamp(family, this.#projection.rows[family], before);
    stamped.set(family, values);
    this.#options.writer.replace(this.#options.prefix(family), values);
  }

  #writeChanges(family: EndpointFamily, before: Map<string, string>, mayRemove: boolean): void {
    const { writer } = this.#options;
    const upserts = new Map<string, string>();
    for (const [key, value] of this.#projection.takeChanges(family)) {
      if (value !== undefined) upserts.set(key, value);
      else if (mayRemove) {
        before.delete(key);
        writer.delete(key);
      }
    }
    for (const [key, value] of this.#stamp(family, upserts, before)) {
      before.set(key, value);
      writer.set(key, value);
    }
  }

  /** Identities are label strings and carry no stamp. */
  #stamp(
    family: EndpointFamily,
    rows: ReadonlyMap<string, string>,
    before: ReadonlyMap<string, string>,
  ): Map<string, string> {
    return family === 'identities' ? new Map(rows) : stampChanges(rows, before, this.#options.wallMs());
  }
}
