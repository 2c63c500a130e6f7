/** Rows of the kernel's policy maps, as the agent sees them. */
import type { PolicyDirection } from '@clustermesh/contract';

/** Key: `policyRowKey`. What an endpoint's policies say about one peer and some of its ports. */
export interface PolicyRow {
  /** Of the pod whose policies these are. */
  readonly endpointId: number;
  readonly direction: PolicyDirection;
  /** Who the pod talks with; 0: whoever it is. */
  readonly identity: number;
  /** IP protocol number; 0: any. */
  readonly protocol: number;
  /** The receiving port's first `portBits` bits (host order). ICMP: type × 256, 8 bits. */
  readonly port: number;
  readonly portBits: number;
  readonly deny: boolean;
}

/** Key: `endpointId`, as text. Whether an endpoint's rows are asked at all. */
export interface PolicyStateRow {
  readonly endpointId: number;
  /** Rows are asked in this direction; a flow that none of them allows is denied. */
  readonly ingress: boolean;
  readonly egress: boolean;
  /** Nothing passes: what the kernel has of the endpoint's policies is not enough to judge by. */
  readonly locked: boolean;
  /** Another one than before: flows that were judged are judged again. Never 0. */
  readonly revision: number;
}

export const policyRowKey = (row: PolicyRow): string =>
  `${row.endpointId}/${row.direction}/${row.identity}/${row.protocol}/${row.port}/${row.portBits}`;

export const samePolicyRow = (a: PolicyRow, b: PolicyRow): boolean =>
  a.deny === b.deny && policyRowKey(a) === policyRowKey(b);

export const samePolicyState = (a: PolicyStateRow, b: PolicyStateRow): boolean =>
  a.endpointId === b.endpointId &&
  a.ingress === b.ingress &&
  a.egress === b.egress &&
  a.locked === b.locked &&
  a.revision === b.revision;
