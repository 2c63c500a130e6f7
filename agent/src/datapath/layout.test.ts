/** The generated codecs against the kernel's own view: rows written by a codec, read by bpftool through the map's BTF. */
import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import { cmAddr, maps as layouts, type MapName } from '@clustermesh/bpf';
import type { BpfMap } from './bpf-map.ts';
import { dumpDrops } from './dump.ts';
import * as libbpf from './libbpf.ts';
import { isPinned, type Loaded, loadPrograms } from './loader.ts';
import { toFamily } from './rows.ts';
import { openSandbox, type Sandbox, sh } from './testing/sandbox.ts';

let sandbox: Sandbox;
let loaded: Loaded;
let pinDir: string;

before(async () => {
  sandbox = await openSandbox();
  pinDir = `${sandbox.bpffs}/layout`;
  const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 1, identityShift: 16, underlayMtu: 0 };
  loaded = await loadPrograms({ objects: ['sock', 'pod', 'overlay', 'destroy', 'xdp'], pinDir, settings });
});

after(async () => {
  await loaded?.close();
  await sandbox?.close();
});

/** What a host-order reader like bpftool makes of bytes in network order. */
const wordsOf = (ip: string): { word: number[] } => {
  const bytes = cmAddr.encode(ip);
  return { word: [0, 4, 8, 12].map((at) => bytes.readUInt32LE(at)) };
};
const be16 = (port: number): number => ((port & 0xff) << 8) | (port >> 8);

const addr = 'fd00:1:2:3:4:5:6:7';
const addrSeen = { word: [0x010000fd, 0x03000200, 0x05000400, 0x07000600] };
const remote = { identity: 0x01020304, node: '172.31.2.11', clusterId: 511, encryptKey: 3, flags: 4 };
const remoteSeen = { identity: 0x01020304, node: wordsOf('172.31.2.11'), cluster_id: 511, encrypt_key: 3, flags: 4 };

const rows: [MapName, unknown, unknown, object | number, object | number][] = [
  ['cm_ipcache', addr, remote, addrSeen, remoteSeen],
  ['cm_ipcache_lpm', { prefixLen: 128, net: addr }, remote, { prefix_len: 128, net: addrSeen }, remoteSeen],
  [
    'cm_endpoints',
    addr,
    {
      ifindex: 7,
      identity: 65537,
      endpointId: 9,
      podMac: Uint8Array.of(1, 2, 3, 4, 5, 6),
      hostMac: Uint8Array.of(7, 8, 9, 10, 11, 12),
    },
    addrSeen,
    { ifindex: 7, identity: 65537, endpoint_id: 9, pod_mac: [1, 2, 3, 4, 5, 6], host_mac: [7, 8, 9, 10, 11, 12] },
  ],
  ['cm_nodes', addr, { nodeId: 70000, clusterId: 300 }, addrSeen, { node_id: 70000, cluster_id: 300, pad: 0 }],
  [
    'cm_services',
    { addr: '10.96.0.10', port: 8080, proto: 6, scope: 1 },
    { id: 1, generation: 2, count: 3, flags: 4, affinityS: 5 },
    { addr: wordsOf('10.96.0.10'), port: be16(8080), proto: 6, scope: 1 },
    { id: 1, generation: 2, count: 3, flags: 4, affinity_s: 5 },
  ],
  [
    'cm_slots',
    { serviceId: 1, generation: 2, block: 3 },
    { backend: Array.from({ length: 110 }, (_, i) => 70_000 + i) },
    { service_id: 1, generation: 2, block: 3 },
    { backend: Array.from({ length: 110 }, (_, i) => 70_000 + i) },
  ],
  ['cm_members', { serviceId: 70_000, backendId: 2 }, 1, { service_id: 70_000, backend_id: 2 }, 1],
  [
    'cm_affinity',
    { client: '10.1.2.3', serviceId: 7 },
    { lastUsedNs: 2n ** 40n, backendId: 9 },
    { client: wordsOf('10.1.2.3'), service_id: 7 },
    { last_used_ns: 2 ** 40, backend_id: 9, pad: 0 },
  ],
  [
    'cm_backends',
    70000,
    { addr: '10.1.2.3', port: 8080, clusterId: 300, proto: 17, state: 1 },
    70000,
    { addr: wordsOf('10.1.2.3'), port: be16(8080), cluster_id: 300, proto: 17, state: 1, pad: 0 },
  ],
  [
    'cm_sock_rev',
    { cookie: 0x1_0000_0001n, addr: '10.1.2.3', port: 8080 },
    { addr: '10.96.0.10', port: 80 },
    { cookie: 0x1_0000_0001, addr: wordsOf('10.1.2.3'), port: be16(8080), pad0: 0, pad1: 0 },
    { addr: wordsOf('10.96.0.10'), port: be16(80), pad: 0 },
  ],
  [
    'cm_withdrawn',
    { service: { addr: '10.96.0.10', port: 80, proto: 6, scope: 1 }, addr: '10.1.2.3', port: 8080 },
    { backendId: 70000, destroyed: 2 },
    {
      service: { addr: wordsOf('10.96.0.10'), port: be16(80), proto: 6, scope: 1 },
      addr: wordsOf('10.1.2.3'),
      port: be16(8080),
      pad: 0,
    },
    { backend_id: 70000, destroyed: 2 },
  ],
  [
    'cm_ct',
    { saddr: '10.1.2.3', daddr: '10.1.2.4', sport: 4000, dport: 80, proto: 6, kind: 1 },
    {
      lastSeenNs: 1n,
      txPackets: 2n,
      txBytes: 3n,
      rxPackets: 4n,
      rxBytes: 5n,
      sourceIdentity: 6,
      serviceId: 7,
      backendId: 8,
      natAddr: '10.96.0.10',
      natPort: 8080,
      state: 2,
      destIdentity: 9,
      egressRevision: 10,
      ingressRevision: 11,
    },
    {
      saddr: wordsOf('10.1.2.3'),
      daddr: wordsOf('10.1.2.4'),
      sport: be16(4000),
      dport: be16(80),
      proto: 6,
      kind: 'CM_CT_SERVICE',
      pad: 0,
    },
    {
      last_seen_ns: 1,
      tx_packets: 2,
      tx_bytes: 3,
      rx_packets: 4,
      rx_bytes: 5,
      source_identity: 6,
      service_id: 7,
      backend_id: 8,
      nat_addr: wordsOf('10.96.0.10'),
      nat_port: be16(8080),
      state: 'CM_CT_CLOSING',
      pad0: 0,
      dest_identity: 9,
      egress_revision: 10,
      ingress_revision: 11,
      pad1: 0,
    },
  ],
  [
    'cm_nat',
    { saddr: '10.1.2.3', daddr: '10.1.2.4', sport: 4000, dport: 80, proto: 6 },
    {
      lastSeenNs: 1n,
      saddr: '10.1.1.1',
      daddr: '10.1.2.5',
      sport: 2000,
      dport: 8080,
      serviceId: 7,
      backendId: 8,
      state: 1,
      isReply: 1,
      isDsr: 1,
    },
    {
      saddr: wordsOf('10.1.2.3'),
      daddr: wordsOf('10.1.2.4'),
      sport: be16(4000),
      dport: be16(80),
      proto: 6,
      pad: [0, 0, 0],
    },
    {
      last_seen_ns: 1,
      saddr: wordsOf('10.1.1.1'),
      daddr: wordsOf('10.1.2.5'),
      sport: be16(2000),
      dport: be16(8080),
      service_id: 7,
      backend_id: 8,
      state: 'CM_CT_ESTABLISHED',
      is_reply: 1,
      is_dsr: 1,
      pad: 0,
    },
  ],
  [
    'cm_fragments',
    { saddr: '10.1.2.3', daddr: addr, id: 0x01020304, proto: 17 },
    { sport: 4000, dport: 53, proto: 17, icmpType: 8 },
    { saddr: wordsOf('10.1.2.3'), daddr: addrSeen, id: 0x04030201, proto: 17, pad: [0, 0, 0] },
    { sport: be16(4000), dport: be16(53), proto: 17, icmp_type: 8, pad: 0 },
  ],
  [
    'cm_policy',
    { prefixLen: 96, endpointId: 7, identity: 65537, direction: 1, proto: 6, port: 8080 },
    { deny: 1 },
    { prefix_len: 96, endpoint_id: 7, identity: 65537, direction: 'CM_POLICY_EGRESS', proto: 6, port: be16(8080) },
    { deny: 1 },
  ],
  ['cm_icmp_limit', addr, { filledNs: 5n, tokens: 6 }, addrSeen, { filled_ns: 5, tokens: 6, pad: 0 }],
];

