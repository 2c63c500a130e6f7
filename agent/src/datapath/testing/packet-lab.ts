/**
 * What the packet tests share: the programs' bodies under BPF_PROG_TEST_RUN over maps filled in like this. Nothing is sent.
 *
 *   node 172.31.1.11, fd31::1:11 (cluster 1)          node 172.31.2.11, fd31::2:11 (cluster 2)
 *   pods 10.1.1.0/24, fd00:1:1::/64, gateways .1, ::1
 *     pod a 10.1.1.5  fd00:1:1::5  ifindex 21           pod c 10.2.1.7  fd00:2:1::7
 *     pod b 10.1.1.6  fd00:1:1::6  ifindex 22         prefixes 10.3.0.0/16, fd00:3::/32 behind 172.31.2.12
 *                                                     pod d 10.4.1.7  fd00:4:1::7 (cluster 4) behind 172.31.4.11, without the tunnel
 *                                                     pod w 10.2.1.9  fd00:2:1::9 behind fd31::2:11
 *   services: see SERVICES; 10.96.0.x and fd96::x alike, and from outside by NODE and LB
 */
import assert from 'node:assert/strict';
import { CmAction as Action, type CmDecision, CmXdpMode, cmAddr, CmReason as Reason } from '@clustermesh/bpf';
import { dumpDrops } from '../dump.ts';
import * as libbpf from '../libbpf.ts';
import { type Loaded, loadPrograms } from '../loader.ts';
import { hostPrefix, toFamily, toMac } from '../rows.ts';
import { openServices, type ServiceTable } from '../services.ts';
import { ipcacheTable, nodeTable } from '../tables.ts';
import type { Backend, Protocol, ServiceRow } from '../types.ts';
import { build, type Frame, type ReadFrame, read } from './frames.ts';
import { buildRoutes, enterNetns } from './routed.ts';
import { openSandbox } from './sandbox.ts';

export interface LabPod {
  ip: string;
  ip6: string;
  ifindex: number;
  mac: string;
  hostMac: string;
  identity: number;
}

export const A: LabPod = {
  ip: '10.1.1.5',
  ip6: 'fd00:1:1::5',
  ifindex: 21,
  mac: '02:aa:00:00:00:05',
  hostMac: '02:bb:00:00:00:05',
  identity: (1 << 16) + 5,
};
export const B: LabPod = {
  ip: '10.1.1.6',
  ip6: 'fd00:1:1::6',
  ifindex: 22,
  mac: '02:aa:00:00:00:06',
  hostMac: '02:bb:00:00:00:06',
  identity: (1 << 16) + 6,
};
export const C = { ip: '10.2.1.7', ip6: 'fd00:2:1::7', identity: (2 << 16) + 7, node: '172.31.2.11' };
/** A pod behind the same node, by its IPv6 underlay address. */
export const W = { ip: '10.2.1.9', ip6: 'fd00:2:1::9', identity: (2 << 16) + 9, node: 'fd31::2:11' };
/** A pod of a cluster that is reached directly. */
export const D = { ip: '10.4.1.7', ip6: 'fd00:4:1::7', identity: (4 << 16) + 7, node: '172.31.4.11' };
export const NODE = '172.31.1.11';
export const NODE6 = 'fd31::1:11';
/** External addresses. */
export const LB = '192.0.2.1';
export const LB6 = '2001:db8::1';
export const GATEWAY = '10.1.1.1';
export const GATEWAY6 = 'fd00:1:1::1';
export const VXLAN = 9;
export const UPLINK = 2;
/** The uplink to the world, in a lab with routes: see routed.ts. */
export const UPLINK_WORLD = 3;
export const OK = 0;
export const SHOT = 2;
export const REDIRECT = 7;
export const XDP = { drop: 1, pass: 2, tx: 3, redirect: 4 } as const;

export type Program =
  | 'cm_test_from_pod'
  | 'cm_test_to_pod'
  | 'cm_test_overlay'
  | 'cm_test_from_network'
  | 'cm_test_to_network'
  | 'cm_test_stale_row'
  | 'cm_test_xdp';

