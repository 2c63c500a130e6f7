/**
 * Ends sockets whose backend their service has let go (bpf/destroy.bpf.c). They were translated when they connected, so no packet of
 * theirs is looked at: when the backend's node is gone with it, nobody would tell the application before TCP gives up.
 *
 * The kernel runs over the sockets of one network namespace at a time, in a thread beside this one, and over all namespaces of the
 * node's cgroup: swaps of a moment share a pass, and a pass that takes long is followed by a longer pause.
 */
import { closeSync, read } from 'node:fs';
import { promisify } from 'node:util';
import { type CmWithdrawn, type CmWithdrawnKey, maps as layouts, objectPath } from '@clustermesh/bpf';
import { messageOf } from '@clustermesh/contract';
import { type Log, startRunner, systemClock } from '@clustermesh/runtime';
import { type BpfMap, openMap } from './bpf-map.ts';
import * as libbpf from './libbpf.ts';
import type { TypedMaps } from './loader.ts';
import { inNetns, netnsOfCgroup, openOwnNetns } from './netns.ts';
import { fromProtocol, toProtocol } from './rows.ts';
import type { ServiceTable } from './services.ts';
import { backendsOf } from './slots.ts';
import { type DestroyedSockets, type Protocol, serviceKey } from './types.ts';
import { createWithdrawals, type SwapObserver, type Withdrawal } from './withdrawn.ts';

/** Before a pass: whoever connects by the row that was in force has done so, and swaps of a moment have come together. */
const SETTLE_MS = 50;
/** From the beginning of a pass to that of the next. */
const MIN_INTERVAL_MS = 1000;
/** A pause is so many times as long as the pass before it. */
const PAUSE_RATIO = 9;
const RETRY_MS = 1000;
/** Beside what is under way. */
const MOST_WAITING = 4 * layouts.cm_withdrawn.maxEntries;
/** The kernel looks at a million sockets before it asks whether to go on. */
const MOST_READS = 100;

const PROTOCOLS = ['TCP', 'UDP'] as const;
const PROGRAM = { TCP: 'cm_destroy_tcp', UDP: 'cm_destroy_udp' } as const;

const readAsync = promisify(read);

/** What the kernel took. */
interface Programs {
  readonly withdrawn: BpfMap<CmWithdrawnKey, CmWithdrawn>;
  readonly links: Record<(typeof PROTOCOLS)[number], libbpf.Pointer>;
  close(): void;
}

export interface SocketDestroyer extends SwapObserver {
  /**
   * To be called once: notes what an agent before this one has let go and perhaps not carried out, as far as `services` and the rows of
   * sockets tell.
   */
  catchUp(services: ServiceTable): void;
  stats(): DestroyedSockets;
  close(): Promise<void>;
}

async function loadDestroyer(maps: TypedMaps, path: string): Promise<Programs> {
  const object = libbpf.openObject(path);
  const links: libbpf.Pointer[] = [];
  try {
    const declared = libbpf.objectMaps(object);
    for (const [name, pointer] of declared)
      if (name !== 'cm_withdrawn') libbpf.reuseMap(pointer, maps[name as keyof TypedMaps].fd);
    await libbpf.loadObject(object);
    const programs = libbpf.objectPrograms(object);
    for (const protocol of PROTOCOLS) links.push(libbpf.attachIterator(programs.get(PROGRAM[protocol])!));
    return {
      withdrawn: openMap('cm_withdrawn', libbpf.mapFd(declared.get('cm_withdrawn')!), layouts.cm_withdrawn),
      links: { TCP: links[0]!, UDP: links[1]! },
      close,
    };
  } catch (error) {
    close();
    throw error;
  }

  function close(): void {
    for (const link of links.splice(0)) libbpf.closeLink(link);
    libbpf.closeObject(object);
  }
}

