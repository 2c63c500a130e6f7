/**
 * The service tables: cm_services → cm_slots → cm_backends (see bpf/lib/lb.h for what the programs rely on).
 *
 * Ids belong to this module. They are read back from the kernel when it opens, so that a restart renumbers nothing; an id
 * is freed when no row uses it, and numbers are taken upwards so that a freed one is not used again soon.
 *
 * A change of a service is a swap: new backends, all slots of a new generation, then the service row (this is the moment
 * that clients see), then the old slots, then backends that nobody uses. Whatever is interrupted in between leaves either
 * the old set or the new one in force; open() sweeps what is left over.
 */
import type { CmBackend, CmService, CmServiceKey, CmSlotKey } from '@clustermesh/bpf';
import { MeshError, numberToIpv4 } from '@clustermesh/contract';
import type { BpfMap } from './bpf-map.ts';
import { backendKey, checkFrontend, fromProtocol, toIpv4, toProtocol } from './rows.ts';
import { serializer } from './serializer.ts';
import {
  type Backend,
  type Frontend,
  type MapOps,
  type OpResult,
  type Protocol,
  type ServiceRow,
  serviceKey,
} from './types.ts';

export interface ServiceMaps {
  cm_services: BpfMap<CmServiceKey, CmService>;
  cm_slots: BpfMap<CmSlotKey, number>;
  cm_backends: BpfMap<number, CmBackend>;
}

/** A service as it is in force. */
interface Programmed {
  id: number;
  generation: number;
  row: ServiceRow;
  /** Backend id of each slot. */
  slots: number[];
}

/** A swap under way. `error` takes it out of the following steps. */
interface Swap {
  key: string;
  before: Programmed | undefined;
  after: Programmed;
  error?: MeshError;
}

export interface ServiceTable extends MapOps<ServiceRow> {
  dump(): Promise<object[]>;
  dumpBackends(): Promise<object[]>;
}

/** Numbers taken upwards from the highest known. */
function counter(taken: Iterable<number>): () => number {
  let last = 0;
  for (const n of taken) last = Math.max(last, n);
  return () => ++last;
}

