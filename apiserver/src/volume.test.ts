/**
 * F25 at size, against the apiserver as a process of its own: what a hostile peer can make it hold is bounded by the quota, not by what
 * the peer has. `npm run fault:volume` runs it with a million keys.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import {
  CANARY_FAMILIES,
  canaryKey,
  clusterConfigKey,
  dataPrefix,
  HEARTBEAT_KEY,
  ipKey,
  numberToIpv4,
  PEERS_PREFIX,
  type PeerStatus,
  peerKey,
} from '@clustermesh/contract';
import type { Etcd, TxnOp } from '@clustermesh/kvstore';
import { startEtcd } from '@clustermesh/kvstore/testing';
import { waitFor } from '@clustermesh/runtime';
import { stringify } from 'yaml';
import { startTestCluster, type TestCluster } from './testing/apiserver-process.ts';

const KEYS = Number(process.env.CM_VOLUME_KEYS ?? 100_000);
const MAX_KEYS = KEYS / 10;
/** What the process has without peers, and per object of the quota; a mirror without quota needs about 1.8 kB for each of the peer's. */
const PROCESS_BYTES = 300e6;
const BYTES_PER_OBJECT = 4_000;

const eventually = <T>(what: string, condition: () => T | Promise<T>) =>
  waitFor(condition, { what, timeoutMs: 120_000, intervalMs: 50 });
const files = (cluster: TestCluster, name: string) => ({
  caFile: join(cluster.dir, 'pki', 'ca.crt'),
  certFile: join(cluster.dir, 'pki', `${name}.crt`),
  keyFile: join(cluster.dir, 'pki', `${name}.key`),
});

interface Source {
  readonly etcd: Etcd;
  /** Addresses 10.<id>.0.0 + [from, to). */
  put(from: number, to: number): Promise<void>;
  remove(from: number, to: number): Promise<void>;
}

/** A peer of `hub` whose etcd the test writes, under the CA of `hub`. */
async function startSource(t: TestContext, hub: TestCluster, name: string, id: number): Promise<Source> {
  const server = await startEtcd({ tls: files(hub, 'server'), extraArgs: ['--quota-backend-bytes', String(8 << 30)] });
  t.after(() => server.close());
  const etcd = server.client({ ...files(hub, 'admin'), requestTimeoutMs: 60_000 });
  /** In hundreds: one request that deletes a million keys takes etcd longer than it allows itself. */
  const each = async (from: number, to: number, operation: (ip: string, at: number) => TxnOp) => {
    for (let at = from; at < to; at += 100) {
      const ips = Array.from({ length: Math.min(100, to - at) }, (_, i) => at + i);
      await etcd.txn({ success: ips.map((i) => operation(numberToIpv4(0x0a000000 + id * 2 ** 21 + i), i)) });
    }
  };
  const put = (from: number, to: number) =>
    each(from, to, (IP, at) => {
      const value = { IP, Mask: null, HostIP: '', ID: (id << 16) + 300, Key: 0, Metadata: '', K8sPodName: `pod-${at}` };
      return { put: ipKey(name, IP), value: JSON.stringify(value) };
    });
  const remove = (from: number, to: number) => each(from, to, (ip) => ({ delete: ipKey(name, ip) }));
  await put(0, 10);
  for (const family of CANARY_FAMILIES) await etcd.put(canaryKey(name, family, 'state'), 'now');
  await etcd.put(HEARTBEAT_KEY, 'now');
  const capabilities = { syncedCanaries: true, maxConnectedClusters: 255 };
  await etcd.put(clusterConfigKey(name), JSON.stringify({ id, capabilities }));
  const { caFile, certFile, keyFile } = files(hub, 'admin');
  const file = {
    ...{ endpoints: [server.endpoint], 'trusted-ca-file': caFile, 'cert-file': certFile, 'key-file': keyFile },
    'x-clustermesh': { id, podCIDR: `${numberToIpv4(0x0a000000 + id * 2 ** 21)}/11` },
  };
  writeFileSync(join(hub.dir, 'clustermesh', name), stringify(file));
  return { etcd, put, remove };
}

function peakBytes(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

test(`F25 ${KEYS} keys of a hostile peer: memory is bounded, other peers are undisturbed, the reason is in the status, and it recovers`, async (t) => {
  const hub = await startTestCluster('hub', 5, { peers: { maxKeys: MAX_KEYS, retryMs: 1_000 } });
  t.after(() => hub.close());
  await hub.startApiserver();
  const local = hub.etcd.client({ ...files(hub, 'admin'), requestTimeoutMs: 60_000 });
  const [hostile, quiet] = [await startSource(t, hub, 'us', 2), await startSource(t, hub, 'ap', 4)];
  const status = async (peer: string) => {
    const kv = await local.get(peerKey(peer));
    return kv === undefined ? undefined : (JSON.parse(kv.value.toString()) as PeerStatus);
  };
  const copies = dataPrefix('us', 'ip', 'cache');
  for (const peer of ['us', 'ap']) await eventually(`${peer} mirrored`, async () => (await status(peer))?.ready);

  // From here on every record of the other peer is looked at.
  const disturbed: string[] = [];
  const stop = new AbortController();
  t.after(() => stop.abort());
  const { header } = await local.getWithHeader(PEERS_PREFIX);
  const watched = local.watch({
    ...{ prefix: peerKey('ap'), exact: true, startRevision: header.revision + 1, signal: stop.signal },
    onEvents(events) {
      for (const { value } of events) {
        const { ready, error } = JSON.parse(value.toString()) as PeerStatus;
        if (!ready || error !== undefined) disturbed.push(error ?? 'not ready');
      }
    },
  });
  let isFlooding = true;
  let changes = 0;
  const others = (async () => {
    for (; isFlooding; changes++) {
      await quiet.etcd.put(
        ipKey('ap', '10.128.1.1'),
        JSON.stringify({ IP: '10.128.1.1', ID: (4 << 16) + 300, Metadata: `${changes}` }),
      );
      await eventually(`change ${changes} of the other peer`, async () =>
        (await local.get(`${dataPrefix('ap', 'ip', 'cache')}10.128.1.1`))?.value
          .toString()
          .includes(`"Metadata":"${changes}"`),
      );
    }
  })();

  await hostile.put(10, KEYS);
  await eventually('the reason', async () =>
    /more than the \d+ (objects )?that are taken of one peer: not followed any further, what is here stays/.test(
      (await status('us'))?.error ?? '',
    ),
  );
  assert.ok((await local.count(copies)) <= MAX_KEYS);
  isFlooding = false;
  await others;
  assert.ok(changes > 0);
  assert.deepEqual(disturbed, []);
  const peak = peakBytes(hub.pid()!);
  t.diagnostic(`${changes} changes of the other peer meanwhile; the apiserver's peak: ${Math.round(peak / 1e6)} MB`);
  assert.ok(peak < PROCESS_BYTES + MAX_KEYS * BYTES_PER_OBJECT, `${Math.round(peak / 1e6)} MB`);

  await hostile.remove(10, KEYS);
  await eventually('recovery', async () => (await status('us'))?.ready && (await status('us'))?.error === undefined);
  await eventually('the copy', async () => (await local.count(copies)) === 10);
  stop.abort();
  await watched;
});
