/**
 * The few calls of libbpf and libc that the datapath needs, through koffi. Nothing here knows what a map means.
 *
 * libbpf 1.x returns a negative errno (or NULL with errno set). Calls that callers tell apart by errno return the number;
 * all others throw. Everything is synchronous and acts in the network namespace of the calling thread, which is the one
 * that the agent was started in.
 */
import os from 'node:os';
import { MeshError } from '@clustermesh/contract';
import koffi from 'koffi';

/** An address of the C side. */
export type Pointer = bigint;

const lib = koffi.load('libbpf.so.1');
const libc = koffi.load('libc.so.6');

const tcHook = koffi.struct('bpf_tc_hook', {
  sz: 'size_t',
  ifindex: 'int',
  attach_point: 'int',
  parent: 'uint32_t',
});
const tcOpts = koffi.struct('bpf_tc_opts', {
  sz: 'size_t',
  prog_fd: 'int',
  flags: 'uint32_t',
  prog_id: 'uint32_t',
  handle: 'uint32_t',
  priority: 'uint32_t',
});
const openOpts = koffi.struct('bpf_object_open_opts', {
  sz: 'size_t',
  object_name: 'const char *',
  relaxed_maps: 'bool',
  pin_root_path: 'const char *',
  stub: 'uint32_t',
  kconfig: 'const char *',
  btf_custom_path: 'const char *',
  kernel_log_buf: 'void *',
  kernel_log_size: 'size_t',
  kernel_log_level: 'uint32_t',
});
const mapCreateOpts = koffi.struct('bpf_map_create_opts', {
  sz: 'size_t',
  btf_fd: 'uint32_t',
  btf_key_type_id: 'uint32_t',
  btf_value_type_id: 'uint32_t',
  btf_vmlinux_value_type_id: 'uint32_t',
  inner_map_fd: 'uint32_t',
  map_flags: 'uint32_t',
});
const testRunOpts = koffi.struct('bpf_test_run_opts', {
  sz: 'size_t',
  data_in: 'void *',
  data_out: 'void *',
  data_size_in: 'uint32_t',
  data_size_out: 'uint32_t',
  ctx_in: 'void *',
  ctx_out: 'void *',
  ctx_size_in: 'uint32_t',
  ctx_size_out: 'uint32_t',
  retval: 'uint32_t',
  repeat: 'int',
  duration: 'uint32_t',
  flags: 'uint32_t',
  cpu: 'uint32_t',
  batch_size: 'uint32_t',
});