export interface Outcome {
  verdict: number;
  decision: CmDecision;
  out: Buffer;
}

/** What the kernel would tell: see bpf/test/seam.bpf.c. */
export interface MadeUp {
  vni?: number;
  remote?: string;
  ifindex?: number;
  /** By which interface the host got what it sends a pod; 0: it is its own. */
  cameBy?: number;
  gsoSize?: number;
}

/** struct __sk_buff with it. */
function context({ vni = 0, remote = '::', ifindex = 0, cameBy = 0, gsoSize = 0 }: MadeUp): Buffer {
  const skb = Buffer.alloc(192);
  skb.writeUInt32LE(ifindex, 8); // mark
  skb.writeUInt32LE(cameBy, 36); // ingress_ifindex
  skb.writeUInt32LE(vni, 48); // cb
  cmAddr.encode(remote, skb, 52);
  if (gsoSize > 0) skb.writeUInt32LE(2, 164); // gso_segs
  skb.writeUInt32LE(gsoSize, 176);
  return skb;
}

/** struct xdp_md */
function xdpContext(bytes: number, ifindex: number): Buffer {
  const md = Buffer.alloc(24);
  md.writeUInt32LE(bytes, 4); // data_end
  md.writeUInt32LE(ifindex, 12); // ingress_ifindex
  return md;
}

const nameOf = (table: Record<string, number>, value: number): string =>
  Object.keys(table).find((name) => table[name] === value) ?? String(value);

/** Verdict, action and reason in one comparison that reads well when it fails. */
export function assertOutcome(
  o: Outcome,
  verdict: number,
  action: keyof typeof Action,
  reason: keyof typeof Reason,
): void {
  const got = [o.verdict, nameOf(Action, o.decision.action), nameOf(Reason, o.decision.reason)];
  assert.deepEqual(got, [verdict, action, reason]);
}

/** Of what is expected, and that every checksum holds. */
export function assertFrame(out: Buffer, expected: Partial<ReadFrame>): void {
  const got = read(out);
  const seen = Object.fromEntries(Object.keys(expected).map((key) => [key, got[key as keyof ReadFrame]]));
  assert.deepEqual({ ...seen, wrong: got.wrong }, { ...expected, wrong: [] });
}

export const tcp = (saddr: string, sport: number, daddr: string, dport: number, flags = 'S', payload = ''): Frame => ({
  saddr,
  daddr,
  tcp: { sport, dport, flags, seq: 1000, ack: flags.includes('A') ? 5000 : 0 },
  payload,
});

export const udp = (saddr: string, sport: number, daddr: string, dport: number, payload = 'question'): Frame => ({
  saddr,
  daddr,
  udp: { sport, dport },
  payload,
});

export function retarget(frame: Frame, side: 'sport' | 'dport', port: number): Frame {
  if (frame.tcp) return { ...frame, tcp: { ...frame.tcp, [side]: port } };
  return { ...frame, udp: { ...frame.udp!, [side]: port } };
}

export interface PacketLab {
  loaded: Loaded;
  services: ServiceTable;
  run(program: Program, packet: Buffer, hook: MadeUp): Outcome;
  fromPod(frame: Frame | Buffer, pod?: LabPod, hook?: MadeUp): Outcome;
  toPod(frame: Frame | Buffer, cameBy?: number): Outcome;
  fromNetwork(frame: Frame | Buffer, hook?: MadeUp): Outcome;
  toNetwork(frame: Frame | Buffer): Outcome;
  overlay(frame: Frame | Buffer, vni?: number, remote?: string): Outcome;
  /** At the driver of an uplink; a lab with routes only. */
  xdp(frame: Frame | Buffer, ifindex?: number): Outcome;
  counted(reason: string, direction: string): number;
  /** Of cm_nat. */
  forgetFlows(): Promise<void>;
  /** No flows, no fragments, and the services that the picture names. */
  reset(): Promise<void>;
  close(): Promise<void>;
}

const service = (ip: string, port: number, protocol: Protocol, backends: Backend[]): ServiceRow => ({
  frontend: { ip, port, protocol },
  backends,
  flags: 0,
});

