/**
 * Socket load balancing with real sockets of both families, in one namespace: backends are loopback addresses, each answers with its
 * name. Only the socket programs are at work, so what a client gets by a service address it got from them.
 */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { attachSocketPrograms } from './attach.ts';
import { type Loaded, loadPrograms } from './loader.ts';
import { toFamily } from './rows.ts';
import { openServices, type ServiceTable } from './services.ts';
import type { Ask, Seen } from './testing/pod-process.ts';
import { type Remote, startRemote } from './testing/remote.ts';
import { openSandbox, type Sandbox, sh } from './testing/sandbox.ts';
import type { Protocol, ServiceRow } from './types.ts';

const BACKENDS = {
  4: ['127.0.1.1', '127.0.1.2', '127.0.1.3'],
  6: ['fd00:1::1', 'fd00:1::2', 'fd00:1::3'],
} as const;
const SHOP = { 4: '10.96.0.10', 6: 'fd00:96::10' } as const;
const NOBODY = { 4: '10.96.0.30', 6: 'fd00:96::30' } as const;

let sandbox: Sandbox;
let loaded: Loaded;
let services: ServiceTable;
let client: Remote;

const row = (ip: string, port: number, protocol: Protocol, backends: readonly string[]): ServiceRow => ({
  frontend: { ip, port, protocol },
  backends: backends.map((backend) => ({ ip: backend, port: 8080, clusterId: 1 })),
  flags: 0,
});

async function program(rows: ServiceRow[]): Promise<void> {
  for (const { error } of await services.update(rows)) if (error !== undefined) throw error;
}

before(async () => {
  sandbox = await openSandbox();
  const netns = sandbox.netns('sockets');
  const cgroup = sandbox.cgroup('sockets');
  for (const ip of BACKENDS[6]) sh('ip', '-n', netns, 'addr', 'add', `${ip}/128`, 'dev', 'lo', 'nodad');
  const pinDir = `${sandbox.bpffs}/sockets`;
  const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 1, identityShift: 16, underlayMtu: 0 };
  loaded = await loadPrograms({ objects: ['sock'], pinDir, settings });
  services = await openServices(loaded.maps);
  attachSocketPrograms(loaded, cgroup, pinDir);
  client = await startRemote({ script: 'pod-process.ts', netns, cgroup });
  for (const ip of [...BACKENDS[4], ...BACKENDS[6]]) {
    await client.call('tcpServe', { ip, port: 8080, name: ip });
    await client.call('udpServe', { ip, port: 8080, name: ip });
  }
  for (const family of [4, 6] as const) {
    await program([
      row(SHOP[family], 80, 'TCP', BACKENDS[family]),
      row(SHOP[family], 53, 'UDP', BACKENDS[family]),
      row(NOBODY[family], 80, 'TCP', []),
      row(NOBODY[family], 53, 'UDP', []),
    ]);
  }
});

after(async () => {
  await client?.kill();
  await loaded?.close();
  await sandbox?.close();
});

const tcp = (ask: Ask): Promise<Seen> => client.call('tcpAsk', ask);
const udp = (ask: Ask): Promise<Seen> => client.call('udpAsk', ask);

/** How sockets write an address: `peer` is how they must see it, too. */
const spellings = [
  { name: 'IPv4 sockets', family: 4, of: (ip: string) => ip, socket: 4 },
  { name: 'IPv6 sockets', family: 6, of: (ip: string) => ip, socket: 6 },
  { name: 'IPv6 sockets with v4-mapped destinations', family: 4, of: (ip: string) => `::ffff:${ip}`, socket: 6 },
] as const;