for (const [name, key, value, keySeen, valueSeen] of rows) {
  it(`${name}: the kernel reads what the codec wrote, and the codec what it wrote itself`, async () => {
    const map = loaded.maps[name] as unknown as BpfMap<unknown, unknown>;
    assert.deepEqual(await map.update([[key, value]]), [undefined]);
    const which = isPinned(name) ? ['pinned', `${pinDir}/${name}`] : ['id', String(map.id)];
    const [row] = JSON.parse(sh('bpftool', '-j', 'map', 'dump', ...which)) as {
      formatted: { key: unknown; value: unknown };
    }[];
    assert.deepEqual(row?.formatted, { key: keySeen, value: valueSeen });
    assert.deepEqual(map.lookup(key), value);
    assert.deepEqual(await map.entries(), [[key, value]]);
    assert.deepEqual(await map.remove([key]), [undefined]);
    assert.deepEqual(await map.entries(), []);
  });
}

it('every pinned map has the sizes, type and flags of its layout', () => {
  // Per-CPU values, arrays, records and what is not pinned have tests of their own.
  const elsewhere: MapName[] = [
    'cm_ct_scratch',
    'cm_drops',
    'cm_decisions',
    'cm_events',
    'cm_event_config',
    'cm_event_state',
    'cm_nat_scratch',
    'cm_policy_state',
    'cm_xdp_devices',
  ];
  assert.deepEqual([...rows.map(([name]) => name), ...elsewhere].sort(), Object.keys(layouts).sort());
  for (const [name, layout] of Object.entries(layouts)) {
    const { type, keySize, valueSize, flags } = libbpf.mapInfo(loaded.maps[name as MapName].fd);
    assert.deepEqual(
      [type, keySize, valueSize, flags],
      [layout.type, layout.key.size, layout.value.size, layout.flags],
      name,
    );
  }
});

it('counters of all CPUs are summed', () => {
  const cpus = libbpf.possibleCpus();
  const value = Buffer.alloc(16 * cpus);
  for (let cpu = 0; cpu < cpus; cpu++) {
    value.writeBigUInt64LE(10n, cpu * 16);
    value.writeBigUInt64LE(1000n, cpu * 16 + 8);
  }
  const key = Buffer.alloc(4);
  key.writeUInt32LE(135 * 8 + 2); // unknown-node, overlay
  assert.equal(libbpf.mapUpdate(loaded.maps.cm_drops.fd, key, value), 0);
  assert.deepEqual(dumpDrops(loaded.maps), [
    {
      reason: 'unknown-node',
      number: 135,
      class: 'dropped',
      direction: 'overlay',
      packets: 10 * cpus,
      bytes: 1000 * cpus,
    },
  ]);
});