const c = {
  setPrint: lib.func('void *libbpf_set_print(void *fn)'),
  possibleCpus: lib.func('int libbpf_num_possible_cpus()'),
  open: lib.func('void *bpf_object__open_file(const char *path, bpf_object_open_opts *opts)'),
  load: lib.func('int bpf_object__load(void *object)'),
  close: lib.func('void bpf_object__close(void *object)'),
  nextMap: lib.func('void *bpf_object__next_map(void *object, void *previous)'),
  nextProgram: lib.func('void *bpf_object__next_program(void *object, void *previous)'),
  mapName: lib.func('const char *bpf_map__name(void *map)'),
  mapIsInternal: lib.func('bool bpf_map__is_internal(void *map)'),
  mapFd: lib.func('int bpf_map__fd(void *map)'),
  mapSetMaxEntries: lib.func('int bpf_map__set_max_entries(void *map, uint32_t n)'),
  btfLoad: lib.func('intptr_t btf__load_from_kernel_by_id(uint32_t id)'),
  btfRaw: lib.func('intptr_t btf__raw_data(intptr_t btf, _Out_ uint32_t *size)'),
  btfFree: lib.func('void btf__free(intptr_t btf)'),
  mapReuseFd: lib.func('int bpf_map__reuse_fd(void *map, int fd)'),
  mapPin: lib.func('int bpf_map__pin(void *map, const char *path)'),
  mapInitialValue: lib.func('void *bpf_map__initial_value(void *map, _Out_ size_t *size)'),
  programSetAutoload: lib.func('int bpf_program__set_autoload(void *program, bool autoload)'),
  programName: lib.func('const char *bpf_program__name(void *program)'),
  programFd: lib.func('int bpf_program__fd(void *program)'),
  programFdById: lib.func('int bpf_prog_get_fd_by_id(uint32_t id)'),
  attachCgroup: lib.func('void *bpf_program__attach_cgroup(void *program, int cgroup_fd)'),
  attachIterator: lib.func('void *bpf_program__attach_iter(void *program, const void *opts)'),
  iteratorCreate: lib.func('int bpf_iter_create(int link_fd)'),
  linkOpen: lib.func('void *bpf_link__open(const char *path)'),
  linkPin: lib.func('int bpf_link__pin(void *link, const char *path)'),
  linkUpdate: lib.func('int bpf_link__update_program(void *link, void *program)'),
  linkFd: lib.func('int bpf_link__fd(void *link)'),
  linkDestroy: lib.func('int bpf_link__destroy(void *link)'),
  objGet: lib.func('int bpf_obj_get(const char *path)'),
  objPin: lib.func('int bpf_obj_pin(int fd, const char *path)'),
  objInfo: lib.func('int bpf_obj_get_info_by_fd(int fd, void *info, _Inout_ uint32_t *length)'),
  mapCreate: lib.func(
    'int bpf_map_create(int type, const char *name, uint32_t key, uint32_t value, uint32_t max_entries, bpf_map_create_opts *opts)',
  ),
  mapLookup: lib.func('int bpf_map_lookup_elem(int fd, const void *key, void *value)'),
  mapUpdate: lib.func('int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)'),
  mapDelete: lib.func('int bpf_map_delete_elem(int fd, const void *key)'),
  mapNextKey: lib.func('int bpf_map_get_next_key(int fd, const void *key, void *next_key)'),
  updateBatch: lib.func(
    'int bpf_map_update_batch(int fd, const void *keys, const void *values, _Inout_ uint32_t *count, void *opts)',
  ),
  deleteBatch: lib.func('int bpf_map_delete_batch(int fd, const void *keys, _Inout_ uint32_t *count, void *opts)'),
  lookupBatch: lib.func(
    'int bpf_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, _Inout_ uint32_t *count, void *opts)',
  ),
  tcHookCreate: lib.func('int bpf_tc_hook_create(bpf_tc_hook *hook)'),
  tcAttach: lib.func('int bpf_tc_attach(bpf_tc_hook *hook, bpf_tc_opts *opts)'),
  tcDetach: lib.func('int bpf_tc_detach(bpf_tc_hook *hook, bpf_tc_opts *opts)'),
  tcQuery: lib.func('int bpf_tc_query(bpf_tc_hook *hook, _Inout_ bpf_tc_opts *opts)'),
  testRun: lib.func('int bpf_prog_test_run_opts(int fd, _Inout_ bpf_test_run_opts *opts)'),
  ifNameToIndex: libc.func('uint32_t if_nametoindex(const char *name)'),
  ifIndexToName: libc.func('char *if_indextoname(uint32_t index, void *name)'),
  closeFd: libc.func('int close(int fd)'),
  duplicateFd: libc.func('int dup(int fd)'),
};

// libbpf would write to our stderr what the errors below say better.
c.setPrint(null);

export const { ENOENT, EEXIST, E2BIG, ENOSPC, ENODEV, EINVAL, EOPNOTSUPP, ENOMEM } = os.constants.errno;
/** The kernel's own "not supported" (524), which escapes to user space from map batch calls. */
export const ENOTSUPP = 524;

const errnoNames = new Map(Object.entries(os.constants.errno).map(([name, number]) => [number, name]));

/** "No such file or directory (ENOENT)" for 2 or -2. */
export function errnoText(errno: number): string {
  const number = Math.abs(errno);
  if (number === ENOTSUPP) return 'operation not supported (ENOTSUPP)';
  const name = errnoNames.get(number);
  return name === undefined ? `errno ${number}` : `${os.platform() === 'linux' ? strerror(number) : name} (${name})`;
}

const strerrorFn = libc.func('const char *strerror(int errno)');
function strerror(number: number): string {
  return strerrorFn(number) as string;
}

export function kernelError(attempted: string, errno: number, hint?: string): MeshError {
  return new MeshError({ code: 'kernel', message: `${attempted}: ${errnoText(errno)}`, hint });
}

function must(rc: number, attempted: string, hint?: string): number {
  if (rc < 0) throw kernelError(attempted, rc, hint);
  return rc;
}

function mustPointer(pointer: Pointer | null, attempted: string): Pointer {
  if (pointer === null) throw kernelError(attempted, koffi.errno());
  return pointer;
}

// ---- objects ---------------------------------------------------------------------------------------------------

export interface BpfObject {
  readonly pointer: Pointer;
  readonly path: string;
  /** Where the verifier writes when it refuses a program; must live as long as the object. */
  readonly verifierLog: Buffer;
}