/** As other hosts see it. */
const outside = (...args: Parameters<typeof service>): ServiceRow => {
  const row = service(...args);
  return { ...row, frontend: { ...row.frontend, scope: 'outside' } };
};

/** `.10` → c (80/TCP to 8080, 53/UDP to 5353), `.20` → b (80/TCP to 8080), `.30` → nobody. */
const servicesOf = (net: string, b: string, c: string): ServiceRow[] => [
  service(`${net}10`, 80, 'TCP', [{ ip: c, clusterId: 2, port: 8080 }]),
  service(`${net}10`, 53, 'UDP', [{ ip: c, clusterId: 2, port: 5353 }]),
  service(`${net}20`, 80, 'TCP', [{ ip: b, clusterId: 1, port: 8080 }]),
  service(`${net}30`, 80, 'TCP', []),
  service(`${net}30`, 53, 'UDP', []),
];

/** The node's port 80 → b, `lb` port 80 → c, 53/UDP → c, port 8080 → d, `lb` port 4000 → nobody. */
const outsideOf = (node: string, lb: string, b: string, c: string): ServiceRow[] => [
  outside(node, 80, 'TCP', [{ ip: b, clusterId: 1, port: 8080 }]),
  outside(lb, 80, 'TCP', [{ ip: c, clusterId: 2, port: 8080 }]),
  outside(lb, 53, 'UDP', [{ ip: c, clusterId: 2, port: 5353 }]),
  outside(lb, 4000, 'TCP', []),
  outside(lb, 4000, 'UDP', []),
];

const SERVICES = [
  ...servicesOf('10.96.0.', B.ip, C.ip),
  ...servicesOf('fd96::', B.ip6, C.ip6),
  ...outsideOf(NODE, LB, B.ip, C.ip),
  ...outsideOf(NODE6, LB6, B.ip6, C.ip6),
  outside(LB, 8080, 'TCP', [{ ip: D.ip, clusterId: 4, port: 8080 }]),
  outside(LB6, 8080, 'TCP', [{ ip: D.ip6, clusterId: 4, port: 8080 }]),
];

async function fill({ maps }: Loaded): Promise<void> {
  await maps.cm_endpoints.update(
    [A, B].flatMap((pod, i) => {
      const { ifindex, identity } = pod;
      const row = { ifindex, identity, endpointId: i, podMac: toMac(pod.mac), hostMac: toMac(pod.hostMac) };
      return [pod.ip, pod.ip6].map((ip) => [ip, row] as const);
    }),
  );
  await nodeTable(maps.cm_nodes).update([
    { ip: C.node, clusterId: 2, nodeId: 2 },
    { ip: W.node, clusterId: 2, nodeId: 2 },
    { ip: '172.31.1.12', clusterId: 1, nodeId: 3 },
  ]);
  const remote = { clusterId: 2, encryptKey: 0 };
  const hosts = [C, W].flatMap(({ ip, ip6, identity, node }) =>
    [ip, ip6].map((address) => ({ ...remote, prefix: hostPrefix(address), identity, tunnelEndpoint: node })),
  );
  await ipcacheTable(maps.cm_ipcache, maps.cm_ipcache_lpm).update([
    ...hosts,
    { ...remote, prefix: '10.3.0.0/16', identity: 2, tunnelEndpoint: '172.31.2.12' },
    { ...remote, prefix: 'fd00:3::/32', identity: 2, tunnelEndpoint: '172.31.2.12' },
    { ...remote, prefix: '10.3.9.9/32', identity: C.identity, tunnelEndpoint: C.node },
    { ...remote, prefix: 'fd00:3::9:9/128', identity: C.identity, tunnelEndpoint: C.node },
    ...[D.ip, D.ip6].map((address) => ({
      ...{ prefix: hostPrefix(address), identity: D.identity, tunnelEndpoint: D.node },
      ...{ direct: true as const, clusterId: 4, encryptKey: 0 },
    })),
    { ...remote, prefix: '0.0.0.0/0', identity: 2, tunnelEndpoint: null, clusterId: 0 },
    { ...remote, prefix: '::/0', identity: 10, tunnelEndpoint: null, clusterId: 0 },
  ]);
}

