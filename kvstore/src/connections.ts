import { MeshError } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import { Connection, type ConnectionSettings } from './connection.ts';
import type { Target } from './endpoints.ts';
import { cancelled } from './errors.ts';
import type { WireHeader } from './proto.ts';
import type { EtcdEvent } from './types.ts';

export interface ConnectionsOptions extends ConnectionSettings {
  readonly targets: readonly Target[];
  readonly log: Log;
}

function shuffled<T>(items: readonly T[]): T[] {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [result[i], result[j]] = [result[j]!, result[i]!];
  }
  return result;
}

/**
 * At most one live connection, built on demand; callers that need one while it is being built share the attempt. Also the memory
 * across connections: which etcd answered last, and how far its revision was.
 */
export class Connections {
  readonly #options: ConnectionsOptions;
  readonly #listeners = new Set<(event: EtcdEvent) => void>();
  readonly #closing = new AbortController();
  #current: Connection | undefined;
  #opening: Promise<Connection> | undefined;
  #built = 0;
  #clusterId: string | undefined;
  #epoch = 0;
  #highestRevision = 0;
  #announced: Connection | undefined;

  constructor(options: ConnectionsOptions) {
    this.#options = options;
  }

  get current(): Connection | undefined {
    return this.#current;
  }
  get clusterId(): string | undefined {
    return this.#clusterId;
  }
  get epoch(): number {
    return this.#epoch;
  }
  /** etcd has answered on the current connection. */
  get answering(): boolean {
    return this.#current !== undefined && this.#announced === this.#current;
  }

  onEvent(listener: (event: EtcdEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  acquire(): Promise<Connection> {
    if (this.#closing.signal.aborted) return Promise.reject(cancelled('using an etcd client that was closed'));
    if (this.#current !== undefined) return Promise.resolve(this.#current);
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }

  /**
   * Called with the header of every answer. `linearizable`: it comes from a request that etcd answered from its newest state, so on
   * a new connection its revision cannot be below what was seen before, unless etcd was restored from a backup or rebuilt with
   * equal flags (then even the cluster id is the same).
   */
  observe(connection: Connection, header: WireHeader, linearizable: boolean): void {
    const revision = Number(header.revision);
    if (
      this.#announced !== connection &&
      connection === this.#current &&
      (linearizable || this.#clusterId === undefined)
    ) {
      const clusterChanged =
        this.#clusterId !== undefined && (this.#clusterId !== header.cluster_id || revision < this.#highestRevision);
      if (clusterChanged) {
        this.#epoch++;
        this.#highestRevision = 0;
        this.#options.log.warn(
          { clusterId: header.cluster_id, before: this.#clusterId, revision },
          'another etcd answers: everything is listed again',
        );
      }
      this.#clusterId = header.cluster_id;
      this.#announced = connection;
      this.#emit({
        type: 'connected',
        connection: connection.number,
        clusterId: header.cluster_id,
        clusterChanged,
        endpoint: connection.target.label,
      });
    }
    if (connection === this.#announced) this.#highestRevision = Math.max(this.#highestRevision, revision);
  }

  close(): void {
    this.#closing.abort();
    this.#current?.fail(cancelled('using an etcd client that was closed'));
    this.#listeners.clear();
  }

  async #open(): Promise<Connection> {
    const failures: MeshError[] = [];
    for (const target of shuffled(this.#options.targets)) {
      try {
        const connection = await Connection.open(++this.#built, target, this.#options, this.#closing.signal);
        this.#adopt(connection);
        return connection;
      } catch (error) {
        failures.push(MeshError.from(error, `connecting to etcd at ${target.label}`));
        if (this.#closing.signal.aborted) break;
      }
    }
    const first = failures[0]!;
    if (failures.length === 1) throw first;
    throw new MeshError({
      code: first.code,
      message: failures.map((failure) => failure.message).join('; '),
      hint: first.hint,
      cause: first,
      retryable: true,
    });
  }

  #adopt(connection: Connection): void {
    this.#current = connection;
    connection.onLost((reason) => {
      if (this.#current === connection) this.#current = undefined;
      if (this.#announced === connection)
        this.#emit({ type: 'disconnected', connection: connection.number, reason: reason.message });
    });
  }

  #emit(event: EtcdEvent): void {
    for (const listener of [...this.#listeners]) listener(event);
  }
}
