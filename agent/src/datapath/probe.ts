/**
 * What the datapath needs of the kernel, asked of the kernel itself and not of its version: distributions backport, and leave out.
 * docs/kernel.md is the same list for people; a test holds the two together.
 */
import { MeshError } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import koffi from 'koffi';
import * as libbpf from './libbpf.ts';

const lib = koffi.load('libbpf.so.1');
const c = {
  programType: lib.func('int libbpf_probe_bpf_prog_type(int type, const void *opts)'),
  mapType: lib.func('int libbpf_probe_bpf_map_type(int type, const void *opts)'),
  helper: lib.func('int libbpf_probe_bpf_helper(int prog_type, int helper, const void *opts)'),
  kernelBtfId: lib.func('int libbpf_find_vmlinux_btf_id(const char *name, int attach_type)'),
};

/** Numbers of linux/bpf.h. */
const PROGRAM = { tc: 3, xdp: 6, socketAddress: 18 } as const;
const MAP = { hash: 1, percpuArray: 6, lruHash: 9, lpmTrie: 11, ringBuffer: 27 } as const;
const HELPER = {
  skbGetTunnelKey: 20,
  skbSetTunnelKey: 21,
  csumDiff: 28,
  xdpAdjustHead: 44,
  fibLookup: 69,
  skbChangeTail: 38,
  skbPullData: 39,
  skbAdjustRoom: 50,
  getSocketCookie: 46,
  getNetnsCookie: 122,
  ringbufReserve: 131,
  redirect: 23,
  redirectNeigh: 152,
  redirectPeer: 155,
  ktimeGetCoarseNs: 160,
  setRetval: 187,
  xdpGetBuffLen: 188,
  xdpLoadBytes: 189,
} as const;

/** Functions that programs call, and what there are iterators over: named in the kernel's BTF, which there must be. */
const ATTACH = { function: 24, iterator: 28 } as const; // BPF_TRACE_FENTRY, BPF_TRACE_ITER

export type Probe =
  | { readonly program: keyof typeof PROGRAM }
  | { readonly map: keyof typeof MAP }
  | { readonly helper: keyof typeof HELPER; readonly of: keyof typeof PROGRAM }
  | { readonly batches: 'hash' | 'lpmTrie' }
  | { readonly function: string }
  | { readonly iterator: string };

export interface Feature {
  readonly name: string;
  /** Without it there is no datapath; the others have a slower way. */
  readonly isRequired: boolean;
  readonly probes: readonly Probe[];
  /** The first mainline kernel that has all of it. */
  readonly since: string;
  readonly config: readonly string[];
  readonly without: string;
}

const tc = (helper: keyof typeof HELPER): Probe => ({ helper, of: 'tc' });
const xdp = (helper: keyof typeof HELPER): Probe => ({ helper, of: 'xdp' });
const socket = (helper: keyof typeof HELPER): Probe => ({ helper, of: 'socketAddress' });

/** Wanted only where datapath.xdp asks for it. */
export const XDP_FEATURE = 'services at the driver';

