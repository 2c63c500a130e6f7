/** `cilium/state/identities/v1/id/<n>`: number → label string (wire-contract §1.5). */
import { accept, type Decoded, reject } from './decoded.ts';
import { isIdentityOf } from './identity.ts';
import { CLUSTER_LABEL, parseLabels } from './labels.ts';
import type { MaxConnectedClusters } from './names.ts';

export interface IdentityEntry {
  readonly id: number;
  /** The label string exactly as published. */
  readonly labels: string;
}

export interface IdentityExpectation {
  readonly cluster: string;
  readonly clusterId: number;
  readonly maxConnectedClusters: MaxConnectedClusters;
}

/** Decodes and checks: decimal number in the peer's range, and the peer's own cluster label. */
export function decodeIdentityEntry(name: string, text: string, expected: IdentityExpectation): Decoded<IdentityEntry> {
  if (!/^[1-9]\d{0,9}$/.test(name)) return reject(`identity key ${JSON.stringify(name)} is no decimal number`);
  const id = Number(name);
  if (!isIdentityOf(id, expected.clusterId, expected.maxConnectedClusters)) {
    return reject(`identity ${id} is not in the range of cluster ${expected.cluster} (id ${expected.clusterId})`);
  }
  const labels = parseLabels(text);
  if (labels === undefined) return reject(`identity ${id} has a malformed label string`);
  const cluster = labels.find((label) => label.key === CLUSTER_LABEL && label.source === 'k8s')?.value;
  if (cluster !== expected.cluster)
    return reject(`identity ${id} has cluster label ${JSON.stringify(cluster)}, expected ${expected.cluster}`);
  return accept({ id, labels: text });
}
