/** Tables over real maps: ids, swaps, full maps, restarts. No traffic, no namespaces. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import type { MapName } from '@clustermesh/bpf';
import type { MeshError } from '@clustermesh/contract';
import * as libbpf from './libbpf.ts';
import { isPinned, type Loaded, loadPrograms } from './loader.ts';
import { toAddr, toFamily, toMac } from './rows.ts';
import { openServices, type ServiceTable } from './services.ts';
import { backendsOf } from './slots.ts';
import { ipcacheTable, nodeTable } from './tables.ts';
import { openSandbox, type Sandbox, sh } from './testing/sandbox.ts';
import { type Backend, type IpcacheRow, type MapOps, SERVICE_FLAG, type ServiceRow, serviceKey } from './types.ts';

const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 1, identityShift: 16, underlayMtu: 0 };

let sandbox: Sandbox;
let pinDir: string;
const open: Loaded[] = [];

async function load(mapSizes?: Record<string, number>): Promise<Loaded> {
  const loaded = await loadPrograms({ objects: ['sock', 'pod', 'overlay'], pinDir, settings, mapSizes });
  open.push(loaded);
  return loaded;
}

const ipcacheOf = ({ maps }: Loaded): MapOps<IpcacheRow> => ipcacheTable(maps.cm_ipcache, maps.cm_ipcache_lpm);

beforeEach(async () => {
  sandbox = await openSandbox();
  pinDir = `${sandbox.bpffs}/tables`;
});

afterEach(async () => {
  for (const loaded of open.splice(0)) await loaded.close();
  await sandbox.close();
});

const service = (ip: string, backends: string[], port = 80): ServiceRow => ({
  frontend: { ip, port, protocol: 'TCP' },
  backends: backends.map((backend) => ({ ip: backend, port: 8080, clusterId: 1 })),
  flags: 0,
});
const NO_FLOW = {
  lastSeenNs: 0n,
  txPackets: 0n,
  txBytes: 0n,
  rxPackets: 0n,
  rxBytes: 0n,
  sourceIdentity: 0,
  serviceId: 0,
  backendId: 0,
  natAddr: '::',
  natPort: 0,
  state: 0,
  destIdentity: 0,
  egressRevision: 0,
  ingressRevision: 0,
};
const block = (...backend: number[]) => ({ backend });
const host = (n: number): IpcacheRow => ({
  prefix: `10.2.${n >> 8}.${n & 255}/32`,
  identity: (2 << 16) + n,
  clusterId: 2,
  tunnelEndpoint: '172.31.2.11',
  encryptKey: 0,
});
const failed = (results: { key: string; error?: MeshError }[]) => results.filter((r) => r.error !== undefined);

async function counts({ maps }: Loaded): Promise<number[]> {
  return [
    (await maps.cm_services.entries()).length,
    (await maps.cm_slots.entries()).flatMap(([, { backend }]) => backend.filter((id) => id !== 0)).length,
    (await maps.cm_backends.entries()).length,
  ];
}

interface ServiceDump {
  service: string;
  id: number;
  backends: { id: number; ip: string }[];
}
const idsOf = async (services: ServiceTable): Promise<[string, number, number[]][]> =>
  ((await services.dump()) as ServiceDump[])
    .map((s): [string, number, number[]] => [s.service, s.id, s.backends.map((b) => b.id)])
    .sort();

describe('ipcache and nodes', () => {
  it('list what was written, hosts and prefixes alike, and removing twice succeeds', async () => {
    const ipcache = ipcacheOf(await load());
    const rows = [
      host(5),
      { ...host(6), prefix: 'fd00:2::6/128', tunnelEndpoint: 'fd31::2:11' },
      { ...host(7), prefix: 'fd00:3::/48' },
      { ...host(8), prefix: '::/0', identity: 2 },
      { ...host(0), prefix: '10.3.0.0/16', tunnelEndpoint: null },
      { ...host(0), prefix: '0.0.0.0/0', identity: 2, clusterId: 0 },
    ];
    assert.deepEqual(failed(await ipcache.update(rows)), []);
    assert.deepEqual(await ipcache.list(), new Map(rows.map((row) => [row.prefix, row])));
    const keys = rows.map((row) => row.prefix);
    for (let i = 0; i < 2; i++) assert.deepEqual(failed(await ipcache.remove(keys)), []);
    assert.equal((await ipcache.list()).size, 0);
  });

  it('a row that cannot be programmed gets the error, its neighbours are written', async () => {
    const loaded = await load();
    const results = await ipcacheOf(await loaded).update([host(1), { ...host(2), prefix: 'fd00::01/128' }, host(3)]);
    assert.deepEqual(
      results.map((r) => [r.key, r.error?.code]),
      [
        ['10.2.0.1/32', undefined],
        ['fd00::01/128', 'invalid-argument'],
        ['10.2.0.3/32', undefined],
      ],
    );
    const [result] = await nodeTable(loaded.maps.cm_nodes).update([{ ip: 'nonsense', clusterId: 1, nodeId: 1 }]);
    assert.match(result?.error?.message ?? '', /'nonsense': not an IP address of a host/);
  });

  it('takes rows by the ten thousand', async () => {
    const ipcache = ipcacheOf(await load());
    const rows = Array.from({ length: 20_000 }, (_, i) => host(i));
    assert.deepEqual(failed(await ipcache.update(rows)), []);
    assert.deepEqual(await ipcache.list(), new Map(rows.map((row) => [row.prefix, row])));
    assert.deepEqual(failed(await ipcache.remove(rows.map((row) => row.prefix))), []);
    assert.equal((await ipcache.list()).size, 0);
  });

  it('F26: a full map names itself and its size per row left out, and takes them when there is room', async () => {
    const ipcache = ipcacheOf(await load({ cm_ipcache: 100 }));
    const rows = Array.from({ length: 105 }, (_, i) => host(i));
    const left = failed(await ipcache.update(rows));
    assert.equal(left.length, 5);
    for (const { key, error } of left) {
      assert.equal(error?.code, 'map-full');
      assert.equal(error?.message, `programming ipcache row ${key}: writing to cm_ipcache: the map is full (100 rows)`);
      assert.equal(error?.retryable, true);
    }
    assert.equal((await ipcache.list()).size, 100);
    // Rows that are there can still change.
    assert.deepEqual(failed(await ipcache.update([{ ...host(0), identity: 7 }])), []);
    await ipcache.remove(rows.slice(10, 20).map((row) => row.prefix));
    const again = await ipcache.update(rows.filter((row) => left.some(({ key }) => key === row.prefix)));
    assert.deepEqual(failed(again), []);
  });
});

describe('services', () => {
  it('list what was written; backends are shared between services and freed with the last', async () => {
    const loaded = await load();
    const services = await openServices(loaded.maps);
    const rows = [
      service('10.96.0.1', ['10.1.1.1', '10.1.1.2']),
      service('10.96.0.2', ['10.1.1.2']),
      service('10.96.0.3', []),
    ];
    assert.deepEqual(failed(await services.update(rows)), []);
    assert.deepEqual([...(await services.list()).values()].sort(byIp), rows);
    assert.deepEqual(await counts(loaded), [3, 3, 2]);
    await services.remove(['10.96.0.1:80/TCP']);
    assert.deepEqual(await counts(loaded), [2, 1, 1]);
    await services.remove(['10.96.0.1:80/TCP', '10.96.0.2:80/TCP', '10.96.0.3:80/TCP']);
    assert.deepEqual(await counts(loaded), [0, 0, 0]);
  });

  it('an equal row writes nothing; a changed one leaves no old slots or backends', async () => {
    const loaded = await load();
    const services = await openServices(loaded.maps);
    await services.update([service('10.96.0.1', ['10.1.1.1', '10.1.1.2'])]);
    const before = await services.dump();
    await services.update([service('10.96.0.1', ['10.1.1.1', '10.1.1.2'])]);
    assert.deepEqual(await services.dump(), before);
    await services.update([service('10.96.0.1', ['10.1.1.2', '10.1.1.3', '10.1.1.4'])]);
    assert.deepEqual(await counts(loaded), [1, 3, 3]);
    assert.deepEqual(await idsOf(services), [['10.96.0.1:80/TCP', 1, [2, 3, 4]]]);
  });

  it('keep their ids and their backends over a restart', async () => {
    const first = await load();
    const services = await openServices(first.maps);
    await services.update([service('10.96.0.1', ['10.1.1.1', '10.1.1.2']), service('10.96.0.2', ['10.1.1.2'])]);
    await services.update([service('10.96.0.3', ['10.1.1.3'])]);
    await services.remove(['10.96.0.2:80/TCP']);
    const ids = await idsOf(services);
    const mapIds = Object.values(first.maps).map((map) => map.id);
    await first.close();
    open.length = 0;

    const second = await load();
    const restored = await openServices(second.maps);
    assert.deepEqual(await idsOf(restored), ids);
    const pinned = (map: { name: string }) => isPinned(map.name as MapName);
    assert.deepEqual(
      Object.values(second.maps)
        .filter(pinned)
        .map((map) => map.id),
      mapIds.filter((_, i) => pinned(Object.values(first.maps)[i]!)),
    );
    // New ones get numbers of their own.
    await restored.update([service('10.96.0.4', ['10.1.1.4', '10.1.1.2'])]);
    const numbers = (await idsOf(restored)).map(([, id]) => id);
    assert.equal(new Set(numbers).size, 3);
  });

  it('F27, F28: what an interrupted swap left over is swept at the next start', async () => {
    const loaded = await load();
    await (await openServices(loaded.maps)).update([service('10.96.0.1', ['10.1.1.1'])]);
    await loaded.maps.cm_backends.update([[77, { addr: '0.0.0.1', port: 2, clusterId: 3, proto: 6, state: 0 }]]);
    await loaded.maps.cm_slots.update([[{ serviceId: 1, generation: 9, block: 0 }, block(77)]]);
    assert.deepEqual(await counts(loaded), [1, 2, 2]);
    const services = await openServices(loaded.maps);
    assert.deepEqual(await counts(loaded), [1, 1, 1]);
    assert.deepEqual([...(await services.list()).values()], [service('10.96.0.1', ['10.1.1.1'])]);
  });

  describe('F30: changed behind our back are right again after list() and the update or removal that it leads to', () => {
    const shop = service('10.96.0.1', ['10.1.1.1', '10.1.1.2']);
    const other = service('10.96.0.2', ['10.1.1.2']);
    const shopKey = { addr: '10.96.0.1', port: 80, proto: 6, scope: 0 };
    const foreignKey = { ...shopKey, addr: '10.96.0.9' };
    const addForeign =
      (key: typeof shopKey, row: { id: number; generation: number; count: number }) =>
      async ({ maps }: Loaded): Promise<void> => {
        await maps.cm_services.update([[key, { ...row, flags: 0, affinityS: 0 }]]);
      };

    const cases: [what: string, harm: (loaded: Loaded) => Promise<unknown>][] = [
      ['a service row that is lost', ({ maps }) => maps.cm_services.remove([shopKey])],
      [
        'a slot that is lost',
        ({ maps }) => maps.cm_slots.update([[{ serviceId: 1, generation: 1, block: 0 }, block(0, 2)]]),
      ],
      [
        'a slot too many',
        ({ maps }) => maps.cm_slots.update([[{ serviceId: 1, generation: 1, block: 0 }, block(1, 2, 2)]]),
      ],
      ['all slots lost', async ({ maps }) => maps.cm_slots.remove((await maps.cm_slots.entries()).map(([key]) => key))],
      ['a backend that is lost', ({ maps }) => maps.cm_backends.remove([1])],
      ['a backend that two services have', ({ maps }) => maps.cm_backends.remove([2])],
      [
        'a backend that leads elsewhere',
        ({ maps }) => maps.cm_backends.update([[1, { addr: '0.0.0.1', port: 2, clusterId: 3, proto: 6, state: 0 }]]),
      ],
      [
        'a slot that leads elsewhere',
        ({ maps }) => maps.cm_slots.update([[{ serviceId: 1, generation: 1, block: 0 }, block(2, 2)]]),
      ],
      [
        'a row that promises more slots than there are',
        addForeign(shopKey, { id: 1, generation: 1, count: 4_000_000_000 }),
      ],
      ["a row that points to another service's slots", addForeign(shopKey, { id: 2, generation: 2, count: 1 })],
      ['a foreign row', addForeign(foreignKey, { id: 77, generation: 77, count: 0 })],
      ['a foreign row with the id and slots of ours', addForeign(foreignKey, { id: 1, generation: 1, count: 2 })],
      ['a foreign row with the numbers that come next', addForeign(foreignKey, { id: 3, generation: 3, count: 0 })],
      [
        'a foreign row with the last numbers',
        addForeign(foreignKey, { id: 2 ** 32 - 1, generation: 2 ** 32 - 1, count: 1 }),
      ],
      [
        'a foreign row of another protocol',
        addForeign({ ...foreignKey, proto: 132 }, { id: 77, generation: 77, count: 0 }),
      ],
      ['a foreign row of another scope', addForeign({ ...shopKey, scope: 1 }, { id: 77, generation: 77, count: 0 })],
      ['members lost', async ({ maps }) => maps.cm_members.remove([{ serviceId: 1, backendId: 2 }])],
      ['foreign slots', ({ maps }) => maps.cm_slots.update([[{ serviceId: 9, generation: 9, block: 4e9 }, block(1)]])],
      ['a foreign member', ({ maps }) => maps.cm_members.update([[{ serviceId: 1, backendId: 77 }, 1]])],
      [
        'a foreign backend',
        ({ maps }) => maps.cm_backends.update([[77, { addr: '0.0.0.1', port: 2, clusterId: 3, proto: 6, state: 0 }]]),
      ],
    ];
    for (const [what, harm] of cases) {
      it(what, async () => {
        const loaded = await load();
        const services = await openServices(loaded.maps);
        await services.update([shop, other]);
        const [before] = await idsOf(services);
        await harm(loaded);

        const wanted = new Map([shop, other].map((row) => [serviceKey(row.frontend), row]));
        /** As the reconciler does it: what differs is written, what nobody wants is removed. */
        const mend = async () => {
          const held = await services.list();
          const differs = [...wanted].filter(([key, row]) => !isDeepStrictEqual(held.get(key), row));
          assert.deepEqual(failed(await services.update(differs.map(([, row]) => row))), []);
          const unwanted = [...held.keys()].filter((key) => !wanted.has(key));
          assert.deepEqual(failed(await services.remove(unwanted)), []);
        };
        await mend();
        assert.deepEqual(await services.list(), wanted);
        assert.deepEqual(await counts(loaded), [2, 3, 2], 'nothing is left over');
        for (const [, { id, generation, count }] of await loaded.maps.cm_services.entries()) {
          for (let slot = 0; slot < count; slot++) {
            const backend = loaded.maps.cm_slots.lookup({ serviceId: id, generation, block: 0 })?.backend[slot];
            assert.ok(backend !== undefined && loaded.maps.cm_backends.lookup(backend), `slot ${slot} of ${id}`);
          }
        }
        const [after] = await idsOf(services);
        assert.deepEqual(after?.slice(0, 2), before?.slice(0, 2), 'the service keeps its id');

        // What comes later is not in the way of what is there.
        const more = service('10.96.0.3', ['10.1.1.3']);
        wanted.set(serviceKey(more.frontend), more);
        await mend();
        assert.deepEqual(await services.list(), wanted);
        await services.remove([...wanted.keys()]);
        assert.deepEqual(await counts(loaded), [0, 0, 0]);
      });
    }

    it('what is intact keeps its ids and is not written', async () => {
      const loaded = await load();
      const services = await openServices(loaded.maps);
      await services.update([shop, other]);
      const before = await services.dump();
      await services.list();
      await services.update([shop, other]);
      assert.deepEqual(await services.dump(), before);
    });
  });

  describe('with a Maglev table, weights, affinity or draining backends', () => {
    const weighted = (weights: number[], row: Partial<ServiceRow> = {}): ServiceRow => ({
      ...service('10.96.0.1', []),
      backends: weights.map((weight, i) => ({ ip: `10.1.1.${i + 1}`, port: 8080, clusterId: 1, weight })),
      ...row,
    });
    const drainingRow: ServiceRow = {
      ...service('10.96.0.1', ['10.1.1.1', '10.1.1.2']),
      draining: [{ ip: '10.1.1.9', port: 8080, clusterId: 1 }],
    };
    const rows: [what: string, row: ServiceRow, slots: number, members: number][] = [
      ['equal weights', weighted([3, 3]), 2, 2],
      ['unequal weights', weighted([1, 2]), 4093, 2],
      ['a weight of zero', weighted([0, 1]), 1, 1],
      ['nothing but weights of zero', weighted([0, 0]), 0, 0],
      ['Maglev', { ...service('10.96.0.1', ['10.1.1.1', '10.1.1.2']), flags: SERVICE_FLAG.maglev }, 4093, 2],
      ['affinity', { ...service('10.96.0.1', ['10.1.1.1', '10.1.1.2']), affinitySeconds: 60 }, 2, 2],
      ['all of it', { ...weighted([1, 2]), ...drainingRow, flags: SERVICE_FLAG.maglev, affinitySeconds: 60 }, 4093, 2],
      ['draining backends', drainingRow, 2, 2],
      ['nobody but draining backends', { ...drainingRow, backends: [] }, 0, 0],
    ];
    for (const [what, row, slots, members] of rows) {
      it(`${what}: listed as written, found again after a restart, and leaves nothing behind`, async () => {
        const loaded = await load();
        const services = await openServices(loaded.maps);
        assert.deepEqual(failed(await services.update([row])), []);
        const programmed = async (table: ServiceTable) => {
          assert.equal((await loaded.maps.cm_services.entries())[0]?.[1].count, slots);
          assert.equal((await loaded.maps.cm_members.entries()).length, members);
          return idsOf(table);
        };
        const before = await programmed(services);
        assert.deepEqual([...(await services.list()).values()], [row]);
        await services.update([row]);

        // After a restart, only slots tell of weights; written again they make the same slots.
        const slotsBefore = (await loaded.maps.cm_slots.entries()).flatMap(([, { backend }]) => backend);
        const again = await openServices(loaded.maps);
        const [found] = [...(await again.list()).values()];
        const ips = (backends: readonly Backend[] = []) => backends.map(({ ip }) => ip).sort();
        assert.deepEqual(ips([...found!.backends, ...(found!.draining ?? [])]), ips(backendsOf(row)));
        assert.equal(found!.affinitySeconds, row.affinitySeconds);
        assert.deepEqual(failed(await again.update([row])), []);
        assert.deepEqual(await programmed(again), before);
        assert.deepEqual(
          (await loaded.maps.cm_slots.entries()).flatMap(([, { backend }]) => backend).sort(),
          slotsBefore.sort(),
        );

        await again.remove([serviceKey(row.frontend)]);
        assert.deepEqual([...(await counts(loaded)), (await loaded.maps.cm_members.entries()).length], [0, 0, 0, 0]);
      });
    }

    it('a backend that begins to drain keeps its id and loses its slot and its membership', async () => {
      const loaded = await load();
      const services = await openServices(loaded.maps);
      const before = { ...service('10.96.0.1', ['10.1.1.1', '10.1.1.2']), affinitySeconds: 60 };
      await services.update([before]);
      await services.update([{ ...before, backends: [before.backends[0]!], draining: [before.backends[1]!] }]);
      const [, row] = (await loaded.maps.cm_services.entries())[0]!;
      const slots = loaded.maps.cm_slots.lookup({ serviceId: row.id, generation: row.generation, block: 0 })!;
      assert.deepEqual([row.count, slots.backend.slice(0, 3)], [1, [1, 2, 0]]);
      assert.deepEqual(await loaded.maps.cm_members.entries(), [[{ serviceId: row.id, backendId: 1 }, 1]]);
    });

    it('SCTP goes to the same port, or is refused', async () => {
      const services = await openServices((await load()).maps);
      const backends = [{ ip: '10.1.1.1', port: 99, clusterId: 1 }];
      const row = (port: number): ServiceRow => ({
        ...weighted([]),
        frontend: { ip: '10.96.0.1', port, protocol: 'SCTP' },
        backends,
      });
      const results = await services.update([row(99), row(100)]);
      assert.deepEqual(
        results.map(({ error }) => error?.code),
        [undefined, 'unsupported'],
      );
      assert.match(
        results[1]?.error?.message ?? '',
        /^programming the service 10\.96\.0\.1:100\/SCTP: backend 10\.1\.1\.1 has port 99/,
      );
      assert.deepEqual([...(await services.list()).values()], [row(99)]);
    });

    it('a weight that is none is refused, and the row before stays', async () => {
      const services = await openServices((await load()).maps);
      await services.update([weighted([1, 1])]);
      for (const weight of [-1, 0.5, 2 ** 31, Number.NaN]) {
        const [left] = failed(await services.update([weighted([1, weight])]));
        assert.match(left?.error?.message ?? '', /10\.1\.1\.2: weight .* is no integer of 0 … 2147483647$/);
      }
      assert.deepEqual([...(await services.list()).values()], [weighted([1, 1])]);
    });
  });

  it('F26, F27: one that does not fit keeps its old backends; others are unaffected; it recovers with room', async () => {
    const loaded = await load({ cm_slots: 4 });
    const services = await openServices(loaded.maps);
    const many = Array.from({ length: 250 }, (_, i) => `10.1.2.${i}`);
    await services.update([service('10.96.0.1', ['10.1.1.1']), service('10.96.0.2', ['10.1.1.2'])]);
    const results = await services.update([service('10.96.0.3', []), service('10.96.0.1', many)]);
    const [left] = failed(results);
    assert.equal(left?.key, '10.96.0.1:80/TCP');
    assert.match(
      left?.error?.message ?? '',
      /^programming service 10\.96\.0\.1:80\/TCP: .*cm_slots: the map is full \(4 rows\)$/,
    );
    assert.equal(failed(results).length, 1);
    assert.deepEqual([...(await services.list()).values()].sort(byIp), [
      service('10.96.0.1', ['10.1.1.1']),
      service('10.96.0.2', ['10.1.1.2']),
      service('10.96.0.3', []),
    ]);
    assert.deepEqual(await counts(loaded), [3, 2, 2]);
    assert.deepEqual(failed(await services.update([service('10.96.0.1', many.slice(0, 5))])), []);
  });

  it('F27: a swap shows the old set or the new one, never neither, while connections keep coming', async () => {
    const loaded = await load();
    const services = await openServices(loaded.maps);
    const pod = {
      ifindex: 21,
      identity: 65600,
      endpointId: 1,
      podMac: toMac('02:00:00:00:00:01'),
      hostMac: toMac('02:00:00:00:00:02'),
    };
    await loaded.maps.cm_endpoints.update([[toAddr('10.1.1.5'), pod]]);
    const all = ['10.2.1.1', '10.2.1.2', '10.2.1.3', '10.2.1.4'];
    await ipcacheOf(await loaded).update(all.map((ip) => ({ ...host(1), prefix: `${ip}/32` })));
    await services.update([service('10.96.0.1', all.slice(0, 2))]);

    const script = fileURLToPath(new URL('./testing/prober.ts', import.meta.url));
    const args = ['--import', 'tsx', script, pinDir, '21', '10.1.1.5', '10.96.0.1'];
    const prober = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface(prober.stdout)[Symbol.asyncIterator]();
    assert.equal((await lines.next()).value, 'ready');
    for (let i = 0; i < 1000; i++)
      await services.update([service('10.96.0.1', i % 2 ? all.slice(0, 2) : all.slice(2))]);
    prober.stdin.end();
    const seen = JSON.parse((await lines.next()).value as string) as Record<string, number>;
    await once(prober, 'exit');
    assert.deepEqual(
      Object.keys(seen).sort(),
      all.map((ip) => `TO_TUNNEL ${ip}`),
    );
  });
});

