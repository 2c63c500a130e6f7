/** The policy maps as tables: rows of the trie, and the state of each endpoint. */
import { CmPolicyDirection, type CmPolicyKey, type CmPolicyState, type CmPolicyVerdict } from '@clustermesh/bpf';
import type { PolicyDirection } from '@clustermesh/contract';
import { type PolicyRow, type PolicyStateRow, policyRowKey } from '../policy/types.ts';
import type { BpfMap } from './bpf-map.ts';
import { table } from './tables.ts';
import type { MapOps } from './types.ts';

/** See `struct cm_policy_key`: how much of the key a row fixes. */
const KEY_BITS = 96;
const PROTOCOL_BITS = 8;
const PORT_BITS = 16;

const FLAGS = { ingress: 1, egress: 2, locked: 4 } as const;

const DIRECTION: Readonly<Record<PolicyDirection, number>> = {
  ingress: CmPolicyDirection.INGRESS,
  egress: CmPolicyDirection.EGRESS,
};

/** The parts of `policyRowKey`. */
function toKey(text: string): CmPolicyKey {
  const [endpointId = '', direction = '', identity = '', protocol = '', port = '', portBits = ''] = text.split('/');
  const proto = Number(protocol);
  const fixed = proto === 0 ? KEY_BITS - PORT_BITS - PROTOCOL_BITS : KEY_BITS - PORT_BITS + Number(portBits);
  return {
    prefixLen: fixed,
    endpointId: Number(endpointId),
    identity: Number(identity),
    direction: DIRECTION[direction as PolicyDirection],
    proto,
    port: Number(port),
  };
}

function fromKey(key: CmPolicyKey, { deny }: CmPolicyVerdict): PolicyRow {
  return {
    endpointId: key.endpointId,
    direction: key.direction === CmPolicyDirection.INGRESS ? 'ingress' : 'egress',
    identity: key.identity,
    protocol: key.proto,
    port: key.port,
    portBits: Math.max(0, key.prefixLen - (KEY_BITS - PORT_BITS)),
    deny: deny !== 0,
  };
}

export function policyTable(map: BpfMap<CmPolicyKey, CmPolicyVerdict>): MapOps<PolicyRow> {
  return table({
    name: 'policy row',
    map,
    keyOf: policyRowKey,
    encodeKey: toKey,
    encode: ({ deny }) => ({ deny: deny ? 1 : 0 }),
    decode: fromKey,
  });
}

/** An array has all its rows always: one that nothing was ever said about (revision 0) is not listed, none is ever removed. */
export function policyStateTable(map: BpfMap<number, CmPolicyState>): MapOps<PolicyStateRow> {
  const ops = table<PolicyStateRow, number, CmPolicyState>({
    name: 'policy state',
    map,
    keyOf: ({ endpointId }) => String(endpointId),
    encodeKey: Number,
    encode: ({ revision, ingress, egress, locked }) => ({
      revision,
      flags: (ingress ? FLAGS.ingress : 0) | (egress ? FLAGS.egress : 0) | (locked ? FLAGS.locked : 0),
    }),
    decode: (endpointId, { revision, flags }) => ({
      endpointId,
      ingress: (flags & FLAGS.ingress) !== 0,
      egress: (flags & FLAGS.egress) !== 0,
      locked: (flags & FLAGS.locked) !== 0,
      revision,
    }),
  });
  const scan = (visit: (key: string, row: PolicyStateRow) => void) =>
    ops.scan((key, row) => {
      if (row.revision !== 0) visit(key, row);
    });
  return {
    ...ops,
    scan,
    async list() {
      const rows = new Map<string, PolicyStateRow>();
      await scan((key, row) => void rows.set(key, row));
      return rows;
    },
    remove: async (keys) => keys.map((key) => ({ key })),
  };
}
