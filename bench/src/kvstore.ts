/**
 * Replication through etcd over mutual TLS, each figure beside what etcd itself gives for the same in the same run:
 *   write  a Writer from nothing to flushed          | the same transactions sent without any bookkeeping
 *   list   a Reflector from nothing to synced        | the same pages asked for and not even decoded
 *   watch  a Reflector following a rewrite           | a watch that only counts
 *
 *   npm run bench:kvstore [-- KEYS]
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Etcd, openEtcd, type Sink, startReflector, startWriter } from '@clustermesh/kvstore';
import { startEtcd } from '@clustermesh/kvstore/testing';
import { createTestCa } from '@clustermesh/kvstore/testing/certs';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { Client, credentials } from '@grpc/grpc-js';

const KEYS = Number(process.argv[2] ?? 300_000);
const PREFIX = 'cilium/cache/ip/v1/bench/';

const keyOf = (i: number) => `${PREFIX}10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}`;
const rowOf = (i: number, round: number) =>
  JSON.stringify({
    ...{
      IP: `10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}`,
      Mask: null,
      HostIP: '172.18.0.3',
      ID: 199472 + round,
    },
    ...{ Key: 0, Metadata: '', K8sNamespace: 'default', K8sPodName: `pod-${i}`, K8sServiceAccount: 'default' },
  });

const directory = mkdtempSync(join(tmpdir(), 'cm-bench-kvstore-'));
const ca = createTestCa(directory);
const serverPair = ca.issue('server', 'server', ['127.0.0.1', 'localhost']);
const clientPair = ca.issue('client', 'client');
const files = { caFile: ca.caFile, ...clientPair };
const server = await startEtcd({
  tls: { caFile: ca.caFile, ...serverPair },
  extraArgs: ['--quota-backend-bytes', String(8 << 30)],
});
const log = silentLog();
const open = () => openEtcd({ endpoints: [server.endpoint], ...files, log, requestTimeoutMs: 60_000 });
const rows: string[][] = [];

async function timed(work: () => Promise<unknown>): Promise<number> {
  const since = performance.now();
  await work();
  return performance.now() - since;
}

function report(what: string, oursMs: number, bareMs: number): void {
  const rate = (ms: number) => Math.round((KEYS / ms) * 1000).toLocaleString('en');
  rows.push([what, rate(oursMs), rate(bareMs), (oursMs / bareMs).toFixed(2), (oursMs / 1000).toFixed(2)]);
}

// ---------------------------------------------------------------- write

async function bareWrite(etcd: Etcd, prefix: string): Promise<void> {
  for (let i = 0; i < KEYS; i += 100) {
    const success = Array.from({ length: Math.min(100, KEYS - i) }, (_, k) => ({
      put: prefix + keyOf(i + k),
      value: rowOf(i + k, 0),
    }));
    await etcd.txn({ success });
  }
}

async function benchWrite(etcd: Etcd): Promise<void> {
  // Before and after: an etcd that holds more is slower.
  const before = await timed(() => bareWrite(etcd, 'bare/before/'));
  const stop = new AbortController();
  const writer = startWriter({ etcd, owned: [PREFIX], log, signal: stop.signal });
  const oursMs = await timed(async () => {
    for (let i = 0; i < KEYS; i++) writer.set(keyOf(i), rowOf(i, 0));
    await writer.flush();
  });
  stop.abort();
  await writer.done;
  const after = await timed(() => bareWrite(etcd, 'bare/after/'));
  report('write', oursMs, (before + after) / 2);
  await etcd.deletePrefix('bare/before/');
  await etcd.deletePrefix('bare/after/');
}

// ---------------------------------------------------------------- list

interface Page {
  readonly key: string;
  readonly limit: number;
  readonly revision: number;
}

/** A bare gRPC channel: requests written by hand, answers left as bytes. */
async function bareList(pages: readonly Page[]): Promise<number> {
  const channel = credentials.createSsl(
    ...(['caFile', 'keyFile', 'certFile'].map((name) => readFileSync(files[name as keyof typeof files])) as [
      Buffer,
      Buffer,
      Buffer,
    ]),
  );
  const client = new Client(`127.0.0.1:${server.port}`, channel, { 'grpc.max_receive_message_length': 64 << 20 });
  const rangeEnd = Buffer.from(`${PREFIX.slice(0, -1)}0`);
  const varint = (value: number) => {
    const bytes: number[] = [];
    for (let rest = value; ; rest = Math.floor(rest / 128)) {
      if (rest < 128) return [...bytes, rest];
      bytes.push((rest % 128) | 0x80);
    }
  };
  const field = (number: number, bytes: Buffer) =>
    Buffer.concat([Buffer.from([number * 8 + 2, ...varint(bytes.length)]), bytes]);
  const encode = ({ key, limit, revision }: Page) => {
    const numbers = Buffer.from([24, ...varint(limit), 32, ...varint(revision)]);
    return Buffer.concat([field(1, Buffer.from(key)), field(2, rangeEnd), numbers]);
  };
  const ask = (page: Page) =>
    new Promise<number>((resolve, reject) => {
      client.makeUnaryRequest(
        '/etcdserverpb.KV/Range',
        encode,
        (bytes: Buffer) => bytes.length,
        page,
        (error, length) => (error === null ? resolve(length!) : reject(error)),
      );
    });
  await ask({ key: PREFIX, limit: 1, revision: 0 });
  let bytes = 0;
  const ms = await timed(async () => {
    for (const page of pages) bytes += await ask(page);
  });
  client.close();
  console.log(`list: ${pages.length} pages, ${(bytes / 2 ** 20).toFixed(1)} MiB on the wire`);
  return ms;
}

