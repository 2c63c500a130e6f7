/** The kernel's side of policies in a few lines, for tests of the compiler: maps in memory, looked up as bpf/lib/policy.h does. */
import { type PolicyDirection, parsePrefix, prefixContains, RESERVED_IDENTITY } from '@clustermesh/contract';
import type { RowSink } from '../reconcile/table.ts';
import type { PolicySinks } from './engine.ts';
import { type PolicyRow, type PolicyStateRow, policyRowKey } from './types.ts';

export type Verdict = 'allowed' | 'denied by a rule' | 'denied by default';

function sink<Row>(rows: Map<string, Row>): RowSink<Row> {
  return { set: (key, row) => void rows.set(key, row), delete: (key) => void rows.delete(key) };
}

export function createPolicyKernel() {
  const rows = new Map<string, PolicyRow>();
  const states = new Map<string, PolicyStateRow>();
  const cidrs = new Map<string, number>();
  const sinks: PolicySinks = {
    rows: sink(rows),
    states: sink(states),
    cidr(prefix, identity) {
      if (identity === undefined) cidrs.delete(prefix);
      else cidrs.set(prefix, identity);
    },
  };

  function longest(endpointId: number, direction: PolicyDirection, identity: number, protocol: number, port: number) {
    const of = { endpointId, direction, identity };
    for (let portBits = 16; portBits >= 0; portBits--) {
      const masked = portBits === 0 ? 0 : port & (0xffff << (16 - portBits)) & 0xffff;
      const row = rows.get(policyRowKey({ ...of, protocol, port: masked, portBits, deny: false }));
      if (row !== undefined) return row;
    }
    return rows.get(policyRowKey({ ...of, protocol: 0, port: 0, portBits: 0, deny: false }));
  }

  return {
    rows,
    states,
    cidrs,
    sinks,
    /** The identity of an address outside the mesh: that of the longest range it lies in. */
    identityOf(address: string): number {
      const at = parsePrefix(address)!;
      const containing = [...cidrs]
        .map(([prefix, id]) => ({ prefix: parsePrefix(prefix)!, id }))
        .filter(({ prefix }) => prefixContains(prefix, at))
        .sort((a, b) => b.prefix.length - a.prefix.length);
      return containing[0]?.id ?? RESERVED_IDENTITY.world;
    },
    /** `port`: of the receiver; for ICMP type × 256. */
    verdict(endpointId: number, direction: PolicyDirection, identity: number, protocol: number, port: number): Verdict {
      if (states.get(String(endpointId))?.[direction] !== true) return 'allowed';
      const found = [identity, 0].map((id) => longest(endpointId, direction, id, protocol, port));
      if (found.some((row) => row?.deny === true)) return 'denied by a rule';
      return found.some((row) => row !== undefined) ? 'allowed' : 'denied by default';
    },
  };
}