export function openObject(path: string): BpfObject {
  const verifierLog = Buffer.alloc(1 << 20);
  const opts = {
    sz: koffi.sizeof(openOpts),
    object_name: null,
    relaxed_maps: false,
    pin_root_path: null,
    stub: 0,
    kconfig: null,
    btf_custom_path: null,
    kernel_log_buf: verifierLog,
    kernel_log_size: verifierLog.length,
    kernel_log_level: 0,
  };
  return { pointer: mustPointer(c.open(path, opts), `opening eBPF object ${path}`), path, verifierLog };
}

/** Its maps are made, and nothing is verified. */
export function loadMaps(object: BpfObject): void {
  for (const program of chain(c.nextProgram, object))
    must(c.programSetAutoload(program, false), `leaving out the programs of ${object.path}`);
  mustLoad(object, c.load(object.pointer));
}

/** In a thread beside this one: the verifier takes up to half a second for a program, and several can be before it at a time. */
export const loadObject = (object: BpfObject): Promise<void> =>
  new Promise((resolve, reject) => {
    c.load.async(object.pointer, (error: Error | null, rc: number) => {
      try {
        if (error !== null) throw error;
        resolve(mustLoad(object, rc));
      } catch (failure) {
        reject(failure);
      }
    });
  });

function mustLoad(object: BpfObject, rc: number): void {
  if (rc >= 0) return;
  const end = object.verifierLog.indexOf(0);
  const log = object.verifierLog.toString('utf8', Math.max(0, end - 2000), end).trim();
  throw new MeshError({
    code: 'kernel',
    message: `loading eBPF object ${object.path}: ${errnoText(rc)}${log ? `; the verifier said: …${log}` : ''}`,
    hint: 'The agent needs root (CAP_BPF, CAP_NET_ADMIN) and a kernel of 5.18 or later with BTF.',
  });
}

export const closeObject = (object: BpfObject): void => c.close(object.pointer);

function* chain(next: (object: Pointer, previous: Pointer | null) => Pointer | null, object: BpfObject) {
  for (let p = next(object.pointer, null); p !== null; p = next(object.pointer, p)) yield p;
}

/** Declared maps (not .rodata and its like) by name. */
export function objectMaps(object: BpfObject): Map<string, Pointer> {
  const declared = [...chain(c.nextMap, object)].filter((map) => !c.mapIsInternal(map));
  return new Map(declared.map((map) => [c.mapName(map) as string, map]));
}

export function objectPrograms(object: BpfObject): Map<string, Pointer> {
  return new Map([...chain(c.nextProgram, object)].map((program) => [c.programName(program) as string, program]));
}

/** The object's .rodata, writable until it is loaded. */
export function objectRodata(object: BpfObject): Buffer {
  for (const map of chain(c.nextMap, object)) {
    if (!(c.mapName(map) as string).endsWith('.rodata')) continue;
    const size = [0];
    const pointer = mustPointer(c.mapInitialValue(map, size), `reading .rodata of ${object.path}`);
    return Buffer.from(koffi.view(pointer, Number(size[0])));
  }
  throw new MeshError({ code: 'internal', message: `reading .rodata of ${object.path}: the object has none` });
}

export const mapFd = (map: Pointer): number => must(c.mapFd(map), 'asking for the descriptor of a map');
export const setMaxEntries = (map: Pointer, n: number): number => must(c.mapSetMaxEntries(map, n), 'sizing a map');
/** libbpf duplicates the descriptor. */
export const reuseMap = (map: Pointer, fd: number): number => must(c.mapReuseFd(map, fd), 'reusing a pinned map');
export const pinMap = (map: Pointer, path: string): number => must(c.mapPin(map, path), `pinning a map at ${path}`);
export const programFd = (program: Pointer): number => must(c.programFd(program), 'asking for a program descriptor');
/** A descriptor of its own, to be closed. */
export const programFdById = (id: number): number => must(c.programFdById(id), `opening eBPF program ${id}`);

// ---- maps ------------------------------------------------------------------------------------------------------

export const possibleCpus = (): number => must(c.possibleCpus(), 'counting CPUs');
export const closeFd = (fd: number): void => void c.closeFd(fd);
export const duplicateFd = (fd: number): number => must(c.duplicateFd(fd), 'duplicating a descriptor');

/** Descriptor of what is pinned at `path`, or undefined if nothing is. */
export function pinned(path: string): number | undefined {
  const fd: number = c.objGet(path);
  if (fd === -ENOENT) return undefined;
  return must(fd, `opening the pin ${path}`);
}