/**
 * `routed`: with routes, and XDP; until it is closed, this thread is in the lab's network namespace. `isDsr`: other nodes' backends answer
 * clients outside themselves.
 */
export async function openPacketLab({
  routed = false,
  isDsr = false,
  mapSizes,
}: {
  readonly routed?: boolean;
  readonly isDsr?: boolean;
  readonly mapSizes?: Record<string, number>;
} = {}): Promise<PacketLab> {
  const sandbox = await openSandbox();
  const loaded = await loadPrograms({
    objects: routed ? ['seam', 'xdp-seam'] : ['seam'],
    pinDir: `${sandbox.bpffs}/packets`,
    mapSizes,
    settings: {
      ipv4: toFamily({ nodeIp: NODE, gatewayIp: GATEWAY, podCidr: '10.1.1.0/24' }),
      ipv6: toFamily({ nodeIp: NODE6, gatewayIp: GATEWAY6, podCidr: 'fd00:1:1::/64' }),
      vxlanIfindex: VXLAN,
      identityShift: 16,
      underlayMtu: 1500,
      isDsr: isDsr ? 1 : 0,
    },
  });
  const { maps } = loaded;
  const services = await openServices(maps);
  await fill(loaded);
  let leave = () => {};
  if (routed) {
    const links = [
      { name: 'up0', ifindex: UPLINK },
      { name: 'up1', ifindex: UPLINK_WORLD },
    ] as const;
    await maps.cm_xdp_devices.update(links.map(({ ifindex }) => [ifindex, CmXdpMode.NATIVE]));
    leave = enterNetns(buildRoutes(sandbox, links));
  }

  const run: PacketLab['run'] = (program, packet, hook) => {
    const made = program === 'cm_test_xdp' ? xdpContext(packet.length, hook.ifindex ?? UPLINK) : context(hook);
    const result = libbpf.testRun(loaded.programFd(program), { packet, context: made });
    return { verdict: result.verdict, decision: maps.cm_decisions.lookup(0)!, out: result.packet };
  };
  const bytesOf = (frame: Frame | Buffer): Buffer => (Buffer.isBuffer(frame) ? frame : build(frame));
  const empty = async <K>(map: { entries(): Promise<[K, unknown][]>; remove(keys: K[]): Promise<unknown> }) =>
    map.remove((await map.entries()).map(([key]) => key));

  return {
    loaded,
    services,
    run,
    fromPod: (frame, pod = A, hook = {}) => run('cm_test_from_pod', bytesOf(frame), { ifindex: pod.ifindex, ...hook }),
    toPod: (frame, cameBy = 0) => run('cm_test_to_pod', bytesOf(frame), { ifindex: A.ifindex, cameBy }),
    fromNetwork: (frame, hook = {}) =>
      run('cm_test_from_network', bytesOf(frame), { ifindex: UPLINK, cameBy: routed ? UPLINK : 0, ...hook }),
    toNetwork: (frame) => run('cm_test_to_network', bytesOf(frame), { ifindex: UPLINK }),
    overlay: (frame, vni = C.identity, remote = C.node) =>
      run('cm_test_overlay', bytesOf(frame), { vni, remote, ifindex: VXLAN }),
    xdp: (frame, ifindex = UPLINK) => run('cm_test_xdp', bytesOf(frame), { ifindex }),
    counted(reason, direction) {
      const found = dumpDrops(loaded.maps).find((c) => c.reason === reason && c.direction === direction);
      return found?.packets ?? 0;
    },
    forgetFlows: async () => void (await empty(maps.cm_nat)),
    async reset() {
      await empty(maps.cm_ct);
      await empty(maps.cm_nat);
      await empty(maps.cm_fragments);
      await empty(maps.cm_icmp_limit);
      await services.update(SERVICES);
    },
    async close() {
      leave();
      await loaded.close();
      await sandbox.close();
    },
  };
}
