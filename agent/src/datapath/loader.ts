/**
 * Loads the compiled programs over pinned maps.
 *
 *   <bpffs>/clustermesh/<cluster>/<node>/cm_*          maps, one pin each: outlive the agent
 *                                        /cm_layout    fingerprint of each map's layout, to refuse a changed one
 *                                        /link_*       cgroup links: the programs go on without the agent
 *
 * A map that is pinned is used as it is, with its rows and ids. If this version lays its rows out differently, or another size is asked
 * for, it gets a successor (migrate.ts); where that cannot be, it is an error: what is pinned is never wiped and never reinterpreted.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  type CmSettings,
  type Codec,
  maps as layouts,
  type MapLayout,
  type MapName,
  objectPath,
  type ProgramObject,
  rodata,
} from '@clustermesh/bpf';
import { MeshError } from '@clustermesh/contract';
import { type BpfMap, openMap } from './bpf-map.ts';
import * as libbpf from './libbpf.ts';
import { carryOver, catchUp, impossible, type Succession, whyNot } from './migrate.ts';

/** Maps that hold nothing worth keeping: shared by what is loaded together, never pinned. */
const UNPINNED: ReadonlySet<string> = new Set<MapName>([
  'cm_ct_scratch',
  'cm_decisions',
  'cm_events',
  'cm_event_config',
  'cm_event_state',
  'cm_nat_scratch',
  'cm_withdrawn',
  'cm_xdp_devices', // belongs to its program: a newer one has its own
]);

export const isPinned = (map: MapName): boolean => !UNPINNED.has(map);

export type TypedMaps = {
  [Name in MapName]: (typeof layouts)[Name] extends MapLayout<infer K, infer V> ? BpfMap<K, V> : never;
};

export interface LoadOptions {
  objects: readonly ProgramObject[];
  /** Of these, such as can be done without: that the verifier refuses one is told by `refused`. */
  optional?: readonly ProgramObject[];
  /** `isDsr`: absent is 0. */
  settings: Omit<CmSettings, 'isDsr'> & Partial<Pick<CmSettings, 'isDsr'>>;
  pinDir: string;
  mapSizes?: Record<string, number> | undefined;
}

export interface Loaded {
  maps: TypedMaps;
  /** The verifier has accepted every program. Rejects with what it said of one that it has not. */
  readonly verified: Promise<void>;
  /** Once they are: what the verifier said of an optional object that it has not accepted. */
  refused(object: ProgramObject): Error | undefined;
  /** By function name; only once they are `verified`. */
  program(name: string): libbpf.Pointer;
  programFd(name: string): number;
  /** Pinned maps that those above take the place of: before anything is read from these, carryOver(). */
  readonly succeeded: readonly MapName[];
  /** Rows and pins of what is succeeded, to `maps`. If it throws, nothing is changed. */
  carryOver(): Promise<void>;
  /** To be called once the programs are attached: what older ones have noted meanwhile. */
  catchUp(): Promise<void>;
  /** Waits for the verifier: what it reads must not go away under it. */
  close(): Promise<void>;
}

/** Objects before the verifier at a time: each holds a thread of the pool that files are read by, too. */
const LOADS_AT_A_TIME = 2;

/** Programs that can be attached. */
export async function loadPrograms(options: LoadOptions): Promise<Loaded> {
  const loaded = openPrograms(options);
  try {
    await loaded.verified;
    return loaded;
  } catch (error) {
    await loaded.close();
    throw error;
  }
}

/**
 * Returns with the maps, which may be read and written at once; the verifier looks at the programs meanwhile, which takes it longer
 * than all else that an agent does before it reads etcd.
 */
export function openPrograms({ objects, optional = [], settings, pinDir, mapSizes }: LoadOptions): Loaded {
  mkdirSync(pinDir, { recursive: true, mode: 0o700 });
  const opened: libbpf.BpfObject[] = [];
  const programs = new Map<string, libbpf.Pointer>();
  const refused = new Map<ProgramObject, Error>();
  const old = new Map<MapName, number>();
  const fds = openMaps(objects, pinDir, mapSizes, old);

  function forgetOld(): void {
    for (const fd of old.values()) libbpf.closeFd(fd);
    old.clear();
  }

  function release(): void {
    forgetOld();
    for (const object of opened.splice(0)) libbpf.closeObject(object);
    for (const fd of fds.values()) libbpf.closeFd(fd);
    fds.clear();
  }

  try {
    for (const name of objects) {
      const object = libbpf.openObject(objectPath(name));
      opened.push(object);
      const { offset, codec } = rodata[name].cm_settings;
      codec.encode({ isDsr: 0, ...settings }, libbpf.objectRodata(object), offset);
      for (const [map, pointer] of libbpf.objectMaps(object)) libbpf.reuseMap(pointer, fds.get(map)!);
    }
  } catch (error) {
    release();
    throw error;
  }
  const verified = verify();
  verified.catch(() => {}); // Whoever attaches is told.

  async function verify(): Promise<void> {
    const waiting = opened.entries();
    async function loadOnes(): Promise<void> {
      for (const [i, object] of waiting) {
        try {
          await libbpf.loadObject(object);
        } catch (error) {
          if (!optional.includes(objects[i]!)) throw error;
          refused.set(objects[i]!, error as Error);
          continue;
        }
        for (const [program, pointer] of libbpf.objectPrograms(object)) programs.set(program, pointer);
      }
    }
    const loads = await Promise.allSettled(Array.from({ length: LOADS_AT_A_TIME }, loadOnes));
    for (const load of loads) if (load.status === 'rejected') throw load.reason;
  }

  const typed = [...fds].map(([name, fd]) => [
    name,
    openMap(name, fd, layouts[name as MapName] as MapLayout<never, never>),
  ]);
  const program = (name: string): libbpf.Pointer => {
    const pointer = programs.get(name);
    if (pointer === undefined) throw new MeshError({ code: 'internal', message: `no eBPF program is called ${name}` });
    return pointer;
  };
  const successions = [...old].map(
    ([name, from]): Succession => ({ name, from, to: fds.get(name)!, pin: join(pinDir, name) }),
  );
  return {
    maps: Object.fromEntries(typed) as TypedMaps,
    verified,
    refused: (object) => refused.get(object),
    succeeded: successions.map(({ name }) => name),
    async carryOver() {
      if (successions.length === 0) return;
      const noted = openFingerprints(pinDir);
      try {
        await carryOver(successions, noted.set);
      } finally {
        noted.close();
      }
    },
    async catchUp() {
      await catchUp(old.size === 0 ? [] : successions);
      forgetOld();
    },
    program,
    programFd: (name) => libbpf.programFd(program(name)),
    async close() {
      await verified.catch(() => {});
      release();
    },
  };
}

