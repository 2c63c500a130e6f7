/**
 * Sockets that were translated when they connected, and whose backend their service lets go: see testing/two-nodes.ts for the picture.
 * The node of the backend is cut off, so that nobody but the agent here can tell them.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { objectPath } from '@clustermesh/bpf';
import { type Log, silentLog, waitFor } from '@clustermesh/runtime';
import { loadPrograms } from './loader.ts';
import { toFamily } from './rows.ts';
import { openSocketDestroyer } from './socket-destroyer.ts';
import type { Remote } from './testing/remote.ts';
import { startRemote } from './testing/remote.ts';
import { shIn } from './testing/sandbox.ts';
import { type Node, openTwoNodes, type Pod, type TwoNodes } from './testing/two-nodes.ts';
import type { DestroyedSockets, Protocol, ServiceRow } from './types.ts';

const PORT = 7000;
const LIMIT = { timeoutMs: 60_000, intervalMs: 20 };

let mesh: TwoNodes;
let a: Pod, b: Pod, c: Pod;
let n1: Node, n2: Node;
/** Of the node itself: in its cgroup and in its namespace. */
let host: Remote;
/** Of the other node, whose services are its own. */
let neighbour: Remote;

before(async () => {
  mesh = await openTwoNodes();
  ({ a, b, c } = mesh.pods);
  ({ n1, n2 } = mesh.nodes);
  neighbour = mesh.pods.d.inside;
  host = await startRemote({ script: 'pod-process.ts', netns: n1.netns, cgroup: n1.cgroup });
  for (const { inside, endpoint, endpoint6 } of [b, c]) {
    for (const { ip } of [endpoint, endpoint6]) {
      await inside.call('tcpHold', { ip, port: PORT });
      await inside.call('udpEcho', { ip, port: PORT });
    }
  }
});

after(async () => {
  await host?.kill();
  await mesh?.close();
});

const update = (node: Node, rows: ServiceRow[]): Promise<void> =>
  node.datapath.call('update', { table: 'services', rows });

const destroyed = (node: Node): Promise<DestroyedSockets> => node.datapath.call('destroyedSockets');

const ended = (remote: Remote, name: string): Promise<string> =>
  waitFor(async () => (await remote.call<{ error: string | null }>('held', { name })).error ?? undefined, {
    what: `the end of ${name}`,
    ...LIMIT,
  });

/** Says something and waits until it comes back. */
async function assertAlive(remote: Remote, name: string): Promise<void> {
  const text = `${Math.random()}`;
  await remote.call('say', { name, text });
  const heard = await waitFor(
    async () => {
      const { heard, error } = await remote.call<{ heard: string; error: string | null }>('held', { name });
      return heard.includes(text) || error !== null ? { error } : undefined;
    },
    { what: `an answer on ${name}`, ...LIMIT },
  );
  assert.equal(heard.error, null, name);
}

const setWire = (state: 'up' | 'down'): void => void shIn(n2.netns, 'ip', 'link', 'set', 'eth0', state);

