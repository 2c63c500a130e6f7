/** The service tables as the kernel has them: rows, slots and backends put together into services again. */
import type { CmBackend, CmBlock, CmBlockKey, CmMemberKey, CmService, CmServiceKey } from '@clustermesh/bpf';
import type { BpfMap } from './bpf-map.ts';
import { fromProtocol, fromScope, toScope } from './rows.ts';
import { digestOf, fromBlocks, weightsFrom } from './slots.ts';
import { type Backend, type Protocol, type ServiceRow, serviceKey } from './types.ts';

export interface ServiceMaps {
  cm_services: BpfMap<CmServiceKey, CmService>;
  cm_slots: BpfMap<CmBlockKey, CmBlock>;
  cm_members: BpfMap<CmMemberKey, number>;
  cm_backends: BpfMap<number, CmBackend>;
}

/** A service as it is in force. */
export interface Programmed {
  /** As the kernel has it: a foreign row may have a scope or protocol that no frontend of ours stands for. */
  kernelKey: CmServiceKey;
  id: number;
  generation: number;
  row: ServiceRow;
  /** Ids of the row's backends, then of those that drain. */
  backends: number[];
  /** Slots that are drawn from. */
  count: number;
  /** Ids of the backends that have slots. */
  members: number[];
  /** Numbers of the blocks that its slots lie in. */
  blocks: number[];
  /** Of the ids in all slots. */
  digest: string;
  /** Every slot that the row promises leads to a backend, and members are what they should be. */
  isWhole: boolean;
  /** Another service has this id too: one of the two rows is not ours. */
  isIdShared: boolean;
}

export interface KernelServices {
  services: Map<string, Programmed>;
  /** Blocks by the set that they belong to. */
  sets: Map<string, Map<number, CmBlock>>;
  backends: Map<number, CmBackend>;
  /** Members of no service in force. */
  strayMembers: CmMemberKey[];
}

/** What a service's slots stand under. */
export const setOf = (id: number, generation: number): string => `${id}/${generation}`;

export const fromBackend = ({ addr, port, clusterId }: CmBackend): Backend => ({ ip: addr, port, clusterId });

const memberName = ({ serviceId, backendId }: CmMemberKey): string => `${serviceId}/${backendId}`;

/** The row as its slots tell it: whole backends, weights only as far as slots show them. */
function rowOf(
  { kernelKey, value }: { kernelKey: CmServiceKey; value: CmService },
  ids: Uint32Array,
  backends: ReadonlyMap<number, CmBackend>,
) {
  const { flags, affinityS } = value;
  // Not by counting up to `count`: in a foreign row it may be any number.
  const isOurs = (id: number): boolean => backends.get(id)?.proto === kernelKey.proto;
  const drawn = new Map<number, number>();
  for (const id of ids.subarray(0, value.count)) if (isOurs(id)) drawn.set(id, (drawn.get(id) ?? 0) + 1);
  const draining = [...new Set(ids.subarray(value.count))].filter((id) => isOurs(id) && !drawn.has(id));
  const weights = weightsFrom([...drawn.values()]);
  const row: ServiceRow = {
    frontend: {
      ip: kernelKey.addr,
      port: kernelKey.port,
      protocol: fromProtocol(kernelKey.proto) as Protocol,
      ...fromScope(kernelKey.scope),
    },
    flags,
    backends: [...drawn.keys()].map((id, i) => {
      const weight = weights[i];
      return { ...fromBackend(backends.get(id)!), ...(weight === undefined ? {} : { weight }) };
    }),
    ...(draining.length === 0 ? {} : { draining: draining.map((id) => fromBackend(backends.get(id)!)) }),
    ...(affinityS === 0 ? {} : { affinitySeconds: affinityS }),
  };
  const isWhole = ids.length === value.count + draining.length && ids.every(isOurs);
  return { row, ids: [...drawn.keys(), ...draining], isWhole };
}

/** `known`: what was written last. Where the kernel still holds exactly that, its row says more than slots can tell. */
export async function readServices(maps: ServiceMaps, known: ReadonlyMap<string, Programmed>): Promise<KernelServices> {
  const backends = new Map(await maps.cm_backends.entries());
  const sets = new Map<string, Map<number, CmBlock>>();
  await maps.cm_slots.scan(({ serviceId, generation, block }, value) => {
    const set = setOf(serviceId, generation);
    const of = sets.get(set) ?? new Map<number, CmBlock>();
    sets.set(set, of.set(block, value));
  });
  const members = new Map((await maps.cm_members.entries()).map(([key]) => [memberName(key), key]));
  const strays = new Map(members);

  const services = new Map<string, Programmed>();
  const byId = new Map<number, Programmed>();
  for (const [kernelKey, value] of await maps.cm_services.entries()) {
    const { id, generation, count } = value;
    const blocks = sets.get(setOf(id, generation)) ?? new Map<number, CmBlock>();
    const slots = fromBlocks(blocks);
    const read = rowOf({ kernelKey, value }, slots, backends);
    const isForeign = kernelKey.scope !== toScope(read.row.frontend.scope);
    const key = serviceKey(read.row.frontend) + (isForeign ? `/${kernelKey.scope}` : '');
    const digest = digestOf(slots);
    const expected = [...new Set(slots.subarray(0, count))];
    const written = known.get(key);
    const isAsWritten =
      read.isWhole &&
      written?.id === id &&
      written.generation === generation &&
      written.count === count &&
      written.digest === digest &&
      written.row.flags === value.flags &&
      (written.row.affinitySeconds ?? 0) === value.affinityS &&
      written.backends.every((backend, i) => isSameBackend(backends.get(backend), written, i));
    const programmed: Programmed = {
      kernelKey,
      id,
      generation,
      row: isAsWritten ? written.row : read.row,
      backends: isAsWritten ? written.backends : read.ids,
      count,
      members: expected,
      blocks: [...blocks.keys()],
      digest,
      isWhole: read.isWhole && expected.every((backendId) => members.has(memberName({ serviceId: id, backendId }))),
      isIdShared: false,
    };
    for (const backendId of expected) strays.delete(memberName({ serviceId: id, backendId }));
    const twin = byId.get(id);
    if (twin !== undefined) twin.isIdShared = programmed.isIdShared = true;
    byId.set(id, programmed);
    services.set(key, programmed);
  }
  return { services, sets, backends, strayMembers: [...strays.values()] };
}

function isSameBackend(value: CmBackend | undefined, { row }: Programmed, i: number): boolean {
  const backend = row.backends[i] ?? row.draining?.[i - row.backends.length];
  return (
    value !== undefined &&
    value.addr === backend?.ip &&
    value.port === backend.port &&
    value.clusterId === backend.clusterId
  );
}