export const FEATURES: readonly Feature[] = [
  {
    name: 'packet programs',
    isRequired: true,
    probes: [{ program: 'tc' }, tc('redirectPeer'), tc('skbPullData'), tc('skbChangeTail'), tc('csumDiff')],
    since: '5.10',
    config: ['CONFIG_BPF_SYSCALL', 'CONFIG_NET_CLS_BPF', 'CONFIG_NET_CLS_ACT', 'CONFIG_NET_SCH_INGRESS', 'CONFIG_VETH'],
    without: 'the agent does not start',
  },
  {
    name: 'tunnel',
    isRequired: true,
    probes: [tc('skbSetTunnelKey'), tc('skbGetTunnelKey')],
    since: '4.3',
    config: ['CONFIG_VXLAN'],
    without: 'the agent does not start',
  },
  {
    name: 'socket load balancing',
    isRequired: true,
    probes: [{ program: 'socketAddress' }, socket('setRetval'), socket('getSocketCookie'), socket('getNetnsCookie')],
    since: '5.18',
    config: ['CONFIG_CGROUP_BPF'],
    without: 'the agent does not start',
  },
  {
    name: 'services from outside',
    isRequired: true,
    probes: [tc('fibLookup'), tc('redirectNeigh'), tc('skbAdjustRoom')],
    since: '5.10',
    config: ['CONFIG_INET', 'CONFIG_NET_CLS_BPF'],
    without: 'the agent does not start',
  },
  {
    name: 'tables',
    isRequired: true,
    probes: [{ map: 'hash' }, { map: 'lruHash' }, { map: 'lpmTrie' }, { map: 'percpuArray' }],
    since: '4.11',
    config: ['CONFIG_BPF_SYSCALL'],
    without: 'the agent does not start',
  },
  {
    name: 'flow events',
    isRequired: true,
    probes: [{ map: 'ringBuffer' }, tc('ringbufReserve'), tc('ktimeGetCoarseNs'), socket('ringbufReserve')],
    since: '5.11',
    config: ['CONFIG_BPF_SYSCALL'],
    without: 'the agent does not start: the programs name them',
  },
  {
    name: 'batches of rows',
    isRequired: false,
    probes: [{ batches: 'hash' }],
    since: '5.6',
    config: ['CONFIG_BPF_SYSCALL'],
    without: 'rows are written one by one: four times the time',
  },
  {
    name: 'batches of prefixes',
    isRequired: false,
    probes: [{ batches: 'lpmTrie' }],
    since: '5.13',
    config: ['CONFIG_BPF_SYSCALL'],
    without: 'prefixes are written one by one: four times the time',
  },
  {
    name: 'ending of sockets',
    isRequired: false,
    probes: [{ iterator: 'tcp' }, { iterator: 'udp' }, { function: 'bpf_sock_destroy' }],
    since: '6.5',
    config: ['CONFIG_DEBUG_INFO_BTF'],
    without: 'a connection to a withdrawn backend whose node is gone too ends when TCP gives it up',
  },
  {
    name: XDP_FEATURE,
    isRequired: false,
    probes: [
      { program: 'xdp' },
      ...[xdp('xdpAdjustHead'), xdp('fibLookup'), xdp('redirect'), xdp('csumDiff')],
      ...[xdp('xdpGetBuffLen'), xdp('xdpLoadBytes')],
    ],
    since: '5.18',
    config: ['CONFIG_BPF_SYSCALL', 'CONFIG_INET'],
    without: '`datapath.xdp` has no effect: tc does its work',
  },
];

/** A map of one row, written as a batch. */
function hasBatches(kind: 'hash' | 'lpmTrie'): boolean {
  const NO_PREALLOC = 1;
  const fd = libbpf.createMap(MAP[kind], 'cm_probe', 8, 4, 1, NO_PREALLOC);
  try {
    return libbpf.updateBatch(fd, Buffer.alloc(8), Buffer.alloc(4), 1).rc === 0;
  } finally {
    libbpf.closeFd(fd);
  }
}

/** Throws if the kernel could not be asked. */
export function askKernel(probe: Probe): boolean {
  if ('batches' in probe) return hasBatches(probe.batches);
  if ('function' in probe) return (c.kernelBtfId(probe.function, ATTACH.function) as number) > 0;
  if ('iterator' in probe) return (c.kernelBtfId(probe.iterator, ATTACH.iterator) as number) > 0;
  const answer: number =
    'program' in probe
      ? c.programType(PROGRAM[probe.program], null)
      : 'map' in probe
        ? c.mapType(MAP[probe.map], null)
        : c.helper(PROGRAM[probe.of], HELPER[probe.helper], null);
  if (answer < 0) throw libbpf.kernelError('asking the kernel what it has', answer, 'The agent needs root (CAP_BPF).');
  return answer === 1;
}

export interface FeatureReport {
  readonly feature: Feature;
  /** What it has not; none: the feature is there. */
  readonly missing: readonly string[];
}

const probeText = (probe: Probe): string => Object.values(probe).map(String).join(' of ');

export function probeFeatures(ask: (probe: Probe) => boolean = askKernel): FeatureReport[] {
  return FEATURES.map((feature) => ({
    feature,
    missing: feature.probes.filter((probe) => !ask(probe)).map(probeText),
  }));
}

/** Says what the kernel has, and throws if that is too little. Returns the names of what it has not. */
export function requireFeatures(
  log: Log,
  release: string,
  reports: readonly FeatureReport[] = probeFeatures(),
): ReadonlySet<string> {
  const lacking = reports.filter(({ missing }) => missing.length > 0);
  const required = lacking.filter(({ feature }) => feature.isRequired);
  if (required.length > 0) {
    const texts = required.map(
      ({ feature, missing }) =>
        `${feature.name} (Linux ${feature.since}, ${feature.config.join(', ')}; missing: ${missing.join(', ')})`,
    );
    throw new MeshError({
      code: 'unsupported',
      message: `opening the datapath on kernel ${release}: it lacks ${texts.join('; ')}`,
      hint: 'docs/kernel.md lists what each feature needs.',
    });
  }
  for (const { feature, missing } of lacking)
    log.warn(
      { feature: feature.name, missing, since: feature.since },
      `the kernel lacks a feature: ${feature.without}`,
    );
  const features = reports.filter(({ missing }) => missing.length === 0).map(({ feature }) => feature.name);
  log.info({ kernel: release, features }, 'what the kernel has for the datapath');
  return new Set(lacking.map(({ feature }) => feature.name));
}