for (const { name, family, of, socket } of spellings) {
  describe(name, () => {
    const ways = [
      { what: 'TCP', ask: (ip: string) => tcp({ ip, port: 80 }), port: 80 },
      { what: 'connected UDP', ask: (ip: string) => udp({ ip, port: 53, connected: true, family: socket }), port: 53 },
      {
        what: 'unconnected UDP',
        ask: (ip: string) => udp({ ip, port: 53, connected: false, family: socket }),
        port: 53,
      },
    ] as const;
    for (const { what, ask, port } of ways) {
      it(`${what}: reach every backend, and believe to talk to the service`, async () => {
        const reached = new Set<string>();
        for (let i = 0; i < 60 && reached.size < 3; i++) {
          const seen = await ask(of(SHOP[family]));
          assert.equal(seen.peer, `${of(SHOP[family])}:${port}`, JSON.stringify(seen));
          reached.add(seen.answer!.split(' ')[0]!);
        }
        assert.deepEqual([...reached].sort(), BACKENDS[family]);
      });

      it(`${what}: are refused at once by a service without backends`, async () => {
        const seen = await ask(of(NOBODY[family]));
        assert.equal(seen.error, 'ECONNREFUSED');
      });

      it(`${what}: reach an address that is no service under its own`, async () => {
        const direct = of(BACKENDS[family][0]);
        const seen =
          what === 'TCP'
            ? await tcp({ ip: direct, port: 8080 })
            : await udp({ ip: direct, port: 8080, connected: what === 'connected UDP', family: socket });
        assert.equal(seen.peer, `${direct}:8080`);
      });
    }
  });
}

describe('which backend', () => {
  const answers = async (n: number, ask: () => Promise<Seen>): Promise<string[]> => {
    const all: string[] = [];
    for (let i = 0; i < n; i++) {
      const seen = await ask();
      all.push(seen.answer?.split(' ')[0] ?? seen.error ?? '');
    }
    return all;
  };
  const backends = BACKENDS[4];
  const SVC = '10.96.0.50';

  it('datagrams of one unconnected socket go to one', async () => {
    for (let run = 0; run < 5; run++) {
      const { from } = await client.call<{ from: string[] }>('udpAskOften', { ip: SHOP[4], port: 53, n: 10 });
      assert.equal(new Set(from).size, 1, from.join());
    }
  });

  it('is drawn by weight, never with weight 0', async () => {
    const weighted = row(SVC, 80, 'TCP', backends);
    await program([{ ...weighted, backends: weighted.backends.map((b, i) => ({ ...b, weight: [1, 9, 0][i]! })) }]);
    const got = await answers(300, () => tcp({ ip: SVC, port: 80 }));
    const hits = backends.map((ip) => got.filter((name) => name === ip).length);
    assert.equal(hits[2], 0);
    // 270 expected, standard deviation 5
    assert.ok(hits[1]! > 230 && hits[1]! < 299, hits.join());
  });

  it('stays the same for a client with affinity, until it is withdrawn; a new one stays, too', async () => {
    const sticky = { ...row(SVC, 80, 'TCP', backends), affinitySeconds: 10_800 };
    await program([sticky]);
    const first = new Set(await answers(20, () => tcp({ ip: SVC, port: 80 })));
    assert.equal(first.size, 1);
    const rest = sticky.backends.filter(({ ip }) => !first.has(ip));
    // Another service keeps the backend in the kernel, and draining does, too: neither counts as having it.
    await program([{ ...sticky, backends: rest, draining: sticky.backends.filter(({ ip }) => first.has(ip)) }]);
    const second = new Set(await answers(20, () => tcp({ ip: SVC, port: 80 })));
    assert.equal(second.size, 1);
    assert.ok(rest.some(({ ip }) => second.has(ip)));
  });

  it('is drawn anew when affinity has expired', async () => {
    const sticky = { ...row(SVC, 80, 'TCP', backends), affinitySeconds: 60 };
    await program([sticky]);
    const [first] = await answers(1, () => tcp({ ip: SVC, port: 80 }));
    const seen = new Set<string>();
    for (let i = 0; i < 60 && seen.size < 3; i++) {
      // As if a minute had passed since.
      const rows = await loaded.maps.cm_affinity.entries();
      await loaded.maps.cm_affinity.update(
        rows.map(([key, value]) => [key, { ...value, lastUsedNs: value.lastUsedNs - 61_000_000_000n }]),
      );
      for (const name of await answers(1, () => tcp({ ip: SVC, port: 80 }))) seen.add(name);
    }
    assert.equal(seen.size, 3, `${first} first, then ${[...seen]}`);
  });
});

it('sockets outside of the cgroup are left alone', async () => {
  const outside = await startRemote({ script: 'pod-process.ts', netns: `${sandbox.name}-sockets` });
  try {
    for (const ip of [SHOP[4], SHOP[6]]) {
      const seen = await outside.call<Seen>('tcpAsk', { ip, port: 80 });
      assert.equal(seen.error, 'ENETUNREACH');
    }
  } finally {
    await outside.kill();
  }
});