for (const family of [4, 6] as const) {
  const ipOf = (pod: Pod): string => (family === 4 ? pod.endpoint : pod.endpoint6).ip;
  const vip = (n: number): string => (family === 4 ? `10.96.1.${n}` : `fd00:96::1:${n}`);
  const [SHOP, DRAINING, OTHER, BACK] = [vip(1), vip(2), vip(3), vip(4)];

  const service = (ip: string, protocol: Protocol, pods: Pod[], draining: Pod[] = []): ServiceRow => {
    const backends = (of: Pod[]) =>
      of.map((pod) => ({ ip: ipOf(pod), port: PORT, clusterId: pod.endpoint.identity >> 16 }));
    const row = { frontend: { ip, port: 80, protocol }, backends: backends(pods), flags: 0 };
    return draining.length === 0 ? row : { ...row, draining: backends(draining) };
  };

  for (const protocol of ['TCP', 'UDP'] as const) {
    describe(`IPv${family}, ${protocol}`, () => {
      const name = (what: string): string => `${what} ${family} ${protocol}`;
      const hold = (remote: Remote, what: string, ip: string, port = 80): Promise<void> =>
        remote.call('hold', { name: name(what), protocol, ip, port });

      it('an idle socket ends when its backend is withdrawn, though nobody answers there; others stay', async () => {
        for (const node of [n1, n2]) {
          await update(node, [
            service(SHOP, protocol, [b]),
            service(DRAINING, protocol, [c]),
            service(OTHER, protocol, [c]),
          ]);
        }
        await hold(a.inside, 'to another backend', SHOP);
        for (const node of [n1, n2]) await update(node, [service(SHOP, protocol, [c], [b])]);
        await hold(a.inside, 'withdrawn', SHOP);
        await hold(host, "withdrawn, the node's own", SHOP);
        await hold(a.inside, 'draining', DRAINING);
        await hold(a.inside, 'by another service', OTHER);
        await hold(a.inside, 'by no service', ipOf(c), PORT);
        await hold(neighbour, "another node's", SHOP);
        const stay = ['to another backend', 'draining', 'by another service', 'by no service'];
        for (const what of ['withdrawn', ...stay]) await assertAlive(a.inside, name(what));
        for (const [remote, what] of [
          [host, "withdrawn, the node's own"],
          [neighbour, "another node's"],
        ] as const)
          await assertAlive(remote, name(what));

        const before = await destroyed(n1);
        setWire('down');
        try {
          await update(n1, [service(SHOP, protocol, [b]), service(DRAINING, protocol, [b], [c])]);
          assert.equal(await ended(a.inside, name('withdrawn')), 'ECONNABORTED');
          assert.equal(await ended(host, name("withdrawn, the node's own")), 'ECONNABORTED');
          const all = await waitFor(
            async () => {
              const now = await destroyed(n1);
              return now.passes > before.passes ? now : undefined;
            },
            { what: 'the end of the pass', ...LIMIT },
          );
          const own = protocol === 'TCP' ? ('tcp' as const) : ('udp' as const);
          const other = protocol === 'TCP' ? ('udp' as const) : ('tcp' as const);
          assert.deepEqual([all[own] - before[own], all[other] - before[other]], [2, 0]);
        } finally {
          setWire('up');
        }
        for (const what of stay) await assertAlive(a.inside, name(what));
        await assertAlive(neighbour, name("another node's"));
      });

      it('a backend that is back before the sockets were looked at keeps them', async () => {
        await update(n1, [service(BACK, protocol, [c]), service(SHOP, protocol, [c])]);
        await hold(a.inside, 'back', BACK);
        await hold(a.inside, 'not back', SHOP);
        await update(n1, [service(BACK, protocol, [b])]);
        await update(n1, [service(BACK, protocol, [b], [c]), service(SHOP, protocol, [b])]);
        assert.equal(await ended(a.inside, name('not back')), 'ECONNABORTED');
        await assertAlive(a.inside, name('back'));
        await n1.datapath.call('remove', { table: 'services', keys: [`${keyIp(BACK)}:80/${protocol}`] });
        assert.equal(await ended(a.inside, name('back')), 'ECONNABORTED', 'the service went');
      });
    });
  }

  it(`IPv${family}: an agent that is killed before it looked at the sockets leaves that to the next`, async () => {
    await update(n1, [service(SHOP, 'TCP', [c]), service(OTHER, 'TCP', [c])]);
    for (const [what, ip] of [
      ['left over', SHOP],
      ['kept', OTHER],
    ] as const)
      await a.inside.call('hold', { name: `${what} ${family}`, protocol: 'TCP', ip, port: 80 });
    await update(n1, [service(SHOP, 'TCP', [b])]);
    await n1.datapath.kill();
    await mesh.restart(n1);
    assert.equal(await ended(a.inside, `left over ${family}`), 'ECONNABORTED');
    await assertAlive(a.inside, `kept ${family}`);
  });
}

const keyIp = (ip: string): string => (ip.includes(':') ? `[${ip}]` : ip);

it('a kernel without bpf_sock_destroy: the agent says so and goes on', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'cm-destroy-'));
  const pinDir = `${mesh.sandbox.bpffs}/older`;
  const settings = { ipv4: toFamily(), ipv6: toFamily(), vxlanIfindex: 1, identityShift: 16, underlayMtu: 0 };
  const loaded = await loadPrograms({ objects: ['sock'], pinDir, settings });
  try {
    // What there is no function of, as to an older kernel.
    const path = join(directory, 'destroy.bpf.o');
    const object = readFileSync(objectPath('destroy'), 'latin1');
    writeFileSync(path, object.replaceAll('bpf_sock_destroy', 'bpf_sock_nothing'), 'latin1');
    const said: string[] = [];
    const log = { ...silentLog(), warn: (_: object, text: string) => void said.push(text) } as unknown as Log;
    const destroyer = openSocketDestroyer({ maps: loaded.maps, cgroup: n1.cgroup, log, object: path });
    await waitFor(() => !destroyer.stats().isPossible, { what: 'the refusal', ...LIMIT });
    assert.match(said.join(), /did not take the programs/);
    await destroyer.close();
  } finally {
    await loaded.close();
    rmSync(directory, { recursive: true });
  }
});