export async function openServices(maps: ServiceMaps): Promise<ServiceTable> {
  const exclusive = serializer();
  const { services, backendIds, used } = await restore(maps);
  const nextService = counter([...services.values()].map((s) => s.id));
  const nextBackend = counter(backendIds.values());
  const nextGeneration = counter([...services.values()].map((s) => s.generation));

  function slotKeys({ id, generation, slots }: Programmed): CmSlotKey[] {
    return slots.map((_, slot) => ({ serviceId: id, generation, slot }));
  }

  const use = (programmed: Programmed, by: 1 | -1): void => {
    for (const id of new Set(programmed.slots)) used.set(id, (used.get(id) ?? 0) + by);
  };

  /** Writes rows that belong to swaps; the first failure of a swap becomes its error. */
  async function write<K, V>(map: BpfMap<K, V>, swaps: Swap[], rowsOf: (swap: Swap) => [K, V][]): Promise<Swap[]> {
    const rows = swaps.flatMap((swap) => rowsOf(swap).map((row) => ({ swap, row })));
    const results = await map.update(rows.map(({ row }) => row));
    results.forEach((error, i) => {
      const { swap } = rows[i]!;
      if (error !== undefined && swap.error === undefined) {
        const { code, hint, retryable } = error;
        swap.error = new MeshError({
          code,
          hint,
          retryable,
          message: `programming service ${swap.key}: ${error.message}`,
          cause: error,
        });
      }
    });
    return swaps.filter((swap) => swap.error === undefined);
  }

  /** Frees backends that no service in force names. */
  async function sweepBackends(candidates: Iterable<number>): Promise<void> {
    const idle = [...new Set(candidates)].filter((id) => (used.get(id) ?? 0) <= 0);
    if (idle.length === 0) return;
    const kept = new Set<number>();
    (await maps.cm_backends.remove(idle)).forEach((error, i) => {
      if (error !== undefined) kept.add(idle[i]!);
    });
    for (const [key, id] of backendIds) {
      if (idle.includes(id) && !kept.has(id)) backendIds.delete(key);
    }
    for (const id of idle) used.delete(id);
  }

  function plan(row: ServiceRow, fresh: Set<number>): Swap | undefined {
    const key = serviceKey(row.frontend);
    const before = services.get(key);
    if (before !== undefined && sameRow(before.row, row)) return undefined;
    const slots = row.backends.map((backend) => {
      const name = backendKey(backend, row.frontend.protocol);
      let id = backendIds.get(name);
      if (id === undefined) {
        id = nextBackend();
        backendIds.set(name, id);
        fresh.add(id);
      }
      return id;
    });
    return { key, before, after: { id: before?.id ?? nextService(), generation: nextGeneration(), row, slots } };
  }

  async function update(rows: ServiceRow[]): Promise<OpResult[]> {
    const errors = new Map<string, MeshError>();
    const fresh = new Set<number>();
    const swaps: Swap[] = [];
    // A key that comes twice: the last one counts.
    for (const [key, row] of new Map(rows.map((row) => [serviceKey(row.frontend), row]))) {
      try {
        checkFrontend(row.frontend);
        for (const backend of row.backends) toIpv4(backend.ip);
        const swap = plan(row, fresh);
        if (swap !== undefined) swaps.push(swap);
      } catch (error) {
        errors.set(key, MeshError.from(error, `programming service ${key}`));
      }
    }

    // Backends are written also where known: a row lost from the kernel heals here.
    let live = await write(maps.cm_backends, swaps, ({ after }) =>
      after.row.backends.map((backend, i) => [after.slots[i]!, toBackend(backend, after.row.frontend.protocol)]),
    );
    live = await write(maps.cm_slots, live, ({ after }) => slotKeys(after).map((key, i) => [key, after.slots[i]!]));
    live = await write(maps.cm_services, live, ({ after }) => [
      [
        toServiceKey(after.row.frontend),
        { id: after.id, generation: after.generation, count: after.slots.length, flags: after.row.flags },
      ],
    ]);

    // Now the new sets are in force: what is left are the old slots of those, and the new slots of the failed.
    for (const { key, before, after } of live) {
      services.set(key, after);
      use(after, 1);
      if (before !== undefined) use(before, -1);
    }
    const failed = swaps.filter((swap) => swap.error !== undefined);
    for (const { key, error } of failed) errors.set(key, error!);
    await maps.cm_slots.remove([
      ...live.flatMap(({ before }) => (before === undefined ? [] : slotKeys(before))),
      ...failed.flatMap(({ after }) => slotKeys(after)),
    ]);
    await sweepBackends([...fresh, ...live.flatMap(({ before }) => before?.slots ?? [])]);

    return rows.map(({ frontend }) => outcome(serviceKey(frontend), errors));
  }

  async function remove(keys: string[]): Promise<OpResult[]> {
    const errors = new Map<string, MeshError>();
    const gone = [...new Set(keys)].flatMap((key) => {
      const programmed = services.get(key);
      return programmed === undefined ? [] : [{ key, programmed }];
    });
    const results = await maps.cm_services.remove(gone.map(({ programmed }) => toServiceKey(programmed.row.frontend)));
    results.forEach((error, i) => {
      if (error !== undefined) errors.set(gone[i]!.key, error);
    });
    const removed = gone.filter(({ key }) => !errors.has(key));
    for (const { key, programmed } of removed) {
      services.delete(key);
      use(programmed, -1);
    }
    await maps.cm_slots.remove(removed.flatMap(({ programmed }) => slotKeys(programmed)));
    await sweepBackends(removed.flatMap(({ programmed }) => programmed.slots));
    return keys.map((key) => outcome(key, errors));
  }

  return {
    list: () =>
      exclusive(async () => new Map([...(await readServices(maps)).services].map(([key, { row }]) => [key, row]))),
    update: (rows) => exclusive(() => update(rows)),
    remove: (keys) => exclusive(() => remove(keys)),

    dump: () =>
      exclusive(async () =>
        [...(await readServices(maps)).services].map(([key, { id, generation, row, slots }]) => ({
          service: key,
          id,
          generation,
          flags: row.flags,
          backends: row.backends.map((backend, i) => ({ id: slots[i], ...backend })),
        })),
      ),
    dumpBackends: () =>
      exclusive(async () =>
        (await maps.cm_backends.entries()).map(([id, value]) => ({
          id,
          ...fromBackend(value),
          protocol: fromProtocol(value.proto),
          services: used.get(id) ?? 0,
        })),
      ),
  };
}

