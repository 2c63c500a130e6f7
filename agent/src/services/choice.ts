/**
 * A cluster may publish the backends of a service in two forms: one value with all of them ("legacy"), and endpoint slices. Which one
 * is taken here. Pure.
 *
 *                        only one has the service │ both have it
 *   prefer-legacy        that one                 │ legacy, unless it is behind the slices
 *   prefer-endpointslice that one                │ slices
 *   only-endpointslice   slices                   │ slices
 *
 * "Behind": its publisher says that the service has outgrown it (`outgrownAt`), or it lacks a backend that the slices have. Cilium
 * says no such thing: etcd refuses its value, and the last one that fitted stays. Slices are set against a legacy value only once all
 * of that cluster's are known: a part of them is no reason to leave a whole.
 */
import type { BackendGroup } from './groups.ts';

/** As Cilium's `--clustermesh-service-v2`. */
export const SERVICE_V2 = ['prefer-legacy', 'prefer-endpointslice', 'only-endpointslice'] as const;
export type ServiceV2 = (typeof SERVICE_V2)[number];

export interface LegacyForm {
  readonly groups: readonly BackendGroup[];
  readonly outgrownAt: string | undefined;
}

export interface PublishedForms {
  readonly legacy: LegacyForm | undefined;
  /** One group per slice. */
  readonly slices: readonly BackendGroup[];
  /** The cluster's slices are known, all of them. */
  readonly areSlicesHeard: boolean;
}

export function chooseForm(
  preference: ServiceV2,
  { legacy, slices, areSlicesHeard }: PublishedForms,
): 'legacy' | 'slices' {
  if (preference === 'only-endpointslice' || legacy === undefined) return 'slices';
  if (!areSlicesHeard || slices.length === 0) return 'legacy';
  if (preference === 'prefer-endpointslice' || legacy.outgrownAt !== undefined) return 'slices';
  return lacksAny(legacy.groups, slices) ? 'slices' : 'legacy';
}

function lacksAny(groups: readonly BackendGroup[], slices: readonly BackendGroup[]): boolean {
  const known = new Set<string>();
  for (const group of groups) for (const ip of group.active) known.add(ip);
  return slices.some((slice) => [slice.active, slice.terminating].some((ips) => ips.some((ip) => !known.has(ip))));
}