export const pinFd = (fd: number, path: string): number => must(c.objPin(fd, path), `pinning at ${path}`);

export interface RawMapInfo {
  type: number;
  id: number;
  keySize: number;
  valueSize: number;
  maxEntries: number;
  flags: number;
  /** What its rows are made of: see btfOf(). 0: not known. */
  btf: number;
  btfKeyType: number;
  btfValueType: number;
}

export function objectInfo(fd: number, size: number): Buffer {
  const info = Buffer.alloc(size);
  must(c.objInfo(fd, info, [size]), 'asking the kernel about an eBPF object');
  return info;
}

/** struct bpf_map_info */
export function mapInfo(fd: number): RawMapInfo {
  const info = objectInfo(fd, 80);
  const u32 = (at: number) => info.readUInt32LE(at);
  const [btf, btfKeyType, btfValueType] = [u32(64), u32(68), u32(72)];
  const rows = { keySize: u32(8), valueSize: u32(12), maxEntries: u32(16) };
  return { type: u32(0), id: u32(4), ...rows, flags: u32(20), btf, btfKeyType, btfValueType };
}

/** The type information that a map was made with, as bytes; undefined: none. */
export function btfOf({ btf, btfValueType }: RawMapInfo): Buffer | undefined {
  if (btf === 0 || btfValueType === 0) return undefined;
  const loaded: bigint = BigInt(c.btfLoad(btf));
  if (loaded === 0n) throw kernelError(`reading type information ${btf}`, koffi.errno());
  try {
    const size = [0];
    const data = BigInt(c.btfRaw(loaded, size));
    return Buffer.from(Buffer.from(koffi.view(data, size[0]!)));
  } finally {
    c.btfFree(loaded);
  }
}

export function createMap(
  type: number,
  name: string,
  keySize: number,
  valueSize: number,
  maxEntries: number,
  map_flags = 0,
): number {
  const none = { btf_fd: 0, btf_key_type_id: 0, btf_value_type_id: 0, btf_vmlinux_value_type_id: 0, inner_map_fd: 0 };
  const opts = { sz: koffi.sizeof(mapCreateOpts), ...none, map_flags };
  return must(c.mapCreate(type, name, keySize, valueSize, maxEntries, opts), `creating map ${name}`);
}

const BPF_NOEXIST = 1;

// These return 0 or a negative errno.
export const mapLookup: (fd: number, key: Buffer, value: Buffer) => number = c.mapLookup;
export const mapUpdate = (fd: number, key: Buffer, value: Buffer): number => c.mapUpdate(fd, key, value, 0);
/** Only where there is no such row. */
export const mapInsert = (fd: number, key: Buffer, value: Buffer): number => c.mapUpdate(fd, key, value, BPF_NOEXIST);
export const mapDelete: (fd: number, key: Buffer) => number = c.mapDelete;
export const mapNextKey: (fd: number, key: Buffer | null, next: Buffer) => number = c.mapNextKey;

/** Batch calls also say how many elements were done before the error. */
export interface BatchResult {
  rc: number;
  count: number;
}

function batch(call: (count: [number]) => number, wanted: number): BatchResult {
  const count: [number] = [wanted];
  const rc = call(count);
  return { rc, count: count[0] };
}

export const updateBatch = (fd: number, keys: Buffer, values: Buffer, n: number): BatchResult =>
  batch((count) => c.updateBatch(fd, keys, values, count, null), n);
export const deleteBatch = (fd: number, keys: Buffer, n: number): BatchResult =>
  batch((count) => c.deleteBatch(fd, keys, count, null), n);
export const lookupBatch = (fd: number, token: Buffer | null, next: Buffer, keys: Buffer, values: Buffer, n: number) =>
  batch((count) => c.lookupBatch(fd, token, next, keys, values, count, null), n);

// ---- attaching -------------------------------------------------------------------------------------------------

export type TcDirection = 'ingress' | 'egress';
const attachPoint = { ingress: 1, egress: 2 } as const;
const BPF_TC_F_REPLACE = 1;

/** Which filter is ours on any device: the same in every version, so that a newer agent replaces an older one's. */
const OUR_FILTER = { handle: 1, priority: 1 } as const;

const hook = (ifindex: number, attach_point: number) => ({
  sz: koffi.sizeof(tcHook),
  ifindex,
  attach_point,
  parent: 0,
});
const filter = (prog_fd: number, flags: number) => ({
  sz: koffi.sizeof(tcOpts),
  prog_fd,
  flags,
  prog_id: 0,
  ...OUR_FILTER,
});