/** Runs the program over what the iterator has; it writes nothing. */
async function runIterator(fd: number): Promise<void> {
  const nothing = Buffer.alloc(8);
  for (let i = 0; i < MOST_READS; i++) {
    try {
      if ((await readAsync(fd, nothing, 0, nothing.length, null)).bytesRead === 0) return;
    } catch (error) {
      // So many sockets that the kernel wants to be asked again.
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }
}

export function openSocketDestroyer({
  maps,
  cgroup,
  log,
  object = objectPath('destroy'),
}: {
  readonly maps: TypedMaps;
  /** The one that socket load balancing is attached to. */
  readonly cgroup: string;
  readonly log: Log;
  readonly object?: string;
}): SocketDestroyer {
  const stop = new AbortController();
  const own = openOwnNetns();
  const stats = { tcp: 0, udp: 0, passes: 0, failedPasses: 0, namespaces: 0, lastPassMs: 0, lost: 0 };
  let toldLost = 0;
  let before: ServiceTable | undefined;
  let programs: Programs | undefined;
  /** False: the kernel has no way to do it. */
  let isPossible = true;

  const withdrawals = createWithdrawals({
    most: MOST_WAITING,
    onNoted: () => runner.trigger(),
    onLost: () => void stats.lost++,
    forget: ({ key }) => {
      const bytes = layouts.cm_withdrawn.key.encode(key);
      const value = Buffer.alloc(layouts.cm_withdrawn.value.size);
      const { fd } = programs!.withdrawn;
      if (libbpf.mapLookup(fd, bytes, value) === 0)
        add(fromProtocol(key.service.proto), layouts.cm_withdrawn.value.decode(value).destroyed);
      libbpf.mapDelete(fd, bytes);
    },
  });

  function add(protocol: string, sockets: number): void {
    if (protocol === 'TCP') stats.tcp += sockets;
    else stats.udp += sockets;
  }

  const loading = loadDestroyer(maps, object).then(
    (loadedPrograms) => {
      programs = loadedPrograms;
    },
    (error: unknown) => {
      isPossible = false;
      withdrawals.clear();
      log.warn(
        { reason: messageOf(error) },
        'connections to withdrawn backends are not ended where sockets were translated: the kernel did not take the programs for it',
      );
    },
  );

  const runner = startRunner({
    async run() {
      await loading;
      if (programs === undefined || stop.signal.aborted) return;
      await systemClock.sleep(SETTLE_MS, stop.signal);
      if (before !== undefined) {
        await noteLeftOvers(before);
        before = undefined;
      }
      if (stats.lost > toldLost)
        log.warn(
          { withdrawals: stats.lost - toldLost, most: MOST_WAITING },
          'more backends were withdrawn at a time than are kept in mind: connections to the others end as without this',
        );
      toldLost = stats.lost;
      if (withdrawals.size === 0 || stop.signal.aborted) return;
      const started = performance.now();
      await pass(programs);
      stats.lastPassMs = performance.now() - started;
      await systemClock.sleep(PAUSE_RATIO * stats.lastPassMs, stop.signal);
      if (withdrawals.size > 0) runner.trigger();
    },
    minIntervalMs: MIN_INTERVAL_MS,
    retryMs: RETRY_MS,
    maxIntervalMs: Number.POSITIVE_INFINITY,
    onError(error) {
      stats.failedPasses++;
      log.warn({ err: error }, 'connections to withdrawn backends could not be ended; trying again');
    },
    signal: stop.signal,
  });

  async function pass({ withdrawn, links }: Programs): Promise<void> {
    const taken = withdrawals.take(withdrawn.maxEntries);
    let isDone = false;
    try {
      const errors = await withdrawn.update(
        taken.map(({ key, backendId }) => [key, { backendId, destroyed: 0 }] as const),
      );
      const failed = errors.find((error) => error !== undefined);
      if (failed !== undefined) throw failed;
      // What a service has named again while rows were written could not be forgotten before it was there.
      await withdrawn.remove(taken.filter((one) => !withdrawals.isUnderWay(one)).map(({ key }) => key));
      const asked = new Set(taken.map(({ key }) => key.service.proto));
      const wanted = PROTOCOLS.filter((protocol) => asked.has(toProtocol(protocol)));
      const namespaces = await overNamespaces(wanted.map((protocol) => links[protocol]));
      stats.passes++;
      stats.namespaces = namespaces;
      isDone = true;
    } finally {
      await reckon(withdrawn, taken);
      withdrawals.done(!isDone);
    }
  }

  async function overSockets(link: libbpf.Pointer, netns: Parameters<typeof inNetns>[1]): Promise<void> {
    const fd = inNetns(own, netns, () => libbpf.createIterator(link));
    try {
      await runIterator(fd);
    } finally {
      closeSync(fd);
    }
  }

  async function overNamespaces(links: readonly libbpf.Pointer[]): Promise<number> {
    let [namespaces, denied] = [0, 0];
    let failure: unknown;
    for await (const netns of netnsOfCgroup(cgroup, () => void denied++)) {
      if (stop.signal.aborted) break;
      namespaces++;
      try {
        for (const link of links) await overSockets(link, netns);
      } catch (error) {
        // Those of the others must not wait for it.
        failure ??= error;
      }
    }
    if (denied > 0)
      log.warn(
        { processes: denied },
        'the sockets of some pods were not looked at: which network namespace their processes are in is shown only with CAP_SYS_PTRACE',
      );
    if (failure !== undefined) throw failure;
    return namespaces;
  }

  /** Counts what the pass has done, and ends it for the kernel. */
  async function reckon(withdrawn: Programs['withdrawn'], taken: readonly Withdrawal[]): Promise<void> {
    const [services, backends] = [new Set<string>(), new Set<string>()];
    let sockets = 0;
    await withdrawn.scan(({ service, addr, port }, { destroyed }) => {
      if (destroyed === 0) return;
      sockets += destroyed;
      const protocol = fromProtocol(service.proto);
      add(protocol, destroyed);
      services.add(serviceKey({ ip: service.addr, port: service.port, protocol: protocol as Protocol }));
      backends.add(`${addr}/${port}`);
    });
    await withdrawn.remove(taken.map(({ key }) => key));
    if (sockets === 0) return;
    log.info(
      { sockets, services: [...services].slice(0, 10), backends: backends.size },
      'ended connections to backends that their service has let go',
    );
  }

  /** Sockets that are long gone have left rows, too: what is noted for them finds nobody. */
  async function noteLeftOvers(services: ServiceTable): Promise<void> {
    const pairs = new Map<string, { service: string; port: number; ip: string; backendPort: number }>();
    await maps.cm_sock_rev.scan((key, value) => {
      pairs.set(`${value.addr}/${value.port} ${key.addr}/${key.port}`, {
        service: value.addr,
        port: value.port,
        ip: key.addr,
        backendPort: key.port,
      });
    });
    for (const { service, port, ip, backendPort } of pairs.values()) {
      for (const protocol of PROTOCOLS) {
        const found = services.inForce(serviceKey({ ip: service, port, protocol }));
        // A service that is not there at all may only not be there yet.
        if (found === undefined) continue;
        if (backendsOf(found.row).some((backend) => backend.ip === ip && backend.port === backendPort)) continue;
        withdrawals.note({ key: { service: found.kernelKey, addr: ip, port: backendPort }, backendId: 0 });
      }
    }
  }

  return {
    naming: (after) => withdrawals.naming(after),
    letGo: (old, after) => {
      if (isPossible) withdrawals.letGo(old, after);
    },
    catchUp(services) {
      before = services;
      runner.trigger();
    },
    stats: () => ({ ...stats, isPossible }),
    async close() {
      stop.abort();
      await loading;
      await runner.ended;
      programs?.close();
      closeSync(own);
    },
  };
}