/**
 * Descriptors of all maps that the objects declare: those that are pinned, and new ones for those that are not, or not as they should be;
 * these last go into `old`.
 */
function openMaps(
  objects: readonly ProgramObject[],
  pinDir: string,
  mapSizes: Record<string, number> | undefined,
  old: Map<MapName, number>,
): Map<string, number> {
  const fingerprints = openFingerprints(pinDir);
  const fds = new Map<string, number>();
  try {
    for (const name of objects) {
      const object = libbpf.openObject(objectPath(name));
      try {
        const declared = libbpf.objectMaps(object);
        const made: MapName[] = [];
        for (const [name, pointer] of declared) {
          const map = name as MapName;
          const size = mapSizes?.[map];
          let fd = fds.get(map);
          if (fd === undefined && isPinned(map)) {
            const found = openPinned(pinDir, map, fingerprints, size ?? layouts[map].maxEntries);
            if (found?.isOurs) fd = found.fd;
            else if (found !== undefined) old.set(map, found.fd);
          }
          if (fd === undefined) {
            made.push(map);
            if (size !== undefined) libbpf.setMaxEntries(pointer, size);
          } else {
            fds.set(map, fd);
            libbpf.reuseMap(pointer, fd);
          }
        }
        if (made.length === 0) continue;
        libbpf.loadMaps(object);
        for (const map of made) {
          const pointer = declared.get(map)!;
          if (isPinned(map) && !old.has(map)) {
            // Fingerprint first: a pin without one would look like a foreign map to the next start.
            fingerprints.set(map);
            libbpf.pinMap(pointer, join(pinDir, map));
          }
          fds.set(map, libbpf.duplicateFd(libbpf.mapFd(pointer)));
        }
      } finally {
        libbpf.closeObject(object);
      }
    }
    return fds;
  } catch (error) {
    for (const fd of [...fds.values(), ...old.values()]) libbpf.closeFd(fd);
    throw error;
  } finally {
    fingerprints.close();
  }
}

const BPF_MAP_TYPE_HASH = 1;
const NAME_BYTES = 16;
const FINGERPRINT_BYTES = 16;

interface Fingerprints {
  get(map: MapName): string | undefined;
  set(map: MapName): void;
  close(): void;
}

/** The table of fingerprints lies beside the maps that it describes and lives as long as they do. */
function openFingerprints(pinDir: string): Fingerprints {
  const path = join(pinDir, 'cm_layout');
  let fd = libbpf.pinned(path);
  if (fd === undefined) {
    fd = libbpf.createMap(BPF_MAP_TYPE_HASH, 'cm_layout', NAME_BYTES, FINGERPRINT_BYTES, 64);
    libbpf.pinFd(fd, path);
  }
  const table = fd;
  const text: (size: number) => Codec<string> = (size) => ({
    name: 'char[]',
    size,
    encode(value, into = Buffer.alloc(size), at = 0) {
      into.write(value, at, size, 'latin1');
      return into;
    },
    decode: (from, at = 0) => from.toString('latin1', at, at + size).replace(/\0+$/, ''),
  });
  const key = text(NAME_BYTES);
  const value = text(FINGERPRINT_BYTES);
  return {
    get(map) {
      const found = value.encode('');
      return libbpf.mapLookup(table, key.encode(map), found) === 0 ? value.decode(found) : undefined;
    },
    set(map) {
      const rc = libbpf.mapUpdate(table, key.encode(map), value.encode(layouts[map].fingerprint));
      if (rc < 0) throw libbpf.kernelError(`noting the layout of ${map}`, rc);
    },
    close: () => libbpf.closeFd(table),
  };
}

/** The pinned map, if there is one. `isOurs`: it means what this version means by it, and is of this size. */
function openPinned(
  pinDir: string,
  name: MapName,
  fingerprints: Fingerprints,
  maxEntries: number,
): { readonly fd: number; readonly isOurs: boolean } | undefined {
  const path = join(pinDir, name);
  const fd = libbpf.pinned(path);
  if (fd === undefined) return undefined;
  const layout = layouts[name];
  const info = libbpf.mapInfo(fd);
  const isOurs =
    info.type === layout.type &&
    info.keySize === layout.key.size &&
    info.valueSize === layout.value.size &&
    info.flags === layout.flags &&
    info.maxEntries === maxEntries &&
    fingerprints.get(name) === layout.fingerprint;
  const reason = isOurs ? undefined : whyNot(fd, layout);
  if (reason === undefined) return { fd, isOurs };
  libbpf.closeFd(fd);
  throw impossible(path, reason);
}