/** Puts the program in place of whatever version was there; the kernel swaps them between two packets. */
export function attachTc(ifindex: number, direction: TcDirection, fd: number): void {
  const created: number = c.tcHookCreate(hook(ifindex, attachPoint.ingress | attachPoint.egress));
  if (created < 0 && created !== -EEXIST) throw kernelError(`adding clsact to interface ${ifindex}`, created);
  const rc: number = c.tcAttach(hook(ifindex, attachPoint[direction]), filter(fd, BPF_TC_F_REPLACE));
  must(rc, `attaching to tc ${direction} of interface ${ifindex}`);
}

/** Nothing attached, or no such interface any more, is success. */
export function detachTc(ifindex: number, direction: TcDirection): void {
  const rc: number = c.tcDetach(hook(ifindex, attachPoint[direction]), filter(0, 0));
  if (![0, -ENOENT, -EINVAL, -ENODEV].includes(rc)) throw kernelError(`detaching from interface ${ifindex}`, rc);
}

/** Id of our program there, if any. */
export function queryTc(ifindex: number, direction: TcDirection): number | undefined {
  const opts = filter(0, 0);
  const rc: number = c.tcQuery(hook(ifindex, attachPoint[direction]), opts);
  return rc < 0 ? undefined : opts.prog_id;
}

export interface CgroupLink {
  pointer: Pointer;
  /** 0 once the cgroup is gone. */
  cgroupId: bigint;
}

export function attachCgroup(program: Pointer, cgroupFd: number): Pointer {
  return mustPointer(c.attachCgroup(program, cgroupFd), 'attaching to the cgroup');
}

export const attachIterator = (program: Pointer): Pointer =>
  mustPointer(c.attachIterator(program, null), 'attaching an iterator');

/** A descriptor whose reading runs the program, over what the network namespace of the moment has. */
export const createIterator = (link: Pointer): number =>
  must(c.iteratorCreate(c.linkFd(link)), 'starting an iterator over sockets');

/** The link pinned at `path`; undefined if there is none. */
export function openLink(path: string): CgroupLink | undefined {
  const pointer: Pointer | null = c.linkOpen(path);
  if (pointer === null) {
    if (koffi.errno() === ENOENT) return undefined;
    throw kernelError(`opening the pinned link ${path}`, koffi.errno());
  }
  // struct bpf_link_info: type, id, prog_id, then (8-aligned) cgroup_id
  return { pointer, cgroupId: objectInfo(c.linkFd(pointer), 64).readBigUInt64LE(16) };
}

export const pinLink = (link: Pointer, path: string): number => must(c.linkPin(link, path), `pinning link at ${path}`);
export const updateLink = (link: Pointer, program: Pointer): number =>
  must(c.linkUpdate(link, program), 'replacing the program of a cgroup link');
/** Closes our handle; a pinned link stays attached. */
export const closeLink = (link: Pointer): void => void c.linkDestroy(link);

// ---- network devices -------------------------------------------------------------------------------------------

export function interfaceIndex(name: string): number | undefined {
  return (c.ifNameToIndex(name) as number) || undefined;
}

export function interfaceName(index: number): string | undefined {
  return (c.ifIndexToName(index, Buffer.alloc(16)) as string | null) ?? undefined;
}

// ---- running a program on a packet ------------------------------------------------------------------------------

export interface TestRun {
  verdict: number;
  packet: Buffer;
  /** Mean time of one run. */
  nanoseconds: number;
}

export interface TestRunInput {
  packet: Buffer;
  /** struct __sk_buff */
  context?: Buffer;
  repeat?: number;
}

/** BPF_PROG_TEST_RUN: the program sees the packet as if the kernel had received it; nothing is sent. */
export function testRun(fd: number, { packet, context, repeat }: TestRunInput): TestRun {
  const out = Buffer.alloc(packet.length + 256);
  const opts = {
    sz: koffi.sizeof(testRunOpts),
    data_in: packet,
    data_out: out,
    data_size_in: packet.length,
    data_size_out: out.length,
    ctx_in: context ?? null,
    ctx_out: null,
    ctx_size_in: context?.length ?? 0,
    ctx_size_out: 0,
    retval: 0,
    repeat: repeat ?? 1,
    duration: 0,
    flags: 0,
    cpu: 0,
    batch_size: 0,
  };
  must(c.testRun(fd, opts), 'running an eBPF program on a packet');
  return { verdict: opts.retval, packet: out.subarray(0, opts.data_size_out), nanoseconds: opts.duration };
}
