/** What is measured on: real etcds with mutual TLS, each on loopback in a directory of its own, and a Redis for the apiserver. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Etcd } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { ensureClusterPki, issueClient, loadCa, remoteUser } from '@clustermesh/pki';
import { stringify } from 'yaml';
import { announcementsOf, dataOf, type Entry, type MirrorShape, peerName, podCidrOf } from './load.ts';

export const OWN = { name: 'hub', id: 255 } as const;

export interface Tls {
  readonly caFile: string;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface Source {
  readonly peer: number;
  readonly server: EtcdServer;
  readonly etcd: Etcd;
}

export interface Stage {
  readonly directory: string;
  readonly sources: readonly Source[];
  /** What the mirror and the bare copy present to the sources. */
  readonly reader: Tls;
  readonly admin: Tls;
  /** An empty etcd, as user admin. */
  target(): Promise<{ readonly server: EtcdServer; readonly etcd: Etcd }>;
  readonly redis: string;
  close(): Promise<void>;
}

/** Room for the load, and for its history under churn. No fsync: the disk is not what is measured. */
const ETCD_ARGS = ['--quota-backend-bytes', String(8 << 30), '--snapshot-count', '100000'];
const CLIENT = { requestTimeoutMs: 120_000, connectTimeoutMs: 30_000 };

/** Transactions of 100 puts, four in flight. */
async function writeAll(etcd: Etcd, entries: Iterator<Entry>): Promise<void> {
  const worker = async () => {
    for (;;) {
      const success: { put: string; value: string }[] = [];
      for (let next = entries.next(); !next.done; next = entries.next()) {
        success.push({ put: next.value.key, value: next.value.value });
        if (success.length === 100) break;
      }
      if (success.length === 0) return;
      await etcd.txn({ success });
    }
  };
  await Promise.all(Array.from({ length: 4 }, worker));
}

function startRedis(directory: string): { readonly path: string; readonly child: ChildProcess } {
  const path = join(directory, 'redis.sock');
  const args = ['--port', '0', '--unixsocket', path, '--dir', directory, '--save', '', '--loglevel', 'warning'];
  return { path, child: spawn('setpriv', ['--pdeathsig', 'KILL', 'redis-server', ...args], { stdio: 'ignore' }) };
}

export async function openStage(shape: MirrorShape): Promise<Stage> {
  const directory = mkdtempSync(join(tmpdir(), 'cm-bench-mirror-'));
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }));
  const pki = join(directory, 'pki');
  const file = (name: string) => join(pki, name);
  await ensureClusterPki({ dir: pki, cluster: OWN.name });
  const server = { caFile: file('ca.crt'), certFile: file('server.crt'), keyFile: file('server.key') };
  const admin = { caFile: file('ca.crt'), certFile: file('admin.crt'), keyFile: file('admin.key') };
  const reader = { caFile: file('ca.crt'), certFile: file('reader.crt'), keyFile: file('reader.key') };
  const pair = await issueClient({ ca: loadCa(pki), commonName: remoteUser(OWN.name) });
  writeFileSync(reader.certFile, pair.certPem);
  writeFileSync(reader.keyFile, pair.keyPem, { mode: 0o600 });

  const servers: EtcdServer[] = [];
  const start = async () => {
    const etcd = await startEtcd({ tls: server, extraArgs: ETCD_ARGS });
    servers.push(etcd);
    return { server: etcd, etcd: etcd.client({ ...admin, ...CLIENT }) };
  };
  const sources: Source[] = [];
  for (let peer = 1; peer <= shape.peers; peer++) sources.push({ peer, ...(await start()) });
  await Promise.all(
    sources.map(async ({ peer, etcd }) => {
      await writeAll(etcd, dataOf(shape, peer));
      await writeAll(etcd, announcementsOf(peer)[Symbol.iterator]());
    }),
  );
  const redis = startRedis(directory);
  return {
    ...{ directory, sources, reader, admin, redis: redis.path },
    target: start,
    async close() {
      redis.child.kill('SIGKILL');
      await Promise.all(servers.map((each) => each.close()));
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** apiserver.yaml and a file for each peer, as an operator would write them. */
export function writeConfig(stage: Stage, shape: MirrorShape, endpoint: string): { readonly configFile: string } {
  const path = (name: string) => join(stage.directory, name);
  for (const name of ['manifests', 'clustermesh', 'state']) mkdirSync(path(name), { recursive: true });
  for (const { peer, server } of stage.sources) {
    const text = stringify({
      endpoints: [server.endpoint],
      'trusted-ca-file': stage.reader.caFile,
      'cert-file': stage.reader.certFile,
      'key-file': stage.reader.keyFile,
      'x-clustermesh': { id: peer, podCIDR: podCidrOf(shape, peer) },
    });
    writeFileSync(join(path('clustermesh'), peerName(peer)), text);
  }
  const configFile = path('apiserver.yaml');
  const text = stringify({
    cluster: { ...OWN, serviceCIDR: '172.20.0.0/16', podCIDR: podCidrOf(shape, 0) },
    etcd: { endpoints: [endpoint], ...stage.admin },
    advertise: { endpoints: [endpoint] },
    pki: { dir: path('pki') },
    manifestsDir: path('manifests'),
    peersDir: path('clustermesh'),
    usersFile: path('users.yaml'),
    stateDir: path('state'),
    redis: { path: stage.redis },
    admin: { socket: path('apiserver.sock') },
    http: { port: 0 },
  });
  writeFileSync(configFile, text);
  return { configFile };
}