async function benchList(etcd: Etcd): Promise<void> {
  const pages: Page[] = [];
  let key = PREFIX;
  for await (const { kvs, header } of etcd.pages(PREFIX)) {
    pages.push({ key, limit: kvs.length, revision: header.revision });
    key = `${kvs.at(-1)!.key}\0`;
  }
  const bare: number[] = [];
  const ours: number[] = [];
  for (let round = 0; round < 3; round++) {
    bare.push(await bareList(pages));
    const stop = new AbortController();
    let count = 0;
    const sink: Sink = {
      apply({ upserts }) {
        count += upserts.length;
      },
    };
    ours.push(await timed(() => startReflector({ etcd, prefix: PREFIX, sink, log, signal: stop.signal }).waitSynced()));
    stop.abort();
    if (count !== KEYS) throw new Error(`listed ${count} of ${KEYS} keys`);
  }
  report('list', Math.min(...ours), Math.min(...bare));
}

// ---------------------------------------------------------------- watch

async function benchWatch(etcd: Etcd): Promise<void> {
  const rewrite = async (round: number) => {
    for (let i = 0; i < KEYS; i += 100) {
      const length = Math.min(100, KEYS - i);
      const success = Array.from({ length }, (_, k) => ({ put: keyOf(i + k), value: rowOf(i + k, round) }));
      await writing.txn({ success });
    }
  };
  const writing = open();
  const { revision } = await etcd.status();
  const stop = new AbortController();
  let counted = 0;
  await new Promise<void>((resolve) => {
    void etcd.watch({
      ...{ prefix: PREFIX, startRevision: revision + 1, signal: stop.signal, onCreated: () => resolve() },
      onEvents(events) {
        counted += events.length;
      },
    });
  });
  const bareMs = await timed(async () => {
    await rewrite(1);
    await waitFor(() => counted === KEYS, { what: 'all events', timeoutMs: 60_000, intervalMs: 1 });
  });
  stop.abort();

  const stopReading = new AbortController();
  let applied = 0;
  const sink: Sink = {
    apply({ upserts, kind }) {
      if (kind === 'watch') applied += upserts.length;
    },
  };
  await startReflector({ etcd, prefix: PREFIX, sink, log, signal: stopReading.signal }).waitSynced();
  const oursMs = await timed(async () => {
    await rewrite(2);
    await waitFor(() => applied === KEYS, { what: 'all rows', timeoutMs: 60_000, intervalMs: 1 });
  });
  stopReading.abort();
  await writing.close();
  report('watch', oursMs, bareMs);
}

const etcd = open();
try {
  await benchWrite(etcd);
  await benchList(etcd);
  await benchWatch(etcd);
  const header = ['', 'keys/s', 'bare keys/s', 'time / bare', 'seconds'];
  for (const row of [header, ...rows]) console.log(row.map((cell) => cell.padStart(12)).join(' '));
} finally {
  await etcd.close();
  await server.close();
  rmSync(directory, { recursive: true, force: true });
}