describe('pins', () => {
  /** As another version's pins look: the note of the layout is another one. */
  function noteOtherLayout(map: MapName): void {
    const hex = (text: string) => [...Buffer.from(text, 'latin1')].map((byte) => `0x${byte.toString(16)}`);
    const table = ['map', 'update', 'pinned', `${pinDir}/cm_layout`];
    sh('bpftool', ...table, 'key', ...hex(map.padEnd(16, '\0')), 'value', ...hex('0123456789abcdef'));
  }
  const isRefused = (error: MeshError) => error.code === 'map-layout' && error.message.includes(`${pinDir}/cm_nodes`);
  const node = { ip: '172.31.1.1', clusterId: 1, nodeId: 1 };

  it('a map that cannot be read as one of ours is refused by name, and left as it is', async () => {
    sh('mkdir', '-p', pinDir);
    const made = ['type', 'hash', 'key', '16', 'value', '8', 'entries', '9', 'name', 'cm_nodes'];
    sh('bpftool', 'map', 'create', `${pinDir}/cm_nodes`, ...made);
    const before = libbpf.pinned(`${pinDir}/cm_nodes`)!;
    await assert.rejects(load(), isRefused);
    const after = libbpf.pinned(`${pinDir}/cm_nodes`)!;
    assert.equal(libbpf.mapInfo(after).id, libbpf.mapInfo(before).id);
    for (const fd of [before, after]) libbpf.closeFd(fd);
  });

  it('rows of another layout are carried over, and the next start finds nothing to do', async () => {
    const first = await load();
    await nodeTable(first.maps.cm_nodes).update([node]);
    noteOtherLayout('cm_nodes');
    const second = await load();
    assert.deepEqual(second.succeeded, ['cm_nodes']);
    await second.carryOver();
    await second.catchUp();
    assert.deepEqual([...(await nodeTable(second.maps.cm_nodes).list()).values()], [node]);
    assert.notEqual(second.maps.cm_nodes.id, first.maps.cm_nodes.id);
    const third = await load();
    assert.deepEqual([third.succeeded, third.maps.cm_nodes.id], [[], second.maps.cm_nodes.id]);
  });

  it('a start that ends before the rows are over changes nothing', async () => {
    const first = await load();
    await nodeTable(first.maps.cm_nodes).update([node]);
    noteOtherLayout('cm_nodes');
    await (await load()).close();
    const again = await load();
    assert.deepEqual(again.succeeded, ['cm_nodes']);
    await again.carryOver();
    assert.deepEqual([...(await nodeTable(again.maps.cm_nodes).list()).values()], [node]);
  });

  it('another size is given to maps that are there, with their rows', async () => {
    const first = await load({ cm_ipcache: 50, cm_nodes: 50 });
    await ipcacheOf(first).update(Array.from({ length: 50 }, (_, i) => host(i)));
    const larger = await load({ cm_ipcache: 70, cm_nodes: 50 });
    assert.deepEqual(larger.succeeded, ['cm_ipcache']);
    await larger.carryOver();
    assert.equal((await ipcacheOf(larger).list()).size, 50);
    assert.deepEqual(failed(await ipcacheOf(larger).update([host(60)])), []);
    assert.deepEqual(
      [
        larger.maps.cm_nodes.id,
        larger.maps.cm_ipcache.maxEntries,
        (await load({ cm_ipcache: 70, cm_nodes: 50 })).succeeded,
      ],
      [first.maps.cm_nodes.id, 70, []],
    );
  });

  it('a size that the rows do not fit is refused, and nothing is changed', async () => {
    const first = await load();
    await ipcacheOf(first).update(Array.from({ length: 50 }, (_, i) => host(i)));
    const smaller = await load({ cm_ipcache: 40 });
    await assert.rejects(
      smaller.carryOver(),
      /carrying 50 rows of .*cm_ipcache over .*: 10 were not taken: .*the map is full \(40 rows\)/,
    );
    assert.equal((await load()).maps.cm_ipcache.id, first.maps.cm_ipcache.id);
  });

  it('what older programs note until they are replaced is not lost, and does not replace what is newer', async () => {
    const first = await load();
    const key = { saddr: '10.1.1.5', daddr: '10.2.1.7', sport: 1, dport: 2, proto: 6, kind: 0 };
    const entry = (natPort: number) => ({ ...NO_FLOW, natPort });
    await first.maps.cm_ct.update([[key, entry(1)]]);
    noteOtherLayout('cm_ct');
    const second = await load();
    await second.carryOver();
    await second.maps.cm_ct.update([[key, entry(2)]]);
    await first.maps.cm_ct.update([[{ ...key, sport: 9 }, entry(3)]]);
    await second.catchUp();
    const ports = (await second.maps.cm_ct.entries()).map(([{ sport }, { natPort }]) => [sport, natPort]);
    assert.deepEqual(ports.sort(), [
      [1, 2],
      [9, 3],
    ]);
  });

  it('scratch maps are not pinned, everything else is', async () => {
    const { maps } = await load();
    const expected = [...Object.keys(maps).filter((name) => isPinned(name as MapName)), 'cm_layout'].sort();
    assert.deepEqual(readdirSync(pinDir).sort(), expected);
  });

  it('closing leaves no descriptor open', async () => {
    await (await load()).close();
    open.length = 0;
    const descriptors = () => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    for (let i = 0; i < 3; i++) {
      const loaded = await load();
      assert.ok(libbpf.mapInfo(loaded.maps.cm_ct.fd).id > 0);
      await loaded.close();
      open.length = 0;
    }
    assert.equal(descriptors(), before);
  });
});

function byIp(a: ServiceRow, b: ServiceRow): number {
  return a.frontend.ip < b.frontend.ip ? -1 : 1;
}
