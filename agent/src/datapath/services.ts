/**
 * The service tables: cm_services → cm_slots → cm_backends (see bpf/lib/lb.h for what the programs rely on).
 *
 * Ids belong to this module. They are read back from the kernel when it opens and with every list(), so that neither a restart
 * nor a repair renumbers what is intact; an id is freed when no row uses it, and numbers are taken upwards so that a freed one
 * is not used again soon.
 *
 * A change of a service is a swap: new backends, all slots of a new generation, then the service row (this is the moment
 * that clients see), then the old slots, then backends that nobody uses. Whatever is interrupted in between leaves either
 * the old set or the new one in force; the next reading sweeps what is left over.
 *
 * list() replaces all that is remembered here by what the kernel has: rows, slots and backends that were lost, changed or added
 * behind our back are then seen by the update or remove that mends them.
 */
import { setImmediate } from 'node:timers/promises';
import type { CmBackend, CmBlockKey, CmMemberKey, CmServiceKey } from '@clustermesh/bpf';
import { MeshError } from '@clustermesh/contract';
import type { BpfMap } from './bpf-map.ts';
import { backendKey, checkFrontend, fromProtocol, toAddr, toProtocol, toScope } from './rows.ts';
import { serializer } from './serializer.ts';
import { fromBackend, type Programmed, readServices, type ServiceMaps, setOf } from './services-kernel.ts';
import { backendsOf, blockCount, digestOf, slotBuilder, toBlocks } from './slots.ts';
import {
  type Backend,
  type Frontend,
  type MapOps,
  type OpResult,
  type Protocol,
  SERVICE_FLAG,
  type ServiceRow,
  serviceKey,
} from './types.ts';
import type { SwapObserver } from './withdrawn.ts';

/** A swap under way. `error` takes it out of the following steps. */
interface Swap {
  key: string;
  before: Programmed | undefined;
  after: Programmed;
  /** Backend id of each slot. */
  ids: Uint32Array;
  error?: MeshError;
}

export interface ServiceTable extends MapOps<ServiceRow> {
  dump(): Promise<object[]>;
  dumpBackends(): Promise<object[]>;
  /** What is in force under this key, as far as it is known here. */
  inForce(key: string): Programmed | undefined;
}

/** Beyond it only foreign rows have numbers: following them could leave none to take. */
const MAX_OWN_NUMBER = 0x7fff_ffff;

/** Kernel rows that are put together before they are written: enough that a call's own cost does not count. */
const PORTION = 1000;

/** Numbers taken upwards from the highest known. */
function counter() {
  let last = 0;
  return {
    next: (): number => ++last,
    isTaken(n: number): void {
      if (n > last && n <= MAX_OWN_NUMBER) last = n;
    },
  };
}