const outcome = (key: string, errors: ReadonlyMap<string, MeshError>): OpResult => {
  const error = errors.get(key);
  return error === undefined ? { key } : { key, error };
};

const sameRow = (a: ServiceRow, b: ServiceRow): boolean =>
  a.flags === b.flags &&
  a.backends.length === b.backends.length &&
  a.backends.every((x, i) => backendKey(x, '') === backendKey(b.backends[i]!, ''));

const toServiceKey = ({ ip, port, protocol }: Frontend): CmServiceKey => ({
  addr: toIpv4(ip),
  port,
  proto: toProtocol(protocol),
  scope: 0,
});

const toBackend = ({ ip, port, clusterId }: Backend, protocol: Protocol): CmBackend => ({
  addr: toIpv4(ip),
  port,
  clusterId,
  proto: toProtocol(protocol),
  state: 0,
});

const fromBackend = ({ addr, port, clusterId }: CmBackend): Backend => ({ ip: numberToIpv4(addr), port, clusterId });

/** Slots by "service id/generation". */
type Slots = Map<string, Map<number, number>>;

async function readServices(maps: ServiceMaps) {
  const backends = new Map(await maps.cm_backends.entries());
  const slots: Slots = new Map();
  for (const [{ serviceId, generation, slot }, id] of await maps.cm_slots.entries()) {
    const set = `${serviceId}/${generation}`;
    const of = slots.get(set) ?? new Map<number, number>();
    slots.set(set, of.set(slot, id));
  }
  const services = new Map<string, Programmed>();
  for (const [key, { id, generation, count, flags }] of await maps.cm_services.entries()) {
    const frontend = { ip: numberToIpv4(key.addr), port: key.port, protocol: fromProtocol(key.proto) as Protocol };
    const of = slots.get(`${id}/${generation}`);
    const ids = Array.from({ length: count }, (_, slot) => of?.get(slot)).filter(
      (b) => b !== undefined && backends.has(b),
    );
    const row = { frontend, flags, backends: ids.map((b) => fromBackend(backends.get(b!)!)) };
    services.set(serviceKey(frontend), { id, generation, row, slots: ids as number[] });
  }
  return { services, slots, backends };
}

/** What an earlier agent left in force; what it left over is removed. */
async function restore(maps: ServiceMaps) {
  const { services, slots, backends } = await readServices(maps);
  const used = new Map<number, number>();
  const inForce = new Set<string>();
  for (const { id, generation, slots: ids } of services.values()) {
    inForce.add(`${id}/${generation}`);
    for (const backend of new Set(ids)) used.set(backend, (used.get(backend) ?? 0) + 1);
  }
  await maps.cm_slots.remove(
    [...slots].flatMap(([set, of]) => {
      if (inForce.has(set)) return [];
      const [serviceId, generation] = set.split('/').map(Number);
      return [...of.keys()].map((slot) => ({ serviceId: serviceId!, generation: generation!, slot }));
    }),
  );
  await maps.cm_backends.remove([...backends.keys()].filter((id) => !used.has(id)));
  const backendIds = new Map<string, number>();
  for (const [id, value] of backends) {
    if (used.has(id)) backendIds.set(backendKey(fromBackend(value), fromProtocol(value.proto)), id);
  }
  return { services, backendIds, used };
}
