/**
 * Publishes this node and its endpoints under `clustermesh/nodes/<node>/` in the local etcd: a full compare at every connect, so
 * that a wiped etcd is filled again and a leftover of an earlier life is removed. Never waited for.
 */
import {
  type EndpointRecord,
  endpointRecordKey,
  type NodeRecord,
  nodeRecordKey,
  nodeRecordPrefix,
  nodeSyncedKey,
  rfc3339,
} from '@clustermesh/contract';
import { type Etcd, startWriter } from '@clustermesh/kvstore';
import type { Clock, Log } from '@clustermesh/runtime';

export interface EndpointPublisher {
  set(endpoint: EndpointRecord): void;
  delete(id: string): void;
  /** The endpoints set so far are all there are: leftovers may go, and readers may rely on absence. */
  complete(): void;
  /** Of the writer: keys still to be written, and those that etcd refuses. */
  status(): { readonly pending: number; readonly refused: number };
  problems(): string[];
}

export function startPublisher(options: {
  readonly etcd: Etcd;
  readonly node: NodeRecord;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}): EndpointPublisher {
  const { node, clock } = options;
  const prefix = nodeRecordPrefix(node.name);
  const writer = startWriter({ etcd: options.etcd, owned: [prefix], log: options.log, clock, signal: options.signal });
  let isComplete = false;
  writer.set(nodeRecordKey(node.name), JSON.stringify(node));
  return {
    set: (endpoint) => writer.set(endpointRecordKey(node.name, endpoint.id), JSON.stringify(endpoint)),
    delete: (id) => writer.delete(endpointRecordKey(node.name, id)),
    complete() {
      if (isComplete) return;
      isComplete = true;
      writer.ready(prefix);
      writer.canary(nodeSyncedKey(node.name), () => rfc3339(clock.wallMs()));
    },
    status: () => ({ pending: writer.status().pending, refused: writer.status().errors.length }),
    problems: () => writer.status().errors.map((error) => `publishing ${error.key}: ${error.reason}`),
  };
}