/** `observer` is told of every swap on both sides of it. */
export async function openServices(maps: ServiceMaps, observer?: SwapObserver): Promise<ServiceTable> {
  const exclusive = serializer();
  let services = new Map<string, Programmed>();
  /** Backend id by what it leads to. */
  let backendIds = new Map<string, number>();
  /** How many services use a backend, and a set of slots (more than one: a foreign row points there). */
  let used = new Map<number, number>();
  let usedSets = new Map<string, number>();
  /** Ids of services whose rows the kernel lost: connections know them by it, so they shall have it again. */
  let lostIds = new Map<string, number>();
  const serviceNumbers = counter();
  const backendNumbers = counter();
  const generations = counter();
  const slotsFor = slotBuilder(() => setImmediate());

  const use = ({ id, generation, backends }: Programmed, by: 1 | -1): void => {
    const set = setOf(id, generation);
    usedSets.set(set, (usedSets.get(set) ?? 0) + by);
    if (usedSets.get(set) === 0) usedSets.delete(set);
    for (const backend of new Set(backends)) used.set(backend, (used.get(backend) ?? 0) + by);
  };

  /** The blocks of those of the sets that no service in force uses. */
  const idleBlocks = (sets: Programmed[]): CmBlockKey[] =>
    sets
      .filter(({ id, generation }) => !usedSets.has(setOf(id, generation)))
      .flatMap(({ id, generation, blocks }) => blocks.map((block) => ({ serviceId: id, generation, block })));

  /** What the kernel has in force is all that counts; what an interrupted swap or a stranger left over is removed. */
  async function refresh(): Promise<void> {
    const found = await readServices(maps, services);
    const taken = new Set([...found.services.values()].map(({ id }) => id));
    const before: [string, number][] = [
      ...lostIds,
      ...[...services].map(([key, { id }]): [string, number] => [key, id]),
    ];
    lostIds = new Map(before.filter(([, id]) => !taken.has(id)));
    // Where the last service that used it lost its row, a backend stays until the next reading, for the row to be mended.
    const spared = used;
    services = found.services;
    backendIds = new Map();
    used = new Map();
    usedSets = new Map();
    for (const programmed of services.values()) {
      use(programmed, 1);
      serviceNumbers.isTaken(programmed.id);
      generations.isTaken(programmed.generation);
    }
    await maps.cm_slots.remove(
      [...found.sets].flatMap(([set, blocks]) => {
        if (usedSets.has(set)) return [];
        const [serviceId, generation] = set.split('/').map(Number);
        return [...blocks.keys()].map((block) => ({ serviceId: serviceId!, generation: generation!, block }));
      }),
    );
    await maps.cm_members.remove(found.strayMembers);
    const isKept = (id: number): boolean => used.has(id) || (spared.get(id) ?? 0) > 0;
    await maps.cm_backends.remove([...found.backends.keys()].filter((id) => !isKept(id)));
    for (const [id, value] of found.backends) {
      if (!isKept(id)) continue;
      backendIds.set(backendKey(fromBackend(value), fromProtocol(value.proto)), id);
      backendNumbers.isTaken(id);
    }
  }

  async function list(): Promise<Map<string, ServiceRow>> {
    await refresh();
    // A row that promises more than there is fails every connection that draws the gap: cut down to what is there, at once.
    // Whether that is also what should be there is for the caller to compare.
    const torn = [...services].filter(([key, { isWhole, row }]) => !isWhole && key === serviceKey(row.frontend));
    if (torn.length > 0) await update(torn.map(([, { row }]) => row));
    return new Map([...services].map(([key, { row }]) => [key, row]));
  }

  /** Writes rows that belong to swaps; the first failure of a swap becomes its error. */
  async function write<K, V>(map: BpfMap<K, V>, swaps: Swap[], rowsOf: (swap: Swap) => [K, V][]): Promise<Swap[]> {
    let rows: [K, V][] = [];
    let owners: Swap[] = [];
    async function flush(): Promise<void> {
      const results = await map.update(rows);
      results.forEach((error, i) => {
        const swap = owners[i]!;
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
      rows = [];
      owners = [];
    }
    for (const swap of swaps) {
      for (const row of rowsOf(swap)) {
        rows.push(row);
        owners.push(swap);
      }
      if (rows.length >= PORTION) await flush();
    }
    await flush();
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
    const freed = new Set(idle.filter((id) => !kept.has(id)));
    for (const [key, id] of backendIds) if (freed.has(id)) backendIds.delete(key);
    for (const id of idle) used.delete(id);
  }

  async function plan(row: ServiceRow, fresh: Set<number>): Promise<Swap | undefined> {
    const key = serviceKey(row.frontend);
    const before = services.get(key);
    if (before?.isWhole && sameRow(before.row, row)) return undefined;
    const slots = await slotsFor(row);
    const backends = backendsOf(row).map((backend) => {
      const name = backendKey(backend, row.frontend.protocol);
      let id = backendIds.get(name);
      if (id === undefined) {
        id = backendNumbers.next();
        backendIds.set(name, id);
        fresh.add(id);
      }
      return id;
    });
    const ids = slots.of.map((i) => backends[i]!);
    const after: Programmed = {
      kernelKey: toServiceKey(row.frontend),
      id: lostIds.get(key) ?? (before === undefined || before.isIdShared ? serviceNumbers.next() : before.id),
      generation: generations.next(),
      row,
      backends,
      count: slots.count,
      members: [...new Set(ids.subarray(0, slots.count))],
      blocks: Array.from({ length: blockCount(ids) }, (_, block) => block),
      digest: digestOf(ids),
      isWhole: true,
      isIdShared: false,
    };
    return { key, before, after, ids };
  }

  async function update(rows: ServiceRow[]): Promise<OpResult[]> {
    const errors = new Map<string, MeshError>();
    const fresh = new Set<number>();
    const swaps: Swap[] = [];
    // A key that comes twice: the last one counts.
    for (const [key, row] of new Map(rows.map((row) => [serviceKey(row.frontend), row]))) {
      try {
        checkFrontend(row.frontend, backendsOf(row));
        for (const backend of backendsOf(row)) checkBackend(backend);
        const swap = await plan(row, fresh);
        if (swap !== undefined) swaps.push(swap);
      } catch (error) {
        errors.set(key, MeshError.from(error, `programming service ${key}`));
      }
    }

    // Backends are written also where known: a row lost from the kernel heals here.
    let live = await write(maps.cm_backends, swaps, ({ after }) =>
      backendsOf(after.row).map((backend, i) => [after.backends[i]!, toBackend(backend, after.row.frontend.protocol)]),
    );
    live = await write(maps.cm_slots, live, ({ after: { id, generation }, ids }) =>
      toBlocks(ids).map((value, block) => [{ serviceId: id, generation, block }, value]),
    );
    live = await write(maps.cm_members, live, ({ after }) => memberKeys(after).map((key) => [key, 1]));
    if (observer !== undefined) for (const { after } of live) observer.naming(after);
    live = await write(maps.cm_services, live, ({ after }) => [
      [
        after.kernelKey,
        {
          id: after.id,
          generation: after.generation,
          count: after.count,
          flags: after.row.flags,
          affinityS: after.row.affinitySeconds ?? 0,
        },
      ],
    ]);

    // Now the new sets are in force: what is left are the old slots of those, and the new slots of the failed.
    for (const { key, before, after } of live) {
      services.set(key, after);
      lostIds.delete(key);
      use(after, 1);
      if (before === undefined) continue;
      use(before, -1);
      observer?.letGo(before, after);
    }
    const failed = swaps.filter((swap) => swap.error !== undefined);
    for (const { key, error } of failed) errors.set(key, error!);
    await maps.cm_slots.remove(
      idleBlocks([...live.flatMap(({ before }) => before ?? []), ...failed.map(({ after }) => after)]),
    );
    await maps.cm_members.remove([
      ...live.flatMap(({ before, after }) =>
        before === undefined || before.isIdShared ? [] : membersWithout(before, after),
      ),
      ...failed.flatMap(({ before, after }) => membersWithout(after, before)),
    ]);
    await sweepBackends([...fresh, ...live.flatMap(({ before }) => before?.backends ?? [])]);

    return rows.map(({ frontend }) => outcome(serviceKey(frontend), errors));
  }

  async function remove(keys: string[]): Promise<OpResult[]> {
    const errors = new Map<string, MeshError>();
    for (const key of keys) lostIds.delete(key);
    const gone = [...new Set(keys)].flatMap((key) => {
      const programmed = services.get(key);
      return programmed === undefined ? [] : [{ key, programmed }];
    });
    const results = await maps.cm_services.remove(gone.map(({ programmed }) => programmed.kernelKey));
    results.forEach((error, i) => {
      if (error !== undefined) errors.set(gone[i]!.key, error);
    });
    const removed = gone.filter(({ key }) => !errors.has(key));
    for (const { key, programmed } of removed) {
      services.delete(key);
      use(programmed, -1);
      observer?.letGo(programmed, undefined);
    }
    await maps.cm_slots.remove(idleBlocks(removed.map(({ programmed }) => programmed)));
    // Of a shared id, another service may need them: the next reading tells.
    await maps.cm_members.remove(
      removed.flatMap(({ programmed }) => (programmed.isIdShared ? [] : memberKeys(programmed))),
    );
    await sweepBackends(removed.flatMap(({ programmed }) => programmed.backends));
    return keys.map((key) => outcome(key, errors));
  }

  await refresh();
  return {
    list: () => exclusive(list),
    read: () =>
      exclusive(
        async () => new Map([...(await readServices(maps, services)).services].map(([key, { row }]) => [key, row])),
      ),
    update: (rows) => exclusive(() => update(rows)),
    remove: (keys) => exclusive(() => remove(keys)),
    inForce: (key) => services.get(key),

    dump: () =>
      exclusive(async () =>
        [...(await readServices(maps, services)).services].map(([key, { id, generation, count, row, backends }]) => ({
          service: key,
          id,
          generation,
          algorithm: (row.flags & SERVICE_FLAG.maglev) === 0 ? 'random' : 'maglev',
          slots: count,
          ...(row.affinitySeconds === undefined ? {} : { affinitySeconds: row.affinitySeconds }),
          backends: row.backends.map((backend, i) => ({ id: backends[i], ...backend })),
          draining: (row.draining ?? []).map((backend, i) => ({ id: backends[row.backends.length + i], ...backend })),
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

const memberKeys = ({ id, members }: Programmed): CmMemberKey[] =>
  members.map((backendId) => ({ serviceId: id, backendId }));

/** Members of the one that the other has not. */
function membersWithout(one: Programmed, other: Programmed | undefined): CmMemberKey[] {
  const kept = new Set(other?.id === one.id ? other.members : []);
  return memberKeys(one).filter(({ backendId }) => !kept.has(backendId));
}

const sameBackends = (a: readonly Backend[] = [], b: readonly Backend[] = []): boolean =>
  a.length === b.length &&
  a.every((x, i) => backendKey(x, '') === backendKey(b[i]!, '') && (x.weight ?? 1) === (b[i]!.weight ?? 1));

const sameRow = (a: ServiceRow, b: ServiceRow): boolean =>
  a.flags === b.flags &&
  a.affinitySeconds === b.affinitySeconds &&
  sameBackends(a.backends, b.backends) &&
  sameBackends(a.draining, b.draining);

const toServiceKey = ({ ip, port, protocol, scope }: Frontend): CmServiceKey => ({
  addr: toAddr(ip),
  port,
  proto: toProtocol(protocol),
  scope: toScope(scope),
});

const toBackend = ({ ip, port, clusterId }: Backend, protocol: Protocol): CmBackend => ({
  addr: toAddr(ip),
  port,
  clusterId,
  proto: toProtocol(protocol),
  state: 0,
});

function checkBackend({ ip, weight = 1 }: Backend): void {
  toAddr(ip);
  if (Number.isInteger(weight) && weight >= 0 && weight < 2 ** 31) return;
  throw new MeshError({
    code: 'invalid-argument',
    message: `programming the backend ${ip}: weight ${weight} is no integer of 0 … 2147483647`,
  });
}
