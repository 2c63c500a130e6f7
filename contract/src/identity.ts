/** Numeric security identities and their ranges: wire-contract §2.1, §2.2. */
import type { MaxConnectedClusters } from './names.ts';

export const RESERVED_IDENTITY = {
  unknown: 0,
  host: 1,
  world: 2,
  unmanaged: 3,
  health: 4,
  init: 5,
  remoteNode: 6,
  kubeApiserver: 7,
  ingress: 8,
  worldIpv4: 9,
  worldIpv6: 10,
} as const;

/** First number that an allocator may hand out. */
export const FIRST_ALLOCATABLE = 256;

export type IdentityShift = 16 | 15;

/** How many low bits number an identity inside its cluster. */
export function identityShift(max: MaxConnectedClusters): IdentityShift {
  return max === 255 ? 16 : 15;
}

export interface IdentityRange {
  /** First usable number, inclusive. */
  readonly first: number;
  /** Last usable number, inclusive. */
  readonly last: number;
}

/** The numbers that belong to `clusterId`; cluster 0 is "no mesh" (256 … 65535 or 32767). */
export function identityRange(clusterId: number, max: MaxConnectedClusters): IdentityRange {
  const shift = identityShift(max);
  const first = clusterId << shift;
  return { first: clusterId === 0 ? FIRST_ALLOCATABLE : first, last: first + (1 << shift) - 1 };
}

export function isReservedIdentity(id: number): boolean {
  return id < FIRST_ALLOCATABLE;
}

export function isIdentityOf(id: number, clusterId: number, max: MaxConnectedClusters): boolean {
  const range = identityRange(clusterId, max);
  return id >= range.first && id <= range.last;
}

/** The cluster that a global identity belongs to; reserved ones belong to none (0). */
export function clusterOfIdentity(id: number, max: MaxConnectedClusters): number {
  return id >>> identityShift(max);
}
