/**
 * This cluster's services, slices, namespaces and policies, as its apiserver wrote them: `clustermesh/local/<family>/`, each behind
 * its canary.
 */
import {
  decodeLocalNamespace,
  decodeLocalPolicy,
  decodeLocalService,
  decodeLocalSlice,
  LOCAL_FAMILIES,
  type LocalFamily,
  type LocalNamespace,
  type LocalPolicy,
  type LocalService,
  type LocalSlice,
  localCanaryKey,
  localPrefix,
} from '@clustermesh/contract';
import type { Etcd } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import { type Family, startFamily } from './family.ts';
import type { MeshSink } from './types.ts';

export type OwnCluster = Readonly<Record<LocalFamily, Family>>;

export function startOwnCluster(options: {
  readonly etcd: Etcd;
  readonly sink: Pick<MeshSink, 'service' | 'slice' | 'namespace' | 'policy'>;
  readonly onBatch: (family: LocalFamily) => void;
  readonly onSynced: (family: LocalFamily) => void;
  readonly log: Log;
  readonly signal: AbortSignal;
}): OwnCluster {
  const { etcd, sink, log, signal } = options;
  const decode = {
    services: decodeLocalService,
    endpointslices: decodeLocalSlice,
    namespaces: decodeLocalNamespace,
    policies: decodeLocalPolicy,
  };
  const onRow: { [F in LocalFamily]: (name: string, value: never) => void } = {
    services: (name: string, value: LocalService | undefined) => sink.service(name, value),
    endpointslices: (name: string, value: LocalSlice | undefined) => sink.slice(name, value),
    namespaces: (name: string, value: LocalNamespace | undefined) => sink.namespace(name, value),
    policies: (name: string, value: LocalPolicy | undefined) => sink.policy(name, value),
  };
  return Object.fromEntries(
    LOCAL_FAMILIES.map((family) => [
      family,
      startFamily({
        etcd,
        prefix: localPrefix(family),
        canaryKey: localCanaryKey(family),
        log: log.child({ family }),
        signal,
        decode: (_name, value) => decode[family](value.toString('utf8')),
        onRow: onRow[family] as (name: string, value: unknown) => void,
        onBatch: () => options.onBatch(family),
        onSynced: () => options.onSynced(family),
      }),
    ]),
  ) as Record<LocalFamily, Family>;
}
